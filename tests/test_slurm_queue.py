"""Submission beside other jobs in Slurm's queue: replaced ones, those of other clusters, and those that it does not show."""

from __future__ import annotations

from pathlib import Path

import pytest
from launch_fakes import run_fake, submitted_ids

from metapt.config import ClusterConfig
from metapt.launch.grid_dir import GridDir

CLUSTER = ClusterConfig(name="slurm")


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
