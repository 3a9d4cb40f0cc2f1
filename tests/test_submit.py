"""Grids of fast fake jobs on this machine: order, failures, restarts, two submitters, signals, and the output."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import launch_fakes
import pytest
from launch_fakes import NEEDS, fake_plan, run_fake, save_checkpoint, starts, wait_for

from metapt import status
from metapt.config import ClusterConfig, commandline
from metapt.errors import EXIT_INTERRUPTED, STOP_SIGNALS, OperationalError
from metapt.launch.due_jobs import current_statuses
from metapt.launch.grid_dir import GridDir
from metapt.launch.grid_status import grid_status
from metapt.launch.run_status import run_status
from metapt.launch.submission import submit
from metapt.leases import is_held
from metapt.runs import Run

REPOSITORY = Path(__file__).parents[1]
INLINE = ClusterConfig(name="inline")
LOCAL = ClusterConfig(name="local", max_parallel=2)


@pytest.fixture(autouse=True)
def _jobs_find_metapt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]))


def states(root: Path) -> dict[str, str]:
    statuses = current_statuses(fake_plan(root), GridDir(root))
    return {job_id: status.state for job_id, status in statuses.items()}


def submitter(root: Path, cluster: str, *behaviours: str) -> subprocess.Popen[str]:
    command = [sys.executable, launch_fakes.__file__, "submit", str(root), cluster, *behaviours]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=default_signals
    )


def default_signals() -> None:
    """In the child: react to signals also if the tests run in the background, where a shell or nohup ignores them."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("cluster", [INLINE, LOCAL], ids=["inline", "local"])
def test_every_job_runs_once_and_after_the_jobs_that_it_needs(
    tmp_path: Path, cluster: ClusterConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run_fake(tmp_path, cluster)
    order = starts(tmp_path)
    assert sorted(order) == sorted(NEEDS)
    for name, needs in NEEDS.items():
        assert all(order.index(need) < order.index(name) for need in needs)
    assert set(states(tmp_path).values()) == {"done"}
    printed = capsys.readouterr().out
    assert "6 of 6 jobs done" in printed
    assert printed.endswith("\nF1 of all runs, and the page\n")


def test_a_finished_grid_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_fake(tmp_path, INLINE)
    before = starts(tmp_path)
    capsys.readouterr()
    page = tmp_path / "report" / "index.html"
    page.touch()
    run_fake(tmp_path, INLINE)
    assert starts(tmp_path) == before
    assert f"nothing to do: 6 of 6 jobs are done; report: {page}" in capsys.readouterr().out


@pytest.mark.parametrize("cluster", [INLINE, LOCAL], ids=["inline", "local"])
def test_a_failure_blocks_only_the_jobs_that_need_it(
    tmp_path: Path, cluster: ClusterConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OperationalError, match="1 failed, 1 blocked"):
        run_fake(tmp_path, cluster, {"pretrain/a": "fail-once"})
    assert states(tmp_path)["pretrain/a"] == "failed"
    assert set(starts(tmp_path)) == set(NEEDS) - {"finetune/a"}
    printed = capsys.readouterr().out
    assert "pretrain/a: something is wrong with the data" in printed
    assert "blocked finetune/a" in printed

    (tmp_path / "starts.log").unlink()
    run_fake(tmp_path, cluster, {"pretrain/a": "fail-once"})
    assert set(starts(tmp_path)) == {"pretrain/a", "finetune/a", "report"}
    assert set(states(tmp_path).values()) == {"done"}


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [("fail", "something is wrong with the data"), ("killed", "killed by SIGKILL (out of memory?)")],
)
@pytest.mark.parametrize("name", ["prepare/demo", "finetune/b"])
def test_the_error_of_a_failed_job_is_recorded(
    tmp_path: Path, name: str, behaviour: str, message: str
) -> None:
    with pytest.raises(OperationalError):
        run_fake(tmp_path, INLINE, {name: behaviour})
    status = run_status(tmp_path / name)
    assert (status.state, status.last_error_line) == ("failed", message)


def test_exit_code_0_without_a_result_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(OperationalError, match="1 failed"):
        run_fake(tmp_path, INLINE, {"finetune/b": "silent"})
    assert "with no output on stderr" in run_status(tmp_path / "finetune/b").last_error_line


