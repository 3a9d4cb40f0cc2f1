"""python -m metapt.status: states from run folders and a stand-in for squeue, what it costs, and how it is shown."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from launch_fakes import fake_plan

from metapt import status
from metapt.launch.grid_dir import Root
from metapt.launch.grid_status import overview
from metapt.launch.jobs import Job, Plan
from metapt.launch.run_status import TAIL_BYTES
from metapt.runs import MetricsWriter, Run

NUMBERS = {name: str(100 + index) for index, name in enumerate(job.id for job in fake_plan(Path()).jobs)}


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose file `queue` is what squeue prints; `asked` has a line for each time."""
    folder = tmp_path / "commands"
    folder.mkdir()
    script = folder / "squeue"
    script.write_text(f"#!/bin/bash\necho >> '{folder}/asked'\ncat '{folder}/queue'\n")
    script.chmod(0o755)
    (folder / "queue").touch()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """The grid of launch_fakes, handed to Slurm, nothing begun."""
    root = Root(tmp_path / "grid")
    root.write_plan(fake_plan(root.path))
    lines = [json.dumps({"job": name, "slurm_id": number}) for name, number in NUMBERS.items()]
    root.submitted_file.write_text("\n".join(lines) + "\n")
    return root


def begun(root: Root, name: str, updates: int = 4) -> Run:
    run = Run(root.path / name)
    run.start({"train": {"max_steps": 1000}}, {})
    metrics = MetricsWriter(run)
    for step in range(1, updates + 1):
        metrics.write(step, "lm", lm_loss_nats=5.0, seconds=1.0, tokens_per_second=100.0)
    metrics.close()
    return run


def states(root: Root) -> dict[str, str]:
    return {seen.job.id: seen.state for seen in overview(root).jobs}


def test_what_slurm_has_is_queued_or_running_with_its_number_and_reason(root: Root, squeue: Path) -> None:
    Run(root.path / "prepare/demo").finish({})
    begun(root, "pretrain/a")  # its lock, which another node holds, may not be seen from here
    queue = {"pretrain/a": "RUNNING|None", "pretrain/b": "PENDING|Resources"}
    queue |= dict.fromkeys(("finetune/a", "finetune/b", "report"), "PENDING|Dependency")
    (squeue / "queue").write_text("".join(f"{NUMBERS[name]}|{said}\n" for name, said in queue.items()))
    assert states(root) == {
        "prepare/demo": "done",
        "pretrain/a": "running",
        "pretrain/b": "queued",
        "finetune/a": "queued",
        "finetune/b": "queued",
        "report": "queued",
    }
    entries = {seen.job.id: seen.entry for seen in overview(root).jobs}
    assert entries["pretrain/b"] is not None
    assert (entries["pretrain/b"].number, entries["pretrain/b"].reason) == (
        NUMBERS["pretrain/b"],
        "Resources",
    )


def test_what_left_the_queue_is_told_and_what_needs_it_is_blocked(root: Root, squeue: Path) -> None:
    Run(root.path / "prepare/demo").finish({})
    failed = begun(root, "pretrain/a")
    failed.error_file.write_text("Traceback\nOSError: no space left\n")
    assert states(root) == {
        "prepare/demo": "done",
        "pretrain/a": "failed",
        "pretrain/b": "lost",
        "finetune/a": "blocked",
        "finetune/b": "blocked",
        "report": "waiting",
    }
    with root.claimed():  # a submitter on this machine will come to it
        assert states(root)["pretrain/b"] == "waiting"


