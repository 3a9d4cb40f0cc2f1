"""What `metapt estimate` and the dry run of a grid tell in advance."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_module

from metapt.config import ClusterConfig, commandline
from metapt.errors import UserError
from metapt.estimate.flops import flops_expected, flops_of_step
from metapt.estimate.forecast import Machine, describe, hours, kinds, largest_micro_batch, largest_peak
from metapt.estimate.memory import Ranks
from metapt.launch.grid import plan
from metapt.launch.requirements import requirements

LARGE = ["model=large", "ds=zero2", "nodes=1", "gpus=4"]


def test_the_command_tells_memory_batch_operations_and_hours():
    done = run_module("metapt", ["estimate", *LARGE, "objective=maml", "gpu_memory_gb=80", "gpu_tflops=312"])
    assert done.returncode == 0, done.stderr
    for part in (
        "large: 570,042,272 parameters",
        "4 rank(s)",
        "parameters                            2.12              2.12",
        "train.micro_batch=8 fits into 80 GB less 10%",
        "the largest that fits is",
        "mean at meta.rho=0.5",
        "hours at 30% of 4 x 312 TFLOP/s",
    ):
        assert part in done.stdout, part


def test_an_unknown_device_is_not_guessed():
    text = describe(commandline.load("plan", LARGE))
    assert "give gpu_memory_gb=" in text
    assert "give gpu_tflops=" in text
    assert "hours at" not in text


def test_offloading_is_told_as_host_memory():
    assert "in host memory" in describe(commandline.load("plan", ["model=large", "ds=zero2_offload"]))
    assert "in host memory" not in describe(commandline.load("plan", ["ds=zero2_offload", "gpus=0"]))


def test_too_little_memory_is_said():
    assert "does not fit into 8 GB" in describe(commandline.load("plan", [*LARGE, "gpu_memory_gb=8"]))


def test_the_largest_micro_batch_is_the_last_that_fits():
    config = commandline.load("pretrain", ["model=medium", "objective=maml", "ds=zero2"])
    machine = Machine(Ranks(2, "cuda"), memory_gb=24)
    size = largest_micro_batch(config, machine)
    assert size > 0
    for tried, fits in ((size, True), (size + 1, False)):
        config.train.micro_batch = tried
        assert (largest_peak(config, machine.ranks) <= machine.budget) is fits


def test_hours_follow_from_operations():
    config = commandline.load("pretrain", ["model=tiny", "objective=maml", "meta.rho=0.25"])
    expected = 0.75 * flops_of_step(config, False) + 0.25 * flops_of_step(config, True)
    assert flops_expected(config) == expected
    config.meta.start_step = config.train.max_steps // 2
    assert flops_expected(config) == (
        0.875 * flops_of_step(config, False) + 0.125 * flops_of_step(config, True)
    )
    config.meta.rho = 1.0
    assert kinds(config) == ["lm", "episode"]
    config.meta.rho, config.meta.start_step = 0.25, 0
    told = hours(config, Machine(Ranks(2, "cuda"), tflops=100, mfu=0.5))
    assert told == pytest.approx(config.train.max_steps * expected / (2 * 100e12 * 0.5) / 3600)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(UserError) as caught:
        commandline.load("plan", ["model=tny", "gpus=3", "mfu=2", "gpu_memory_gb=0", "gpux=1"])
    for part in (
        "model=tny: model is one of",
        "train.micro_batches_per_update=2: must be a multiple of the number of ranks, 3",
        "mfu=2.0: must be at most 1",
        "gpu_memory_gb=0.0: must be above 0",
        "gpux: no such key; did you mean gpus",
    ):
        assert part in str(caught.value)


def test_help_lists_the_keys_of_pretraining_too():
    done = run_module("metapt", ["estimate", "--help"])
    assert done.returncode == 0
    for part in ("model=laptop|large|medium|nano|small|tiny", "train.seed=", "gpu_memory_gb=", "mfu="):
        assert part in done.stdout


def test_a_grid_tells_once_for_all_seeds():
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
    assert "8 jobs to do: at most 192.0 node-hours" in limit  # one node and 24 hours each


def test_a_dry_run_tells_hours_only_if_the_device_is_known(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    from metapt.launch.submission import submit

    submit(commandline.load("submit", ["grid=demo", "dry_run=true", f"root={tmp_path}"]))
    printed = capsys.readouterr().out
    assert "GiB/rank" in printed
    assert "give cluster.gpu_tflops=" in printed
    assert "pretraining at" not in printed


def test_the_plan_imports_nothing_heavy():
    script = "import sys, metapt.estimate.command; print({'torch', 'transformers', 'deepspeed'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "set()"