def test_the_report_is_built_again_when_a_result_changes(tmp_path: Path) -> None:
    run_fake(tmp_path, INLINE)
    before = len(starts(tmp_path))
    os.utime(tmp_path / "finetune/a/result.json")  # times do not count: the clocks of a cluster differ
    run_fake(tmp_path, INLINE)
    assert len(starts(tmp_path)) == before
    Run(tmp_path / "finetune/a").finish({"kind": "finetune", "epochs": 7})
    run_fake(tmp_path, INLINE)
    assert starts(tmp_path)[before:] == ["report"]


def test_the_report_is_built_again_when_it_is_asked_something_else(tmp_path: Path) -> None:
    run_fake(tmp_path, INLINE)
    before = len(starts(tmp_path))
    run_fake(tmp_path, INLINE, margin=1.0)
    assert starts(tmp_path)[before:] == ["report"]
    assert GridDir(tmp_path).read_plan().margin == 1.0
    run_fake(tmp_path, INLINE, margin=1.0)
    assert len(starts(tmp_path)) == before + 1


def damage_a_byte(checkpoint: Path) -> None:
    """Without a change of the size."""
    file = checkpoint / "model/model.safetensors"
    file.write_bytes(b"W" + file.read_bytes()[1:])


@pytest.mark.parametrize(
    ("damage", "problem", "is_seen_by_status"),
    [
        (shutil.rmtree, "step_000004 is missing", True),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing or unreadable", True),
        (damage_a_byte, "model.safetensors does not match its checksum", False),
    ],
    ids=["missing", "without a manifest", "damaged"],
)
def test_a_result_without_its_last_checkpoint_does_not_count(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    problem: str,
    is_seen_by_status: bool,
) -> None:
    """The run is resumed before it is fine-tuned, and the submitter says so; an earlier checkpoint is another model."""
    with pytest.raises(OperationalError):
        run_fake(tmp_path, INLINE, {"finetune/a": "fail-once"})
    run = Run(tmp_path / "pretrain/a")
    save_checkpoint(run, 2)
    damage(run.checkpoint(4))
    assert (states(tmp_path)["pretrain/a"] == "interrupted") == is_seen_by_status
    capsys.readouterr()
    status.main([f"root={tmp_path}"])
    shown = "".join(capsys.readouterr().out.split())  # the table wraps long lines anywhere
    assert ("".join(problem.split()) in shown) == is_seen_by_status
    before = len(starts(tmp_path))
    run_fake(tmp_path, INLINE, {"finetune/a": "fail-once"})
    printed = capsys.readouterr().out
    assert f"pretrain/a: its result does not count and is withdrawn, since {run.checkpoint(4)}" in printed
    assert problem in printed
    assert starts(tmp_path)[before:] == ["pretrain/a", "finetune/a", "report"]
    assert set(states(tmp_path).values()) == {"done"}


def test_a_damaged_result_does_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_fake(tmp_path, INLINE)
    (tmp_path / "finetune/b/result.json").write_text('{"kind": "fine')
    assert states(tmp_path)["finetune/b"] == "interrupted"
    run_fake(tmp_path, INLINE)
    assert "finetune/b/result.json is damaged" in capsys.readouterr().out
    assert set(states(tmp_path).values()) == {"done"}


def test_a_run_with_a_damaged_configuration_is_named_and_the_others_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    behaviours = {"pretrain/a": "fail-once", "pretrain/b": "fail-once"}
    with pytest.raises(OperationalError, match="2 failed, 2 blocked"):
        run_fake(tmp_path, INLINE, behaviours)
    damaged = tmp_path / "pretrain/a"
    (damaged / "config.yaml").write_bytes(b"config:\n  train: {}\nprovenance:\n  git_")
    capsys.readouterr()
    with pytest.raises(OperationalError, match="1 failed, 1 blocked"):
        run_fake(tmp_path, INLINE, behaviours)
    printed = capsys.readouterr().out
    assert (
        f"pretrain/a: is not started, nor are the jobs that need it, since {damaged}/config.yaml: damaged"
        in printed
    )
    assert "4 of 6 jobs done" in printed
    assert starts(tmp_path)[-3:] == ["pretrain/b", "finetune/b", "report"]
    shown = grid_status(GridDir(tmp_path)).jobs
    assert {status.job.id: status.state for status in shown if status.state != "done"} == {
        "pretrain/a": "failed",
        "finetune/a": "blocked",
    }
    shutil.rmtree(damaged)
    run_fake(tmp_path, INLINE)
    assert "6 of 6 jobs done" in capsys.readouterr().out


