"""Failed devices and hangs: what counts as one, who is at fault, and that runs end as interrupted and are requeued elsewhere."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_slurm import JOB, Slurm
from launch_fakes import save_checkpoint

from metapt import node_failures
from metapt.errors import EXIT_INTERRUPTED, Interrupted, OperationalError
from metapt.launch import slurm_task
from metapt.launch.requeues import MAX_NODE_FAILURES, nodes_to_avoid
from metapt.launch.run_status import run_status
from metapt.node_failures import NodeFailure, culprits, device_error, record, recorded
from metapt.runs import Run
from metapt.slurm_commands import excludable
from metapt.training.signals import StopRequest

ECC = "CUDA error: uncorrectable ECC error encountered"
DEVICE = NodeFailure("7", 0, 1, "node2", "cuda:1", ECC)
HANG = replace(DEVICE, error="no progress for 1200 s", queries=5)


@pytest.mark.parametrize(
    ("text", "is_device"),
    [
        (f"Traceback\ntorch.AcceleratorError: {ECC}\nCompile with TORCH_USE_CUDA_DSA", True),
        ("RuntimeError: CUDA error: an illegal memory access was encountered", True),
        ("RuntimeError: No CUDA GPUs are available", True),
        ("RuntimeError: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", True),
        ("DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1, unhandled system error (run with NCCL_DEBUG=INFO)", True),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB", False),
        ("RuntimeError: CUDA error: out of memory", False),
        ("RuntimeError: CUDA error: device-side assert triggered", False),
        ("RuntimeError: CUDA error: no kernel image is available for execution on the device", False),
        ("DistBackendError: NCCL error: remote process exited or there was a network error", False),
        ("RuntimeError: [gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234", False),
        ("OSError: [Errno 28] No space left on device", False),
    ],
)  # fmt: skip
def test_what_is_a_device_error(text: str, is_device: bool) -> None:
    assert (device_error(text) is not None) == is_device


def test_the_cause_among_the_failures_of_a_start() -> None:
    waiting = replace(HANG, rank=0, node="node1", queries=6)
    assert culprits([]) == []
    assert culprits([waiting, HANG]) == [HANG]  # it has got least far; the other waits for it
    assert culprits([waiting, HANG, DEVICE]) == [DEVICE]
    assert (
        culprits([replace(waiting, queries=5), HANG]) == []
    )  # the network, perhaps: no node is known to be at fault
    alone = [replace(waiting, node="node2", queries=5), HANG]
    assert culprits(alone) == alone


def test_a_device_error_interrupts_a_run_and_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": "1",
        "SLURMD_NODENAME": "node3",
        "RANK": "2",
    }.items():
        monkeypatch.setenv(name, value)
    run = Run(tmp_path)
    expected = rf" on node node3: RuntimeError: {ECC}; the same command resumes"
    with pytest.raises(Interrupted, match=expected), StopRequest().watched(run, 0):
        raise RuntimeError(f"{ECC}\nmore")
    assert "Traceback" in capsys.readouterr().err
    (failure,) = recorded(run, "7")
    assert (failure.start, failure.rank, failure.node, failure.queries) == (1, 2, "node3", None)
    assert recorded(run, "8") == []
    with pytest.raises(RuntimeError, match="a bug"), StopRequest().watched(run, 0):
        raise RuntimeError("a bug")


def test_a_run_that_hangs_ends_as_interrupted_and_names_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work that asks whether it should stop goes on; so does work that can be stopped anywhere."""
    ended: list[int] = []
    monkeypatch.setattr(node_failures.os, "_exit", ended.append)
    monkeypatch.setattr(node_failures.faulthandler, "dump_traceback", lambda *_: None)
    run, stop = Run(tmp_path), StopRequest()
    with stop.watched(run, 0.5):
        for _ in range(20):
            assert not stop
            time.sleep(0.05)
        with stop.at_once():
            time.sleep(1)
        assert not ended
        deadline = time.monotonic() + 120
        while not ended and time.monotonic() < deadline:
            time.sleep(0.05)
    assert set(ended) == {EXIT_INTERRUPTED}
    (failure,) = recorded(run, "no_job")
    assert (failure.error, failure.queries, failure.device) == ("no progress for 0.5 s", stop.queries, "cpu")


