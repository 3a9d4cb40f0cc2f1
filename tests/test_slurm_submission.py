"""Submission of plans to fakes of Slurm's commands: requests, no duplicates, refusals, dry runs."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from pathlib import Path

import pytest
from launch_fakes import fake_plan, run_fake, save_checkpoint, submitted_ids

from metapt.config import ClusterConfig, commandline
from metapt.errors import OperationalError
from metapt.launch import slurm_queue
from metapt.launch.code_snapshot import live_code
from metapt.launch.due_jobs import current_statuses, jobs_to_start
from metapt.launch.grid_dir import GridDir
from metapt.launch.grid_status import grid_status
from metapt.launch.job_sources import JobSources
from metapt.launch.submission import submit
from metapt.runs import Run
from metapt.slurm_commands import user_name

CLUSTER = ClusterConfig(name="slurm")
LIVE = JobSources(live_code())


def pending(number: str) -> str:
    """A line of squeue, in the requested format."""
    return f"{number}|PENDING|Priority\n"


def directives(script: Path) -> dict[str, str]:
    lines = [
        line.removeprefix("#SBATCH --")
        for line in script.read_text().splitlines()
        if line.startswith("#SBATCH")
    ]
    return {name: value.strip("'") for name, _, value in (line.partition("=") for line in lines)}


def test_sbatch_options(tmp_path: Path, slurm_commands: Path) -> None:
    words = [
        "grid=demo",
        "grid.baselines=[]",
        "cluster=slurm",
        f"root={tmp_path / 'r'}",
        "grid.gpus_per_size={nano:2}",
        "grid.sources=[en_demo]",
    ]
    words += [
        "grid.tunings=[head_only]",
        "cluster.partition=main",
        "cluster.account=nlp",
        "cluster.qos=long",
        "cluster.mem_gb=64",
    ]
    words += [
        "cluster.timeout_min=600",
        "cluster.extra={constraint:a100}",
        'cluster.setup=["module load cuda"]',
    ]
    words += ["cluster.gpus_per_node=1", "grid.hours_per_size={nano:2.5}", "grid.mem_gb_per_size={nano:32}"]
    submit(commandline.load("submit", words))
    prepare, pretrains, vanilla, maml, report = (directives(slurm_commands / f"batch_{n}") for n in range(5))
    pretraining = {
        "job-name": "demo/pretrain",
        "array": "0-1%2",
        "nodes": "2",
        "ntasks-per-node": "1",
        "gpus-per-node": "1",
        "cpus-per-task": "4",
        "mem": "32GB",
        "time": "150",
        "partition": "main",
        "account": "nlp",
        "qos": "long",
        "constraint": "a100",
        "signal": "USR2@120",
        "dependency": "afterok:100",
        "kill-on-invalid-dep": "yes",
        "open-mode": "append",
    }
    assert {name: pretrains[name] for name in pretraining} == pretraining
    assert not {"gpus-per-node", "wckey"} & set(prepare)
    assert "dependency" not in prepare
    finetuning = {
        "nodes": "1",
        "gpus-per-node": "1",
        "mem": "64GB",
        "time": "600",
        "dependency": "afterok:101_0",
    }
    assert {name: vanilla[name] for name in finetuning} == finetuning
    assert maml["dependency"] == "afterok:101_1"
    assert report["dependency"] == "afterany:100:101:102:103"
    text = (slurm_commands / "batch_1").read_text()
    assert text.index("module load cuda") < text.index("srun --unbuffered")
    assert "--cpus-per-task=4" in text[text.index("srun") :]


def test_an_array_has_similar_jobs_and_a_limit(tmp_path: Path, slurm_commands: Path) -> None:
    words = [
        "grid=demo",
        "grid.baselines=[]",
        "cluster=slurm",
        f"root={tmp_path / 'r'}",
        "grid.sizes=[nano,tiny]",
        "grid.seeds=[0,1,2]",
    ]
    words += ["grid.hours_per_size={tiny:9}", "cluster.max_running=3", "grid.sources=[en_demo]"]
    submit(commandline.load("submit", words))
    scripts = [
        directives(slurm_commands / f"batch_{n}") for n in range(len(list(slurm_commands.glob("batch_*"))))
    ]
    arrays = Counter((script["job-name"], script["time"], script.get("array")) for script in scripts)
    assert arrays["demo/pretrain", "1440", "0-5%3"] == 1  # nano: 2 objectives x 3 seeds
    assert arrays["demo/pretrain", "540", "0-5%3"] == 1  # tiny
    assert arrays["demo/finetune", "480", "0-1%2"] == 12  # per pretraining run, head_only and full
    assert arrays["report", "60", None] == 1


@pytest.mark.parametrize(
    ("max_size", "sizes"),
    [("1001", [6]), ("6", [6]), ("4", [4, 2]), ("5", [5, 1]), ("1", [1] * 6), ("0", [1] * 6)],
)
def test_an_array_is_no_larger_than_the_site_allows(
    tmp_path: Path, slurm_commands: Path, max_size: str, sizes: list[int]
) -> None:
    (slurm_commands / "scontrol").write_text(f"#!/bin/bash\necho 'MaxArraySize            = {max_size}'\n")
    words = ["grid=demo", "grid.baselines=[]", "grid.sources=[]", "grid.seeds=[0,1,2]"]
    submit(commandline.load("submit", [*words, "cluster=slurm", f"root={tmp_path / 'r'}"]))
    scripts = [directives(slurm_commands / f"batch_{n}") for n in range(2 + len(sizes))]
    assert [script.get("array") for script in scripts] == [
        None,  # preparation
        *(f"0-{size - 1}%{size}" if size > 1 else None for size in sizes),
        None,  # the report
    ]
    numbers = [100 + number for number in range(1 + len(sizes))]
    assert scripts[-1]["dependency"] == f"afterany:{':'.join(map(str, numbers))}"
    submitted = submitted_ids(GridDir(tmp_path / "r"))
    assert len(submitted) == len(set(submitted.values())) == 1 + 6 + 1


def test_jobs_in_the_queue_are_not_submitted_again(tmp_path: Path, slurm_commands: Path) -> None:
    words = ["grid=demo", "grid.baselines=[]", "cluster=slurm", f"root={tmp_path / 'r'}"]
    submit(commandline.load("submit", words))
    assert len(list(slurm_commands.glob("batch_*"))) == 5
    slurm_ids = [
        "100",
        "101_0",
        "101_1",
        *(f"{array}_{task}" for array in (102, 103) for task in range(4)),
        "104",
    ]
    (slurm_commands / "queue").write_text("".join(map(pending, slurm_ids)))
    submit(commandline.load("submit", words))
    assert len(list(slurm_commands.glob("batch_*"))) == 5
    left = [number for number in slurm_ids if number not in ("100", "101_1")]
    (slurm_commands / "queue").write_text("".join(map(pending, left)))
    prepare = GridDir(tmp_path / "r").read_plan().jobs[0]
    GridDir(tmp_path / "r").run(prepare).finish({})
    submit(commandline.load("submit", words))  # pretrain/nano-maml-s0 has left the queue without a result
    scripts = [directives(slurm_commands / f"batch_{n}") for n in range(5, 8)]
    assert len(list(slurm_commands.glob("batch_*"))) == 8
    assert [re.sub("-[0-9a-f]{6}$", "", script["job-name"]) for script in scripts] == [
        "pretrain/nano-maml-s0",
        "demo/finetune",  # of the lost run: those in the queue could never start, and are replaced
        "report",
    ]
    assert scripts[1]["dependency"] == "afterok:105"
    cancelled = (slurm_commands / "cancelled").read_text().split()
    assert cancelled == ["103_0", "103_1", "103_2", "103_3", "104"]


def test_without_squeue_nothing_is_submitted_twice(tmp_path: Path, slurm_commands: Path) -> None:
    words = ["grid=demo", "grid.baselines=[]", "cluster=slurm", f"root={tmp_path / 'r'}"]
    submit(commandline.load("submit", words))
    (slurm_commands / "squeue").write_text("#!/bin/bash\necho the controller is away >&2; exit 1\n")
    with pytest.raises(OperationalError, match="the controller is away"):
        submit(commandline.load("submit", words))
    assert len(list(slurm_commands.glob("batch_*"))) == 5


@pytest.mark.parametrize("is_accepted", [False, True], ids=["refused", "accepted with an error"])
def test_submission_is_all_or_nothing(tmp_path: Path, slurm_commands: Path, is_accepted: bool) -> None:
    refusing = '[ -e "$HERE/batch_2" ] && { echo Socket timed out >&2; exit 1; }\n'
    script = slurm_commands / "sbatch"
    script.write_text(script.read_text().replace("n=$(", f"{refusing}n=$("))
    stray = (
        f"103|PENDING|Priority|{slurm_queue.job_comment(GridDir(tmp_path / 'r'))}\n" if is_accepted else ""
    )
    (slurm_commands / "queue").write_text("7|RUNNING|None|another grid's\n")
    (slurm_commands / "squeue").write_text(
        f"#!/bin/bash\n[ -e '{slurm_commands}/batch_2' ] && echo '{stray}'\ntrue\n"
    )
    with pytest.raises(OperationalError, match=r"finetune/b: sbatch refuses.*Socket timed out"):
        run_fake(tmp_path / "r", CLUSTER)
    cancelled = (slurm_commands / "cancelled").read_text().split()
    assert sorted(cancelled) == ["100", "101_0", "101_1", "102", *(["103"] if is_accepted else [])]
    assert not submitted_ids(GridDir(tmp_path / "r"))


def test_unrecorded_jobs_of_a_killed_submitter_are_cancelled(tmp_path: Path, slurm_commands: Path) -> None:
    comment = slurm_queue.job_comment(GridDir(tmp_path / "r"))
    (slurm_commands / "queue").write_text(
        f"55_0|PENDING|Priority|{comment}\n56|PENDING|Priority|{comment}/elsewhere\n"
    )
    run_fake(tmp_path / "r", CLUSTER)
    assert (slurm_commands / "cancelled").read_text().split() == ["55_0"]
    (slurm_commands / "queue").write_text(f"100|PENDING|Priority|{comment}\n")  # recorded
    assert not slurm_queue.read_queue(GridDir(tmp_path / "r")).unrecorded


def full_disk(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Files of this name cannot be written."""
    write_bytes = Path.write_bytes

    def refuse(path: Path, content: bytes) -> int:
        if path.name.startswith(f".{name}"):
            write_bytes(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", refuse)


def test_a_disk_that_fills_while_the_jobs_are_recorded(
    tmp_path: Path, slurm_commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The submission is taken back, and the record and the plan are what they were."""
    grid_dir = GridDir(tmp_path / "r")
    run_fake(grid_dir.path, CLUSTER)
    files = (grid_dir.submitted_file, grid_dir.plan_file)
    before = [file.read_text() for file in files]
    with monkeypatch.context() as patch:
        full_disk(patch, "jobs.jsonl")
        with pytest.raises(
            OperationalError, match=r"jobs\.jsonl: cannot be written \(No space left on device\)"
        ):
            run_fake(grid_dir.path, CLUSTER, {"finetune/b": "slow"})
    cancelled = (slurm_commands / "cancelled").read_text().split()
    assert sorted(cancelled) == ["105", "106_0", "106_1", "107", "108", "109"]
    assert [file.read_text() for file in files] == before
    assert not list(grid_dir.path.glob("*.tmp"))
    run_fake(grid_dir.path, CLUSTER, {"finetune/b": "slow"})
    assert submitted_ids(grid_dir)["report"] == "114"
    assert '"slow"' in grid_dir.plan_file.read_text()


def test_the_plan_changes_only_with_what_was_submitted(tmp_path: Path, slurm_commands: Path) -> None:
    grid_dir = GridDir(tmp_path / "r")
    sbatch = (slurm_commands / "sbatch").read_text()
    (slurm_commands / "sbatch").write_text("#!/bin/bash\necho refused >&2; exit 1\n")
    with pytest.raises(OperationalError):
        run_fake(grid_dir.path, CLUSTER)
    assert not grid_dir.plan_file.exists()
    (slurm_commands / "sbatch").write_text(sbatch)
    run_fake(grid_dir.path, CLUSTER)
    for job in fake_plan(grid_dir.path).jobs:
        (grid_dir.path / job.id).mkdir(parents=True)
        if job.kind == "pretrain":
            save_checkpoint(grid_dir.run(job), 4)
        grid_dir.run(job).finish({"kind": job.kind, "steps": 4})
    plan = fake_plan(grid_dir.path)
    inputs = grid_dir.result_checksums(plan.jobs[-1].needs)
    grid_dir.run(plan.jobs[-1]).finish({"inputs": inputs, "settings": plan.report_settings})
    before = grid_dir.plan_file.read_text()
    run_fake(grid_dir.path, CLUSTER, {"finetune/b": "slow"})  # nothing to do
    assert grid_dir.plan_file.read_text() == before
    grid_dir.run(plan.jobs[-1]).result_file.unlink()  # the report is queued, and told what is asked now
    (slurm_commands / "queue").write_text(pending(submitted_ids(grid_dir)["report"]))
    run_fake(grid_dir.path, CLUSTER, {"finetune/b": "slow"}, margin=1.0)
    assert grid_dir.read_plan() == fake_plan(grid_dir.path, margin=1.0)


def test_jobs_of_another_user_are_left_to_them(
    tmp_path: Path, slurm_commands: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid_dir = GridDir(tmp_path / "r")
    run_fake(grid_dir.path, CLUSTER)
    record = grid_dir.submitted_file.read_text()
    assert f'"user": "{user_name()}"' in record
    grid_dir.submitted_file.write_text(record.replace(user_name(), "ana"))
    capsys.readouterr()
    run_fake(grid_dir.path, CLUSTER)
    printed = capsys.readouterr().out
    assert "6 job(s) were submitted by ana and may be in a queue that is not visible here" in printed
    assert "nothing to do" in printed
    Run(grid_dir.path / "prepare/demo").finish({})
    failed(grid_dir, "pretrain/a")  # its end is visible, so it can be repaired; what needs it is left to ana
    run_fake(grid_dir.path, CLUSTER)
    assert len(list(slurm_commands.glob("batch_*"))) == 6
    assert directives(slurm_commands / "batch_5")["job-name"] == "pretrain/a"


def test_a_second_submitter_submits_nothing(tmp_path: Path, slurm_commands: Path) -> None:
    with GridDir(tmp_path / "r").locked(), pytest.raises(OperationalError, match=f"process {os.getpid()} on"):
        run_fake(tmp_path / "r", CLUSTER)
    assert not list(slurm_commands.glob("batch_*"))


def failed(grid_dir: GridDir, name: str) -> None:
    run = Run(grid_dir.path / name)
    run.start({"train": {"max_steps": 1}}, {})
    run.error_file.write_text("OSError: no space left\n")


def test_a_damaged_run_is_not_submitted_and_the_others_are(
    tmp_path: Path, slurm_commands: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid_dir = GridDir(tmp_path / "r")
    Run(grid_dir.path / "prepare/demo").finish({})
    for name in ("pretrain/a", "pretrain/b"):
        failed(grid_dir, name)
    Run(grid_dir.path / "pretrain/a").config_file.write_bytes(b"\0" * 64)
    with pytest.raises(OperationalError, match=r"1 damaged run\(s\) were not started, see above"):
        run_fake(grid_dir.path, CLUSTER)
    assert list(submitted_ids(grid_dir)) == ["pretrain/b", "finetune/b", "report"]
    assert "pretrain/a: is not started, nor are the jobs that need it" in capsys.readouterr().out
    report = directives(slurm_commands / "batch_2")
    assert report["dependency"] == "afterany:100:101"
    shown = {status.job.id: status for status in grid_status(grid_dir).jobs}
    assert (shown["pretrain/a"].state, shown["finetune/a"].state) == ("failed", "blocked")
    assert "config.yaml: damaged" in shown["pretrain/a"].run.last_error_line


@pytest.mark.parametrize("reason", ["Dependency", "DependencyNeverSatisfied", None])
def test_jobs_blocked_by_a_failed_run_are_submitted_with_it(
    tmp_path: Path, slurm_commands: Path, reason: str | None
) -> None:
    """Whether Slurm has not noticed yet, keeps the blocked job in its queue for ever, or has cancelled it."""
    grid_dir = GridDir(tmp_path / "r")
    run_fake(grid_dir.path, CLUSTER)
    for name in ("prepare/demo", "pretrain/b", "finetune/b"):
        Run(grid_dir.path / name).finish({})
    failed(grid_dir, "pretrain/a")
    slurm_ids = submitted_ids(grid_dir)
    waiting = f"{slurm_ids['finetune/a']}|PENDING|{reason}\n" if reason else ""
    (slurm_commands / "queue").write_text(f"{waiting}{slurm_ids['report']}|RUNNING|None\n")
    plan = fake_plan(grid_dir.path)
    due = [job.id for job in jobs_to_start(plan, current_statuses(plan, grid_dir), grid_dir)]
    assert due == ["pretrain/a", "finetune/a", "report"]
    run_fake(grid_dir.path, CLUSTER)
    repaired, waits = (directives(slurm_commands / f"batch_{n}")["dependency"] for n in (6, 7))
    assert waits == f"afterany:105:106:{slurm_ids['report']}"
    assert repaired == "afterok:105"
    cancelled = slurm_commands / "cancelled"
    assert (cancelled.read_text().split() if reason else []) == ([slurm_ids["finetune/a"]] if reason else [])
    assert cancelled.exists() == bool(reason)


def test_a_job_that_slurm_is_ending_is_followed_by_its_new_submission(
    tmp_path: Path, slurm_commands: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other run of its array does not wait for it. A submitter without Slurm refuses the grid."""
    grid_dir = GridDir(tmp_path / "r")
    run_fake(grid_dir.path, CLUSTER)
    Run(grid_dir.path / "prepare/demo").finish({})
    ending = submitted_ids(grid_dir)["pretrain/a"]
    assert ending == "101_0"
    (slurm_commands / "queue").write_text(f"{ending}|COMPLETING|TimeLimit\n")
    plan = fake_plan(grid_dir.path)
    statuses = current_statuses(plan, grid_dir)
    assert statuses["pretrain/a"].state == "ending"
    assert not statuses["pretrain/a"].is_in_queue
    with pytest.raises(OperationalError, match="jobs of this grid are in Slurm's queue"):
        run_fake(grid_dir.path, ClusterConfig(name="inline"))
    run_fake(grid_dir.path, CLUSTER)
    assert "5 jobs submitted to Slurm in 5 requests; 0 were already in its queue" in capsys.readouterr().out
    a, b, finetune_a, finetune_b, report = (
        directives(slurm_commands / f"batch_{number}") for number in range(5, 10)
    )
    assert a["job-name"] == "pretrain/a"
    assert a["dependency"] == f"afterany:{ending}"
    assert "dependency" not in b
    assert (finetune_a["dependency"], finetune_b["dependency"]) == ("afterok:105", "afterok:106")
    assert report["dependency"] == "afterany:105:106:107:108"
    assert not (slurm_commands / "cancelled").exists()


def test_a_job_whose_dependency_is_never_satisfied_is_submitted_again(
    tmp_path: Path, slurm_commands: Path
) -> None:
    grid_dir = GridDir(tmp_path / "r")
    run_fake(grid_dir.path, CLUSTER)
    slurm_ids = submitted_ids(grid_dir)
    for name in ("prepare/demo", "pretrain/a", "pretrain/b", "finetune/b"):
        Run(grid_dir.path / name).finish({})
    queue = f"{slurm_ids['finetune/a']}|PENDING|DependencyNeverSatisfied\n{pending(slurm_ids['report'])}"
    (slurm_commands / "queue").write_text(queue)
    assert current_statuses(fake_plan(grid_dir.path), grid_dir)["finetune/a"].state == "blocked"
    run_fake(grid_dir.path, CLUSTER)
    names = [directives(slurm_commands / f"batch_{number}")["job-name"] for number in range(5, 7)]
    assert names == ["finetune/a", "report"]
    assert (slurm_commands / "cancelled").read_text().split() == sorted(
        [slurm_ids["finetune/a"], slurm_ids["report"]]
    )