@pytest.mark.usefixtures("slurm_commands")
def test_jobs_that_are_left_to_another_user_do_not_count_as_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"job": "finetune/b", "slurm_id": "7", "user": "ana", "cluster": ""}
    (tmp_path / "jobs.jsonl").write_text(f"{json.dumps(record)}\n")
    with pytest.raises(OperationalError, match="1 unknown"):
        run_fake(tmp_path, INLINE)
    assert "5 of 6 jobs done" in capsys.readouterr().out
    assert starts(tmp_path)[-1] == "report"
    assert "finetune/b" not in starts(tmp_path)


@pytest.mark.parametrize("cluster", ["inline", "local"])
def test_two_submitters_at_once_never_run_a_job_twice(tmp_path: Path, cluster: str) -> None:
    slow = [f"{name}=slow" for name in ("pretrain/a", "finetune/b")]
    first = submitter(tmp_path, cluster, *slow)
    wait_for(tmp_path / "starts.log")
    second = submitter(tmp_path, cluster, *slow)
    output, _ = second.communicate(timeout=300)
    assert second.returncode == 1
    assert f"this grid is locked by process {first.pid} on" in output
    first.communicate(timeout=300)
    assert first.returncode == 0
    assert sorted(starts(tmp_path)) == sorted(NEEDS)


@pytest.mark.parametrize("behaviour", ["slow", "stoppable"])
def test_the_job_of_a_killed_submitter_ends_with_it(tmp_path: Path, behaviour: str) -> None:
    """Even if it was never waited for; one that can save has saved. The next call starts it again."""
    first = submitter(tmp_path, "inline", f"pretrain/a={behaviour}")
    wait_for(tmp_path / "pretrain/a" / ("started" if behaviour == "stoppable" else "metrics.jsonl"))
    first.kill()
    first.communicate()
    lock_file = tmp_path / "pretrain/a/.lock"
    deadline = time.monotonic() + 60
    while is_held(lock_file):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not Run(tmp_path / "pretrain/a").is_done
    assert (tmp_path / "pretrain/a/saved").exists() == (behaviour == "stoppable")
    run_fake(tmp_path, INLINE, {"pretrain/a": "stoppable"} if behaviour == "stoppable" else None)
    assert starts(tmp_path).count("pretrain/a") == 2
    assert set(states(tmp_path).values()) == {"done"}


@pytest.mark.parametrize(
    ("cluster", "number"), [("inline", signal.SIGINT), ("local", signal.SIGTERM), ("inline", signal.SIGHUP)]
)
def test_a_stopped_grid_saves_and_the_next_call_resumes(
    tmp_path: Path, cluster: str, number: signal.Signals
) -> None:
    with submitter(tmp_path, cluster, "pretrain/a=stoppable") as process:
        try:
            wait_for(tmp_path / "pretrain/a/started")
            process.send_signal(number)
            output, _ = process.communicate(timeout=300)
        finally:
            process.kill()  # and with it its jobs
    assert process.returncode == 75, output
    assert (tmp_path / "pretrain/a/saved").exists()
    assert states(tmp_path)["pretrain/a"] == "interrupted"
    run_fake(tmp_path, ClusterConfig(name=cluster), {"pretrain/a": "stoppable"})
    assert set(states(tmp_path).values()) == {"done"}


def test_status_prints_progress_and_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OperationalError):
        run_fake(
            tmp_path, INLINE, {"finetune/a": "fail", "pretrain/b": "stoppable"} | {"pretrain/b": "killed"}
        )
    capsys.readouterr()
    status.main([f"root={tmp_path}"])
    printed = capsys.readouterr().out
    assert "3 of 6 done" in printed
    assert "failed  finetune/a: something is wrong with the data" in printed
    assert str(tmp_path / "logs/finetune/a.err") in printed


