"""Submission beside other jobs in Slurm's queue: replaced ones, those of other clusters, and those that it does not show."""

from __future__ import annotations

from pathlib import Path

import pytest
from launch_fakes import fake_plan, run_fake, save_checkpoint, submitted_ids

from metapt.config import ClusterConfig
from metapt.launch.due_jobs import current_statuses, jobs_to_start
from metapt.launch.grid_dir import GridDir
from metapt.runs import Run
from metapt.slurm_commands import user_name

CLUSTER = ClusterConfig(name="slurm")
KINDS = ("pretrain", "finetune")


def test_replaced_jobs_that_cannot_be_cancelled_are_named(
    tmp_path: Path, slurm_commands: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid_dir = GridDir(tmp_path / "r")
    run_fake(grid_dir.path, CLUSTER)
    report = submitted_ids(grid_dir)["report"]
    (slurm_commands / "queue").write_text(f"{report}|PENDING|DependencyNeverSatisfied\n")
    (slurm_commands / "scancel").write_text("#!/bin/bash\necho Socket timed out >&2; exit 1\n")
    run_fake(grid_dir.path, CLUSTER, {"report": "slow"})
    assert f"still in the queue: failed: scancel {report}: Socket timed out" in capsys.readouterr().err
    assert submitted_ids(grid_dir)["report"] != report
    assert '"slow"' in grid_dir.plan_file.read_text()


def test_an_unrelated_job_with_the_id_of_a_lost_one_is_not_cancelled(
    tmp_path: Path, slurm_commands: Path
) -> None:
    grid_dir = GridDir(tmp_path / "r")
    run_fake(grid_dir.path, CLUSTER)
    report = submitted_ids(grid_dir)["report"]
    (slurm_commands / "queue").write_text(f"{report}|PENDING|Priority|my other work\n")
    run_fake(grid_dir.path, CLUSTER)
    assert submitted_ids(grid_dir)["report"] != report
    assert not (slurm_commands / "cancelled").exists()


@pytest.mark.parametrize("recorded", ["of another cluster", "of another user", "none", "own"])
def test_a_job_that_runs_elsewhere_is_not_submitted_again(
    recorded: str, tmp_path: Path, slurm_commands: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of this user that has left the queue is: it may still be saving, and the new job waits for that."""
    (slurm_commands / "scontrol").write_text("#!/bin/bash\necho ClusterName = small\n")
    grid_dir = GridDir(tmp_path / "r")
    run_fake(grid_dir.path, CLUSTER)
    record = grid_dir.submitted_file.read_text()
    changed = {
        "of another cluster": record.replace('"small"', '"big"'),
        "of another user": record.replace(f'"{user_name()}"', '"ana"'),
        "none": "",
        "own": record,
    }
    grid_dir.submitted_file.write_text(changed[recorded])
    save_checkpoint(Run(grid_dir.path / "pretrain/b"), 4)
    for name in ("prepare/demo", "pretrain/b", "finetune/b"):
        Run(grid_dir.path / name).finish({"kind": name.split("/")[0], "steps": 4})
    capsys.readouterr()
    run = Run(grid_dir.path / "pretrain/a")
    with run.locked():
        run.start({"train": {"max_steps": 4}}, {})
        run_fake(grid_dir.path, CLUSTER)
        plan = fake_plan(grid_dir.path)
        here = jobs_to_start(plan, current_statuses(plan, grid_dir), grid_dir)
    count = len(list(slurm_commands.glob("batch_*")))
    scripts = [(slurm_commands / f"batch_{number}").read_text() for number in range(5, count)]
    is_submitted = [any(f"--job-name={name}/a\n" in text for text in scripts) for name in KINDS]
    assert is_submitted == [recorded == "own"] * 2
    assert ("not submitted again: pretrain/a" in capsys.readouterr().out) == (recorded != "own")
    assert "pretrain/a" in [job.id for job in here]  # which waits for it
