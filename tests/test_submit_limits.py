"""Sites that limit the number of submitted jobs: parts of a grid, limits that sacctmgr reports, and refusals of sbatch."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from launch_fakes import fake_plan, run_fake, submitted_ids

from metapt.config import ClusterConfig, commandline
from metapt.errors import Interrupted, OperationalError
from metapt.launch.grid import plan
from metapt.launch.grid_dir import GridDir
from metapt.launch.grid_status import grid_status
from metapt.launch.submission import submit
from metapt.launch.submit_limits import parts_of, room

CLUSTER = ClusterConfig(name="slurm")
PARTS = [["prepare/demo", "pretrain/a", "finetune/a"], ["pretrain/b", "finetune/b", "report"]]


def test_parts_are_closed_under_dependencies_and_end_with_the_report(tmp_path: Path) -> None:
    made = fake_plan(tmp_path)
    assert [[job.id for job in part] for part in parts_of(made, made.jobs)] == PARTS
    assert [[job.id for job in part] for part in parts_of(made, made.jobs[3:])] == [
        ["finetune/a"],
        ["finetune/b", "report"],
    ]
    assert [[job.id for job in part] for part in parts_of(made, made.jobs[-1:])] == [["report"]]
    words = ["grid=demo", "cluster=slurm", "grid.seeds=[0,1,2]", "grid.sources=[en_demo]"]
    big = plan(commandline.load("submit", words))
    parts = parts_of(big, big.jobs)
    assert sorted(job.id for part in parts for job in part) == sorted(job.id for job in big.jobs)
    place = {job.id: number for number, part in enumerate(parts) for job in part}
    for job in big.jobs:
        assert all(place[name] <= place[job.id] for name in job.needs)
        if job.kind == "finetune":
            assert place[job.needs[0]] == place[job.id]
    assert parts[-1][-1].kind == "report"


def limited(slurm_commands: Path, limit: int) -> None:
    """sbatch refuses to exceed this number of jobs in the queue, and squeue shows those that were accepted."""
    sbatch = slurm_commands / "sbatch"
    count = "size=$(sed -n 's/.*--array=0-\\([0-9]*\\).*/\\1/p' \"$1\"); size=$((${size:-0} + 1))\n"
    count += f'[ $(($(cat "$HERE/queue" | wc -l) + size)) -gt {limit} ] && '
    count += "{ echo 'sbatch: error: AssocMaxSubmitJobLimit' >&2; exit 1; }\n"
    accept = 'for i in $(seq $size); do [ $size = 1 ] && echo "$((100 + n))|PENDING|Priority|" || '
    accept += 'echo "$((100 + n))_$((i - 1))|PENDING|Priority|"; done >>"$HERE/queue"\n'
    text = sbatch.read_text()
    sbatch.write_text(
        text.replace("n=$(", f"{count}n=$(", 1).replace('echo "Submitted', f'{accept}echo "Submitted', 1)
    )
    scancel = slurm_commands / "scancel"
    scancel.write_text(f"#!/bin/bash\nfor id; do sed -i \"/^$id|/d\" '{slurm_commands}/queue'; done\n")
    (slurm_commands / "queue").touch()


def test_a_refused_grid_is_submitted_in_parts(
    tmp_path: Path, slurm_commands: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limited(slurm_commands, 4)
    grid_dir = GridDir(tmp_path / "r")
    run_fake(grid_dir.path, CLUSTER)
    printed = capsys.readouterr().out
    assert "3 jobs submitted to Slurm in 3 requests; 0 were already in its queue" in printed
    assert "3 jobs are left, because of the site's limit on submitted jobs" in printed
    assert "AssocMaxSubmitJobLimit" in printed
    first = submitted_ids(grid_dir)
    assert list(first) == PARTS[0]
    in_queue = {line.split("|")[0] for line in (slurm_commands / "queue").read_text().splitlines()}
    assert in_queue == set(first.values())  # nothing is left of the part that was refused
    states = {status.job.id: status.state for status in grid_status(grid_dir).jobs}
    assert states == dict.fromkeys(PARTS[0], "queued") | dict.fromkeys(PARTS[1], "waiting")
    with pytest.raises(OperationalError, match="leaves no room for a part of the grid"):
        run_fake(grid_dir.path, CLUSTER)
    assert submitted_ids(grid_dir) == first
    limited_again = (slurm_commands / "sbatch").read_text().replace("-gt 4", "-gt 6")
    (slurm_commands / "sbatch").write_text(limited_again)
    run_fake(grid_dir.path, CLUSTER)
    second = submitted_ids(grid_dir)
    assert list(second) == [*PARTS[0], *PARTS[1]]
    assert {name: second[name] for name in PARTS[0]} == first
    scripts = [path.read_text() for path in slurm_commands.glob("batch_*")]
    pretrain = next(text for text in reversed(scripts) if "--job-name=pretrain/b\n" in text)
    assert f"--dependency=afterok:{first['prepare/demo']}\n" in pretrain
    report = next(text for text in scripts if "--job-name=report\n" in text)
    assert all(slurm_id in report for name, slurm_id in second.items() if name != "report")


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python reacts to Ctrl-C also if the tests run in the background, where a shell lets it be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(
    ("action", "message"),
    [("echo Socket timed out >&2; exit 1", "Socket timed out"), ("kill -INT $PPID; exit 1", "stopped; ")],
    ids=["another refusal", "Ctrl-C"],
)
def test_a_part_that_fails_leaves_the_plan_and_the_jobs_of_the_earlier_ones(
    tmp_path: Path, slurm_commands: Path, action: str, message: str
) -> None:
    limited(slurm_commands, 4)
    sbatch = slurm_commands / "sbatch"
    text = sbatch.read_text()
    sbatch.write_text(text.replace("size=", f'[ -e "$HERE/batch_6" ] && {{ {action}; }}\nsize=', 1))
    grid_dir = GridDir(tmp_path / "r")
    with pytest.raises((OperationalError, Interrupted)) as raised:
        run_fake(grid_dir.path, CLUSTER)
    assert message in str(raised.value)
    assert "3 jobs of earlier parts stay in the queue" in str(raised.value)
    assert "nothing" not in str(raised.value)
    states = {status.job.id: status.state for status in grid_status(grid_dir).jobs}
    assert states == dict.fromkeys(PARTS[0], "queued") | dict.fromkeys(PARTS[1], "waiting")


def sacctmgr(slurm_commands: Path, answer: str) -> None:
    script = slurm_commands / "sacctmgr"
    script.write_text(f"#!/bin/bash\nprintf '{answer}'\n")
    script.chmod(0o755)


def test_a_limit_that_sacctmgr_reports_is_respected(
    tmp_path: Path, slurm_commands: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sacctmgr(slurm_commands, "9\\n\\n5\\n")
    (slurm_commands / "queue").write_text("7|RUNNING|None|another grid's\n")
    allowed = room(None)
    assert allowed is not None
    assert (allowed.limit, allowed.in_queue, allowed.left) == (5, 1, 4)
    words = ["grid=demo", "cluster=slurm", f"root={tmp_path / 'd'}", "dry_run=test"]
    submit(commandline.load("submit", words))
    printed = capsys.readouterr().out
    assert (
        "jobs do not fit into the site's limit (MaxSubmitJobs is 5, of which 1 are in the queue)" in printed
    )
    run_fake(tmp_path / "r", CLUSTER)
    assert list(submitted_ids(GridDir(tmp_path / "r"))) == PARTS[0]
    assert len(list(slurm_commands.glob("batch_*"))) == 3
    sacctmgr(slurm_commands, "\\n")
    assert room(None) is None