def test_runs_of_an_earlier_plan_are_kept_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    superseded = Run(tmp_path / "pretrain/a-0123ab")
    superseded.start({"train": {"max_steps": 7}}, {})
    run_fake(tmp_path, INLINE)
    assert "1 run(s) that are not in this plan are kept, such as pretrain/a-0123ab" in capsys.readouterr().out
    assert superseded.config() == {"train": {"max_steps": 7}}
    status.main([f"root={tmp_path}"])
    printed = capsys.readouterr().out
    assert "6 of 6 done" in printed
    assert "1 run(s) are not in this plan and not shown, such as pretrain/a-0123ab" in printed


def test_a_job_waits_until_its_inputs_are_visible(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a shared file system a finished run, or its last checkpoint, may appear late."""
    job = next(job for job in fake_plan(tmp_path).jobs if job.id == "finetune/a")
    run = Run(tmp_path / "pretrain/a")

    def appear() -> None:
        time.sleep(0.2)
        save_checkpoint(run, 3)
        run.finish({"kind": "pretrain", "steps": 4})
        time.sleep(0.2)
        save_checkpoint(run, 4)

    thread = threading.Thread(target=appear)
    thread.start()
    GridDir(tmp_path).wait_for_inputs(job, 30)
    assert run.checkpoint(4).exists()
    thread.join()
    run.result_file.unlink()
    GridDir(tmp_path).wait_for_inputs(job, 0.1)
    assert "not visible here after 0.1 s: pretrain/a" in capsys.readouterr().err


def test_the_report_waits_until_every_job_has_ended(tmp_path: Path) -> None:
    grid_dir, *jobs, report = GridDir(tmp_path), *fake_plan(tmp_path).jobs
    grid_dir.write_plan(fake_plan(tmp_path))
    for job in jobs:  # a fine-tuning run has no checkpoint of its last step
        if job.kind == "pretrain":
            save_checkpoint(grid_dir.run(job), 4)
        grid_dir.run(job).finish({"kind": job.kind, "steps": 4})
    failed = grid_dir.run(jobs[-1])
    failed.result_file.unlink()
    failed.error_file.write_text("OSError: no space left\n")
    began = time.monotonic()
    grid_dir.wait_for_inputs(report, 30)
    assert time.monotonic() - began < 15
    assert list(grid_dir.result_checksums(report.needs)) == [job.id for job in jobs[:-1]]
    pretrained, blocked = (grid_dir.run(job) for job in jobs if job.id in ("pretrain/b", "finetune/b"))
    blocked.error_file.unlink(missing_ok=True)
    pretrained.error_file.write_text("OSError: no space left\n")
    pretrained.result_file.unlink()  # so that what needs it never begins, and leaves nothing
    assert not blocked.result_file.exists()
    grid_dir.wait_for_inputs(report, 30)
    assert time.monotonic() - began < 15


def test_a_dry_run_prints_every_job_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    submit(commandline.load("submit", ["grid=demo", "cluster=local", "dry_run=true"]))
    printed = capsys.readouterr().out
    assert "python -m metapt.finetune_command" in printed
    assert "16 jobs (1 prepare, 2 pretrain, 8 finetune, 4 baseline, 1 report); 16 to do" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("command", "further"), [("submit", []), ("status", ["numpy"])])
def test_submit_and_status_import_nothing_heavy(command: str, further: list[str]) -> None:
    heavy = {"torch", "transformers", "deepspeed", *further}
    script = f"import sys, metapt.{command}; print({heavy} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "set()"


def test_status_without_a_plan_is_a_user_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "metapt.status", f"root={tmp_path}"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert ended.returncode == 2
    assert "plan.json: no such file" in ended.stderr


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_second_signal_does_not_kill_an_interrupted_program(number: signal.Signals) -> None:
    """Python removes its handlers while it exits, and these signals kill a process by default."""
    script = (
        "import os\n"
        "from metapt.errors import Interrupted, run_command\n"
        "def stop(argv):\n"
        "    raise Interrupted('saved')\n"
        "try:\n"
        "    run_command(stop)\n"
        "finally:\n"
        f"    os.kill(os.getpid(), {number:d})\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (EXIT_INTERRUPTED, "interrupted: saved\n")