def test_json_has_progress_error_log_and_queue(
    root: Root, squeue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(root, "pretrain/a", updates=10)
    begun(root, "pretrain/b").error_file.write_text("OSError: no space left\n")
    (squeue / "queue").write_text(f"{NUMBERS['pretrain/a']}|RUNNING|None\n")
    status.main([f"root={root.path}", "--json"])
    told = json.loads(capsys.readouterr().out)
    jobs = {entry["job"]: entry for entry in told["jobs"]}
    a, b = jobs["pretrain/a"], jobs["pretrain/b"]
    assert (a["state"], a["step"], a["max_steps"], a["loss"]) == ("running", 10, 1000, 5.0)
    assert (a["tokens_per_second"], a["seconds_left"]) == (100.0, 990.0)
    assert a["slurm"] == {"number": NUMBERS["pretrain/a"], "state": "RUNNING", "reason": "None"}
    assert (b["state"], b["error"]) == ("failed", "OSError: no space left")
    assert b["log"] == str(root.path / "logs/pretrain/b.err")
    assert told["queue_error"] is None


def test_without_squeue_the_folders_are_told_and_the_reason(
    root: Root, squeue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (squeue / "squeue").write_text("#!/bin/bash\necho the controller is away >&2; exit 1\n")
    Run(root.path / "pretrain/b").finish({"kind": "pretrain", "steps": 7, "eval_loss_nats": 2.5})
    status.main([f"root={root.path}"])
    said = capsys.readouterr().out
    assert "the controller is away" in said
    assert "1 of 6 done, 5 waiting" in said
    row = next(line for line in said.splitlines() if line.startswith("pretrain/b"))
    assert row.split() == ["pretrain/b", "done", "step", "7/7", "2.500"]


def test_what_an_earlier_plan_left_is_told_apart(
    root: Root, squeue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(root, "pretrain/old-0123ab")
    with root.submitted_file.open("a") as file:
        file.write(json.dumps({"job": "finetune/old-4567cd", "slurm_id": "99_1"}) + "\n")
    (squeue / "queue").write_text("99_1|PENDING|Dependency\n")
    status.main([f"root={root.path}"])
    assert "not of the present plan, and not shown: 2 run(s), 1 of them in Slurm's queue (99_1)" in (
        capsys.readouterr().out
    )
    status.main([f"root={root.path}", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["others"] == {"pretrain/old-0123ab": "", "finetune/old-4567cd": "99_1"}
    assert [entry["job"] for entry in told["jobs"]] == list(NUMBERS)


def test_an_interrupted_job_that_is_not_queued_again_blocks_what_needs_it(root: Root, squeue: Path) -> None:
    Run(root.path / "prepare/demo").finish({})
    begun(root, "pretrain/a")
    assert (states(root)["pretrain/a"], states(root)["finetune/a"]) == ("interrupted", "blocked")
    (squeue / "queue").write_text(f"{NUMBERS['pretrain/a']}|PENDING|BeginTime\n")
    assert (states(root)["pretrain/a"], states(root)["finetune/a"]) == ("queued", "waiting")


@pytest.mark.parametrize("words", [["--watch", "--json"], ["watch=true", "json=true"]])
def test_watching_looks_again_until_all_is_done(
    words: list[str], root: Root, squeue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def finish() -> None:
        for job in fake_plan(root.path).jobs:
            root.run(job).finish({})

    later = threading.Timer(1.5, finish)
    later.start()
    status.main([f"root={root.path}", "every_s=1", *words])
    later.join()
    looks = [json.loads(line)["jobs"] for line in capsys.readouterr().out.splitlines()]
    assert len(looks) >= 2
    assert {entry["state"] for entry in looks[0]} == {"lost", "waiting", "blocked"}
    assert {entry["state"] for entry in looks[-1]} == {"done"}


def test_hundreds_of_runs_cost_one_question_to_squeue_and_the_ends_of_their_files(
    tmp_path: Path, squeue: Path
) -> None:
    root = Root(tmp_path / "many")
    names = [f"pretrain/{number}" for number in range(40)]
    root.write_plan(Plan("many", tuple(Job(name, "pretrain", (), (), name) for name in names)))
    root.submitted_file.write_text(
        "".join(json.dumps({"job": name, "slurm_id": name}) + "\n" for name in names)
    )
    for name in names:
        begun(root, name, updates=2000)
    long = root.path / names[0] / "metrics.jsonl"
    assert long.stat().st_size > 10 * TAIL_BYTES
    before = bytes_read()
    assert {seen.run.step for seen in overview(root).jobs} == {2000}
    assert bytes_read() - before < len(names) * (TAIL_BYTES + 8 * 1024)
    assert (squeue / "asked").read_text() == "\n"


def bytes_read() -> int:
    """By this process, through system calls, so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])
