"""The time limit, memory and partition that each kind of job requests, and the limits of partitions."""

from __future__ import annotations

from pathlib import Path

import pytest

from metapt.config import ClusterConfig, commandline
from metapt.errors import UserError
from metapt.estimate.flops import parameter_count
from metapt.launch.grid import plan
from metapt.launch.jobs import Plan
from metapt.launch.resources import PartitionLimits, partition_limits, with_resources
from metapt.launch.submission import submit

WORDS = ["grid=demo", "cluster=slurm", "cluster.gpus_per_node=0"]


def made(*words: str) -> tuple[Plan, ClusterConfig]:
    config = commandline.load("submit", [*WORDS, *words])
    return plan(config), config.cluster


def requested(*words: str) -> dict[str, set[tuple[int, int | None]]]:
    """(minutes, GB) by kind of job."""
    grid_plan, cluster = made(*words)
    found: dict[str, set[tuple[int, int | None]]] = {}
    for job in with_resources(grid_plan, grid_plan.jobs, cluster)[0]:
        assert job.hours is not None
        found.setdefault(job.kind, set()).add((round(job.hours * 60), job.mem_gb))
    return found


@pytest.fixture
def sinfo(slurm_commands: Path) -> Path:
    """A fake sinfo without an answer."""
    return slurm_commands / "sinfo"


def answer(sinfo: Path, text: str) -> None:
    sinfo.write_text(f"#!/bin/bash\necho \"$@\" >>'{sinfo.parent}/asked'\nprintf '{text}'\n")


@pytest.mark.usefixtures("sinfo")
def test_each_kind_of_job_requests_its_own_time_and_memory() -> None:
    assert requested() == {
        "prepare": {(720, 8)},
        "pretrain": {(1440, 3)},
        "finetune": {(480, 3)},
        "baseline": {(120, 4)},
        "report": {(60, 8)},
    }
    changed = requested("cluster.timeout_min_per_kind={report: 5}", "grid.hours_per_size={nano: 2.5}")
    assert (changed["report"], changed["pretrain"], changed["prepare"]) == ({(5, 8)}, {(150, 3)}, {(720, 8)})
    everywhere = requested("cluster.timeout_min=30", "cluster.mem_gb=1", "grid.mem_gb_per_size={nano: 2}")
    assert everywhere.pop("pretrain") == {(30, 2)}
    assert set.union(*everywhere.values()) == {(30, 1)}
    with pytest.raises(
        UserError, match=r"cluster\.timeout_min_per_kind\.tune=5: must be a positive number for one of"
    ):
        made("cluster.timeout_min_per_kind={tune: 5}")


@pytest.mark.usefixtures("sinfo")
def test_memory_grows_with_the_model_and_the_tasks() -> None:
    """On GPUs the host holds the state of every task while it is saved: 16 bytes per parameter and task."""
    words = [
        "grid.sizes=[large]",
        "grid.baselines=[]",
        'grid.pretrain=["data=demo"]',
        "cluster.gpus_per_node=4",
    ]
    found = requested(*words)
    config = next(iter(made(*words)[0].configs.values()))
    ((_, memory),) = found["pretrain"]
    assert memory is not None
    state = 16 * parameter_count(config.model) / 1e9
    assert 4 * (8 + state) < memory < 4 * (9 + 1.25 * state) + 1
    ((_, tuned),) = found["finetune"]
    assert tuned is not None
    assert tuned > 8 + 2 * state


@pytest.mark.usefixtures("sinfo")
def test_a_tagger_that_is_trained_further_has_the_memory_of_its_model() -> None:
    shots = ["grid.shots=[5]", "grid.shot_targets=[sk_demo]", "grid.sources=[en_demo]"]
    assert requested(*shots)["finetune"] == {(480, 3)}
    models = requested(*shots, "grid.sizes=[]", "grid.models=['hub:some/encoder']")
    assert models["finetune"] == {(480, 16)}


def test_requests_are_capped_at_the_limits_of_the_partition(
    sinfo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(sinfo, "gpu|1-00:30:00|500000\\nmain*|4:00:00|4000+\\nmain*|4:00:00|7168\\n")
    assert requested()["pretrain"] == {(240, 3)}
    assert requested()["report"] == {(60, 7)}
    submit(commandline.load("submit", [*WORDS, f"root={tmp_path / 'r'}"]))
    printed = capsys.readouterr().out
    assert (
        "2 job(s) request 240 minutes instead of 1440, the longest time limit in the default partition"
        in printed
    )
    assert "request 7 GB of memory instead of 8, all of a node in the default partition" in printed
    submit(commandline.load("submit", [*WORDS, f"root={tmp_path / 'd'}", "dry_run=true"]))
    printed = capsys.readouterr().out
    assert "240 minutes instead of 1440" in printed
    assert "#SBATCH --time=240\n" in printed


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("main*|infinite|1\\n", PartitionLimits()),
        ("main*|30:00|2048\\n", PartitionLimits(30, 2)),
        ("main*|2-00:00:00|2047\\n", PartitionLimits(2880, 1)),
        ("other|30:00|2048\\n", PartitionLimits()),
        ("", PartitionLimits()),
    ],
)
def test_limits_of_the_default_partition(sinfo: Path, text: str, limits: PartitionLimits) -> None:
    answer(sinfo, text)
    assert partition_limits(None) == limits


def test_jobs_without_a_gpu_go_to_the_cpu_partition(
    sinfo: Path, slurm_commands: Path, tmp_path: Path
) -> None:
    answer(sinfo, "x|1:00:00|9000\\n")
    words = ["cluster.partition=gpu", "cluster.cpu_partition=cpu", "cluster.extra={exclusive: '', nice: 7}"]
    submit(commandline.load("submit", [*WORDS, *words, f"root={tmp_path / 'r'}"]))
    found = {}
    for path in slurm_commands.glob("batch_*"):
        lines = path.read_text().splitlines()
        name = next(line for line in lines if "--job-name" in line).partition("=")[2]
        (found[name.split("-")[0]],) = (line for line in lines if "--partition" in line)
        assert "#SBATCH --exclusive" in lines
        assert "#SBATCH --nice=7" in lines
    assert {name: line.partition("=")[2] for name, line in found.items()} == {
        "prepare/demo": "cpu",
        "demo/pretrain": "gpu",
        "demo/finetune": "gpu",
        "demo/baseline": "cpu",
        "report": "cpu",
    }
    asked = (slurm_commands / "asked").read_text().splitlines()
    assert {line.split()[-1] for line in asked} == {"--partition=gpu", "--partition=cpu"}


def test_a_pretraining_job_has_the_gpus_that_its_size_asks_for() -> None:
    """Spread evenly over as few nodes as they need."""

    def spread(gpus: int) -> set[tuple[int, int]]:
        jobs = made("cluster.gpus_per_node=4", f"grid.gpus_per_size={{nano:{gpus}}}")[0].jobs
        return {(job.nodes, job.gpus_per_node) for job in jobs if job.kind == "pretrain"}

    assert [spread(gpus) for gpus in (1, 4, 6, 8, 9)] == [{(1, 1)}, {(1, 4)}, {(2, 3)}, {(2, 4)}, {(3, 3)}]
    with pytest.raises(UserError, match=r"grid.gpus_per_size.nano=7: 2 nodes .*; give 6 or 8"):
        spread(7)


@pytest.mark.usefixtures("sinfo")
def test_no_time_limit_is_rounded_to_none() -> None:
    assert requested("grid.hours_per_size={nano: 0.005}")["pretrain"] == {(1, 3)}