def test_nodes_to_avoid_are_those_of_all_starts_at_most_twice(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert nodes_to_avoid(run, "7", 0) is None
    record(run, DEVICE)
    assert nodes_to_avoid(run, "7", 0) == ["node2"]
    assert nodes_to_avoid(run, "7", 1) is None  # that start ended for another reason
    assert nodes_to_avoid(run, "8", 0) is None
    record(run, replace(DEVICE, start=1, node="node1"))
    assert nodes_to_avoid(run, "7", 1) == ["node1", "node2"]
    record(run, replace(DEVICE, start=MAX_NODE_FAILURES, node="node5"))
    with pytest.raises(
        OperationalError, match=r"nodes have failed at 3 starts; abandoned\ncuda:1 on node node2: CUDA"
    ):
        nodes_to_avoid(run, "7", MAX_NODE_FAILURES)
    assert run_status(tmp_path).state == "failed"
    assert run_status(tmp_path).last_error_line == f"cuda:1 on node node5: {ECC}"


def test_a_job_that_no_other_node_could_run_excludes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sinfo = tmp_path / "sinfo"
    sinfo.write_text("#!/bin/bash\n[ \"$3\" = --partition=gpu ] && printf 'node1\\nnode2\\nnode3\\n'\n")
    sinfo.chmod(0o755)
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/bash\n[ "$2" = job ] && echo "   ReqNodeList=(null) ExcNodeList=(null)"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_PARTITION", "gpu")
    monkeypatch.delenv("SLURM_JOB_NUM_NODES", raising=False)
    assert excludable([]) == []
    assert excludable(["node1", "node2"]) == ["node1", "node2"]
    assert excludable(["node1", "node2", "node3"]) == []
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    assert excludable(["node1", "node2"]) == []
    assert "partition gpu has no 2 other node(s) than node1,node2" in capsys.readouterr().err
    monkeypatch.delenv("SLURM_JOB_NUM_NODES")
    scontrol.write_text(  # the site excludes node2 and node9
        '#!/bin/bash\ncase "$*" in "show job 7") echo "   ExcNodeList=node[2,9]" ;;\n'
        '"show hostnames node[2,9]") printf "node2\\nnode9\\n" ;; esac\n'
    )
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert excludable(["node1"]) == ["node1", "node2", "node9"]
    assert excludable(["node1", "node3"]) == []


@pytest.mark.parametrize("failing_starts", [1, MAX_NODE_FAILURES, MAX_NODE_FAILURES + 1])
def test_a_job_is_requeued_without_the_failed_node(
    failing_starts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm, excluded = Slurm(tmp_path, monkeypatch), []
    monkeypatch.setattr(
        slurm_task, "exclude_nodes", lambda slurm_id, nodes: excluded.append((slurm_id, nodes))
    )
    poll, program = slurm.program.poll, slurm.program

    def failing_poll() -> int | None:
        start = slurm.restarts
        if start >= failing_starts or slurm.clock.now < program.starts[-1] + 100:
            return poll()
        if not program.killed:
            save_checkpoint(program.run, start + 1)
            record(program.run, replace(DEVICE, job="77", start=start, node=f"node{start}"))
            program.killed = True
        return EXIT_INTERRUPTED

    monkeypatch.setattr(program, "poll", failing_poll)
    slurm.live()
    requeues = min(failing_starts, MAX_NODE_FAILURES)
    assert excluded == [("77", [f"node{number}" for number in range(count + 1)]) for count in range(requeues)]
    assert slurm.requeue_requests == slurm.restarts == requeues
    is_abandoned = failing_starts > MAX_NODE_FAILURES
    assert run_status(program.run.path).state == ("failed" if is_abandoned else "done")


def test_an_error_that_aborts_the_process_is_found_in_its_output(tmp_path: Path) -> None:
    """As that of the thread in which torch watches NCCL."""
    from metapt.launch.grid_dir import GridDir
    from metapt.launch.process import JobProcess

    program = (
        "import os, sys; print('NCCL error: unhandled cuda error', file=sys.stderr, flush=True); os.abort()"
    )
    process = JobProcess(GridDir(tmp_path), replace(JOB, program=("-c", program)), threads=1)
    assert process.wait() == EXIT_INTERRUPTED
    assert not (tmp_path / JOB.run_dir / "error.txt").exists()
    (failure,) = recorded(Run(tmp_path / JOB.run_dir), "no_job")
    assert failure.error == "NCCL error: unhandled cuda error"
