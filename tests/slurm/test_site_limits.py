"""The limits of a site on a real Slurm: time and memory of its partitions, and the number of submitted jobs."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from launch_fakes import NEEDS, run_fake, starts, submitted_ids
from real_slurm import MARKS, second_cluster, wait_for_empty_queue
from test_slurm import CLUSTER, REPOSITORY, states

from metapt import slurm_commands
from metapt.config import commandline
from metapt.launch.grid_dir import GridDir
from metapt.launch.submission import submit

pytestmark = [*MARKS, pytest.mark.skipif(os.getuid() != 0, reason="only root may change the limits")]
FIRST_PART = ["prepare/demo", "pretrain/a", "finetune/a"]


@pytest.fixture(autouse=True)
def _jobs_find_metapt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]))


def test_jobs_request_no_more_than_their_partition_allows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if slurm_commands.cluster_name() != "metapt":
        pytest.skip("only the partitions of the development cluster may be changed")
    cluster = replace(CLUSTER, timeout_min=None, mem_gb=None, partition="main", cpu_partition="low")
    limit = ["scontrol", "update", "PartitionName=low"]
    subprocess.run([*limit, "MaxTime=20"], check=True)
    try:
        run_fake(tmp_path, replace(cluster, extra={"exclusive": ""}), {"prepare/demo": "slow"})
        printed = capsys.readouterr().out
        listing = subprocess.check_output(
            ["squeue", "--noheader", "--array", "--format=%i|%P|%l|%m|%h"], text=True
        )
    finally:
        subprocess.run([*limit, "MaxTime=INFINITE"], check=True)
    requested = {line.partition("|")[0]: line.partition("|")[2] for line in listing.splitlines()}
    found = {name: requested[slurm_id] for name, slurm_id in submitted_ids(GridDir(tmp_path)).items()}
    assert found["prepare/demo"] == found["report"] == "low|20:00|4G|NO"  # NO: shares its nodes with no job
    assert found["pretrain/a"].startswith("main|1-00:00:00|")
    assert found["finetune/a"].startswith("main|8:00:00|")
    capped = "1 job(s) request 20 minutes instead of {}, the longest time limit in partition low"
    assert all(capped.format(minutes) in printed for minutes in (720, 60))
    assert "2 job(s) request 4 GB of memory instead of 8, all of a node in partition low" in printed
    wait_for_empty_queue(tmp_path)
    assert set(states(tmp_path).values()) == {"done"}


@pytest.mark.nightly
def test_a_grid_is_submitted_in_parts_where_a_site_limits_submitted_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where sacctmgr answers, and where the limit is known only from sbatch's refusal."""
    with second_cluster({"ACCOUNTING": "1", "GPUS": "0"}, monkeypatch):
        subprocess.run(["sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=4"], check=True)
        words = ["grid=demo", "cluster=slurm", "cluster.gpus_per_node=0", "cluster.cpus_per_task=1"]
        submit(commandline.load("submit", [*words, "cluster.mem_gb=1", "dry_run=test", f"root={tmp_path}/d"]))
        assert "do not fit into the site's limit (MaxSubmitJobs is 4" in capsys.readouterr().out
        submitted_in_parts(tmp_path / "read", capsys, "MaxSubmitJobs is 4, of which 0 are in the queue")
        (tmp_path / "sacctmgr").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "sacctmgr").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        submitted_in_parts(tmp_path / "learned", capsys, "AssocMaxSubmitJobLimit")


def submitted_in_parts(root: Path, capsys: pytest.CaptureFixture[str], reason: str) -> None:
    run_fake(root, CLUSTER, {"prepare/demo": "slow"})
    printed = capsys.readouterr().out
    assert "3 jobs are left, because of the site's limit on submitted jobs" in printed
    assert reason in printed
    first = submitted_ids(GridDir(root))
    assert list(first) == FIRST_PART
    wait_for_empty_queue(root)
    run_fake(root, CLUSTER)
    assert list(submitted_ids(GridDir(root))) == [*FIRST_PART, "pretrain/b", "finetune/b", "report"]
    wait_for_empty_queue(root)
    assert set(states(root).values()) == {"done"}
    assert sorted(starts(root)) == sorted(NEEDS)
    assert starts(root)[-1] == "report"
