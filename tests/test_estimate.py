"""Estimates of memory, FLOPs and time: `metapt estimate` and the dry run of a grid."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import run_module

from metapt.config import ClusterConfig, commandline
from metapt.errors import UserError
from metapt.estimate.flops import flops_expected, flops_of_step
from metapt.estimate.forecast import Machine, describe, hours, largest_micro_batch, largest_peak, update_kinds
from metapt.estimate.memory import Ranks
from metapt.launch.grid import plan
from metapt.launch.requirements import requirements

LARGE = ["model=large", "ds=zero2", "nodes=1", "gpus=4"]


def test_estimate_of_memory_micro_batch_flops_and_hours():
    done = run_module(
        "metapt", ["estimate", *LARGE, "objective=maml_paper", "gpu_memory_gb=80", "gpu_tflops=312"]
    )
    assert done.returncode == 0, done.stderr
    for part in (
        "large: 570,042,272 parameters",
        "4 ranks (1 node, 4 GPUs per node)",
        "parameters                                  2.12                2.12",
        "next-token update      episode update",
        "train.micro_batch=8 fits into 80 GB minus 10% headroom",
        "the largest that fits is",
        "mean update (meta.rho=0.5)",
        "hours at 30% of 4 x 312 TFLOP/s",
    ):
        assert part in done.stdout, part


def test_unknown_devices_get_no_estimate():
    text = describe(commandline.load("estimate", LARGE))
    assert "set gpu_memory_gb=" in text
    assert "set gpu_tflops=" in text
    assert "hours at" not in text


def test_offloaded_memory_is_reported_as_host_memory():
    assert "host memory (offloaded)" in describe(
        commandline.load("estimate", ["model=large", "ds=zero2_offload"])
    )
    assert "host memory (offloaded)" not in describe(
        commandline.load("estimate", ["ds=zero2_offload", "gpus=0"])
    )


def test_too_little_memory():
    assert "no micro-batch fits into 8 GB" in describe(
        commandline.load("estimate", [*LARGE, "gpu_memory_gb=8"])
    )


def test_one_more_than_the_largest_micro_batch_does_not_fit():
    config = commandline.load("pretrain", ["model=medium", "objective=maml_paper", "ds=zero2"])
    machine = Machine(Ranks(2, "cuda"), memory_gb=24)
    size = largest_micro_batch(config, machine)
    assert size > 0
    for tried, fits in ((size, True), (size + 1, False)):
        config.train.micro_batch = tried
        assert (largest_peak(config, machine.ranks) <= machine.budget) is fits


def test_hours_follow_from_expected_flops():
    config = commandline.load("pretrain", ["model=tiny", "objective=maml_paper", "meta.rho=0.25"])
    expected = 0.75 * flops_of_step(config, False) + 0.25 * flops_of_step(config, True)
    assert flops_expected(config) == expected
    config.meta.start_step = config.train.max_steps // 2
    assert flops_expected(config) == (
        0.875 * flops_of_step(config, False) + 0.125 * flops_of_step(config, True)
    )
    config.meta.rho = 1.0
    assert update_kinds(config) == ["lm", "episode"]
    config.meta.rho, config.meta.start_step = 0.25, 0
    estimated = hours(config, Machine(Ranks(2, "cuda"), tflops=100, mfu=0.5))
    assert estimated == pytest.approx(config.train.max_steps * expected / (2 * 100e12 * 0.5) / 3600)


def test_all_errors_are_reported_at_once():
    with pytest.raises(UserError) as caught:
        commandline.load("estimate", ["model=tny", "gpus=-3", "mfu=2", "gpu_memory_gb=0", "gpux=1"])
    for part in (
        "model=tny: must be one of",
        "gpus=-3: must be at least 0",
        "mfu=2.0: must be at most 1",
        "gpu_memory_gb=0.0: must be greater than 0",
        "gpux: no such key; did you mean gpus",
    ):
        assert part in str(caught.value)


def test_requirements_of_a_grid_have_one_row_for_all_seeds():
    words = [
        "grid=demo",
        "cluster=slurm",
        "grid.seeds=[0,1,2]",
        "grid.sources=[]",
        "grid.gpus_per_size={nano:2}",
    ]
    grid_plan = plan(commandline.load("submit", words))
    cluster = ClusterConfig(name="slurm", gpus_per_node=2, gpu_memory_gb=80, gpu_tflops=312)
    header, vanilla, maml, total, limit = requirements(grid_plan, grid_plan.jobs, cluster)
    assert header.split()[:2] == ["pretraining", "run"]
    assert vanilla.split()[:3] == ["nano-vanilla", "3", "2"]
    assert maml.split()[:3] == ["nano-maml", "3", "2"]
    assert "node-hours" in total
    assert "8 jobs to do: at most 157.0 node-hours" in limit  # 6 times 24 hours, preparation 12, report 1


def test_dry_run_estimates_hours_only_if_the_throughput_is_known(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    from metapt.launch.submission import submit

    submit(commandline.load("submit", ["grid=demo", "dry_run=true", f"root={tmp_path}"]))
    printed = capsys.readouterr().out
    assert "GiB/rank" in printed
    assert "set cluster.gpu_tflops=" in printed
    assert "pretraining at" not in printed
