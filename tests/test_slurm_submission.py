"""Submission of plans to fakes of Slurm's commands: requests, no duplicates, refusals, dry runs."""

from __future__ import annotations

import os
import pickletools
import re
import stat
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from launch_fakes import fake_plan, run_fake

from metapt.config import ClusterConfig, commandline
from metapt.errors import OperationalError
from metapt.launch import slurm, slurm_queue
from metapt.launch.code_snapshot import live_code
from metapt.launch.grid_dir import GridDir
from metapt.launch.submission import current_statuses, jobs_to_start, submit
from metapt.runs import Run

CLUSTER = ClusterConfig(name="slurm")
LIVE = live_code()


@pytest.fixture
def slurm_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with fakes of sbatch, squeue and so on, which record their input there."""
    folder = tmp_path / "slurm commands"
    folder.mkdir()
    scripts = {
        "sbatch": '[ "$1" = --test-only ] && { cat >"$HERE/tested"; echo sbatch: Job 7 to start now >&2; exit; }\n'
        'n=$(ls "$HERE" | grep -c batch_); cp "$1" "$HERE/batch_$n"; env >"$HERE/environment"\n'
        'echo "Submitted batch job $((100 + n))"',
        "squeue": '[ ! -e "$HERE/queue" ] || cat "$HERE/queue"',
        "srun": "exit 1",  # submitit checks that it exists
        "scontrol": "true",
        "scancel": 'echo "$@" >>"$HERE/cancelled"',
    }
    for name, body in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\nHERE='{folder}'\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


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
    assert arrays["demo/finetune", "1440", "0-1%2"] == 12  # per pretraining run, head_only and full
    assert arrays["report", "1440", None] == 1


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
    submitted = slurm_queue.submitted_ids(GridDir(tmp_path / "r"))
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
    scripts = [directives(slurm_commands / f"batch_{n}") for n in range(5, 9)]
    assert len(list(slurm_commands.glob("batch_*"))) == 9
    assert [re.sub("-[0-9a-f]{6}$", "", script["job-name"]) for script in scripts] == [
        "prepare/demo",
        "pretrain/nano-maml-s0",
        "demo/finetune",  # of the lost run: those in the queue could never start, and are replaced
        "report",
    ]
    assert scripts[2]["dependency"] == "afterok:106"
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
    assert not slurm_queue.submitted_ids(GridDir(tmp_path / "r"))


def test_unrecorded_jobs_of_a_killed_submitter_are_cancelled(tmp_path: Path, slurm_commands: Path) -> None:
    comment = slurm_queue.job_comment(GridDir(tmp_path / "r"))
    (slurm_commands / "queue").write_text(
        f"55_0|PENDING|Priority|{comment}\n56|PENDING|Priority|{comment}/elsewhere\n"
    )
    run_fake(tmp_path / "r", CLUSTER)
    assert (slurm_commands / "cancelled").read_text().split() == ["55_0"]
    (slurm_commands / "queue").write_text(f"100|PENDING|Priority|{comment}\n")  # recorded
    assert slurm_queue.unrecorded_ids(GridDir(tmp_path / "r")) == set()


def test_a_second_submitter_submits_nothing(tmp_path: Path, slurm_commands: Path) -> None:
    with GridDir(tmp_path / "r").locked(), pytest.raises(OperationalError, match=f"process {os.getpid()} on"):
        run_fake(tmp_path / "r", CLUSTER)
    assert not list(slurm_commands.glob("batch_*"))


def failed(grid_dir: GridDir, name: str) -> None:
    run = Run(grid_dir.path / name)
    run.start({"train": {"max_steps": 1}}, {})
    run.error_file.write_text("OSError: no space left\n")


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
    slurm_ids = slurm_queue.submitted_ids(grid_dir)
    waiting = f"{slurm_ids['finetune/a']}|PENDING|{reason}\n" if reason else ""
    (slurm_commands / "queue").write_text(f"{waiting}{slurm_ids['report']}|RUNNING|None\n")
    plan = fake_plan(grid_dir.path)
    due = [job.id for job in jobs_to_start(plan, current_statuses(plan, grid_dir), grid_dir)]
    assert due == ["prepare/demo", "pretrain/a", "finetune/a", "report"]
    run_fake(grid_dir.path, CLUSTER)
    repaired, waits = (directives(slurm_commands / f"batch_{n}")["dependency"] for n in (7, 8))
    assert waits == f"afterany:105:106:107:{slurm_ids['report']}"
    assert repaired == "afterok:106"
    cancelled = slurm_commands / "cancelled"
    assert (cancelled.read_text().split() if reason else []) == ([slurm_ids["finetune/a"]] if reason else [])
    assert cancelled.exists() == bool(reason)


def test_a_job_that_slurm_is_ending_is_followed_by_its_new_submission(
    tmp_path: Path, slurm_commands: Path
) -> None:
    """The other run of its array does not wait for it. A submitter without Slurm refuses the grid."""
    grid_dir = GridDir(tmp_path / "r")
    run_fake(grid_dir.path, CLUSTER)
    Run(grid_dir.path / "prepare/demo").finish({})
    ending = slurm_queue.submitted_ids(grid_dir)["pretrain/a"]
    assert ending == "101_0"
    (slurm_commands / "queue").write_text(f"{ending}|COMPLETING|TimeLimit\n")
    plan = fake_plan(grid_dir.path)
    statuses = current_statuses(plan, grid_dir)
    assert statuses["pretrain/a"].state == "ending"
    assert not statuses["pretrain/a"].is_in_queue
    with pytest.raises(OperationalError, match="jobs of this grid are in Slurm's queue"):
        run_fake(grid_dir.path, ClusterConfig(name="inline"))
    run_fake(grid_dir.path, CLUSTER)
    prepare, a, b, finetune_a, finetune_b, report = (
        directives(slurm_commands / f"batch_{number}") for number in range(5, 11)
    )
    assert a["job-name"] == "pretrain/a"
    assert a["dependency"] == f"afterok:105,afterany:{ending}"
    assert b["dependency"] == "afterok:105"
    assert (finetune_a["dependency"], finetune_b["dependency"]) == ("afterok:106", "afterok:107")
    assert report["dependency"] == "afterany:105:106:107:108:109"
    assert "dependency" not in prepare
    assert not (slurm_commands / "cancelled").exists()


def test_a_job_whose_dependency_is_never_satisfied_is_submitted_again(
    tmp_path: Path, slurm_commands: Path
) -> None:
    grid_dir = GridDir(tmp_path / "r")
    run_fake(grid_dir.path, CLUSTER)
    slurm_ids = slurm_queue.submitted_ids(grid_dir)
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


def batch_scripts(folder: Path) -> list[str]:
    return [(folder / f"batch_{n}").read_text() for n in range(len(list(folder.glob("batch_*"))))]


def test_a_dry_run_prints_the_submitted_scripts(tmp_path: Path, slurm_commands: Path) -> None:
    plan, grid_dir = fake_plan(tmp_path / "r"), GridDir(tmp_path / "r")
    shown = slurm.batch_scripts(plan, plan.jobs, grid_dir, CLUSTER, LIVE)
    assert not grid_dir.path.exists()
    run_fake(grid_dir.path, CLUSTER)
    numbered = [re.sub(r"(?<=:)@(\d+)", lambda match: str(99 + int(match[1])), script) for _, script in shown]
    assert numbered == batch_scripts(slurm_commands)
    assert shown[1][0] == "pretrain/a .. pretrain/b (2 jobs)"


def test_a_test_run_asks_sbatch_and_submits_nothing(
    tmp_path: Path, slurm_commands: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["grid=demo", "grid.sources=[]", "cluster=slurm", f"root={tmp_path / 'r'}", "dry_run=test"]
    submit(commandline.load("submit", words))
    printed = capsys.readouterr().out
    assert printed.count("accepted: sbatch: Job 7 to start now") == 3
    assert "#SBATCH --dependency" not in printed  # on jobs that do not exist
    assert (slurm_commands / "tested").read_text() in printed
    script = slurm_commands / "sbatch"
    script.write_text("#!/bin/bash\ngrep -q array || exit 0\necho Invalid qos specification >&2; exit 1\n")
    with pytest.raises(OperationalError, match="would refuse 1 of these"):
        submit(commandline.load("submit", words))
    assert "REFUSED: Invalid qos specification" in capsys.readouterr().out
    assert not (tmp_path / "r").exists()
    assert not list(slurm_commands.glob("batch_*"))


@pytest.mark.usefixtures("slurm_commands")
@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {"gpus-per-node": "2"}),
        ({"gpu_type": "a100"}, {"gpus-per-node": "a100:2"}),
        ({"gpu_request": "gres"}, {"gres": "gpu:2"}),
        ({"gpu_request": "gres", "gpu_type": "a100"}, {"gres": "gpu:a100:2"}),
        ({"gpu_request": "constraint", "gpu_type": "gpu"}, {"constraint": "gpu"}),
        ({"gpu_request": "none"}, {}),
    ],
)
def test_gpu_options(tmp_path: Path, settings: dict[str, str], options: dict[str, str]) -> None:
    plan, grid_dir = fake_plan(tmp_path), GridDir(tmp_path)
    jobs = [plan.jobs[0], replace(plan.jobs[1], gpus_per_node=2)]
    scripts = slurm.batch_scripts(plan, jobs, grid_dir, replace(CLUSTER, **settings), LIVE)
    without_gpus, with_gpus = (
        [line for line in text.splitlines() if re.match("#SBATCH --(gpu|gres|constraint)", line)]
        for _, text in scripts
    )
    assert with_gpus == [f"#SBATCH --{name}={value}" for name, value in options.items()]
    assert without_gpus == []
    assert "#SBATCH --ntasks-per-node=2" in scripts[1][1]


def test_the_environment_of_a_surrounding_job_is_not_inherited(
    tmp_path: Path, slurm_commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inherited = {
        "SLURM_JOB_ID": "7",
        "SLURM_MEM_PER_CPU": "100",
        "SLURM_NTASKS_PER_NODE": "3",
        "SRUN_CPUS_PER_TASK": "9",
    }
    inherited |= {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "node1",
        "PMIX_RANK": "0",
        "SBATCH_CPU_BIND": "quiet",
    }
    kept = {
        "SLURM_CONF": "/c",
        "SBATCH_PARTITION": "gpu",
        "HF_HOME": "/h",
    }  # how to reach Slurm; settings of the site
    for name, value in (inherited | kept).items():
        monkeypatch.setenv(name, value)
    run_fake(tmp_path / "r", CLUSTER)
    environment = (slurm_commands / "environment").read_text().splitlines()
    assert not {line.partition("=")[0] for line in environment} & set(inherited)
    assert {f"{name}={value}" for name, value in kept.items()} <= set(environment)
    assert os.environ["SLURM_JOB_ID"] == "7"


def test_submitit_pickles_only_the_task(tmp_path: Path, slurm_commands: Path) -> None:
    words = ["grid=demo", "grid.baselines=[]", "cluster=slurm", f"root={tmp_path / 'r'}"]
    submit(commandline.load("submit", words))
    pickles = list((tmp_path / "r/logs/submitit").glob("*.pkl"))
    assert len(pickles) == 12
    for path in pickles:
        assert path.stat().st_size < 10_000
        texts, globals_ = [], set()
        for opcode, argument, _ in pickletools.genops(path.read_bytes()):
            assert opcode.name not in ("BINBYTES", "BINBYTES8", "BYTEARRAY8", "PERSID", "BINPERSID", "EXT1")
            if opcode.name == "STACK_GLOBAL":
                globals_.add(".".join(texts[-2:]))
            if isinstance(argument, str):
                texts.append(argument)
        assert globals_ <= {
            "submitit.core.utils.DelayedSubmission",
            "metapt.launch.slurm_task.SlurmTask",
            "metapt.launch.jobs.Job",
            "pathlib.PosixPath",
        }
