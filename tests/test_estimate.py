"""Estimates of memory, FLOPs and time: `metapt estimate` and the dry run of a grid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import run_module

from metapt.config import ClusterConfig, commandline
from metapt.errors import UserError
from metapt.estimate.disk import checkpoint_count, largest_run_bytes, run_bytes
from metapt.estimate.flops import (
    Cost,
    episodes_of_update,
    flops_expected,
    flops_of_episode,
    flops_of_step,
    parameter_count,
    passes_over,
    tokens_of_step,
)
from metapt.estimate.forecast import describe, largest_micro_batch, machine_of
from metapt.estimate.kernels import Work, episode_work, micro_batch_work, step_work
from metapt.estimate.memory import Ranks, largest_peak, update_kinds
from metapt.estimate.speed import PEAK_REACHED, Machine, hours, mfu, with_micro_batch, with_whole_scores
from metapt.launch.grid import plan
from metapt.launch.requirements import requirements

SCALES = ("tiny", "small", "medium", "large")
LARGE = ["model=large", "ds=zero2", "nodes=1", "gpus=4"]


def test_estimate_of_memory_micro_batch_flops_and_hours():
    done = run_module("metapt", ["estimate", *LARGE, "objective=maml_paper", "gpu=a100-80"])
    assert done.returncode == 0, done.stderr
    for part in (
        "large: 570,042,272 parameters",
        "parameters                                  2.12                2.12",
        "next-token update      episode update",
        "train.micro_batch=8 fits into 80 GB minus 10% headroom",
        "the largest that fits is",
        "mean update (meta.rho=0.5)",
        "4 ranks (1 node, 4 a100-80s per node)",
        "hours of 6,000 updates",
        "MFU, all attention scores",
        "an estimate, never compared with a GPU",
        "GB for 61 checkpoints, the newest 2 with optimizer state",
    ):
        assert part in done.stdout, part


def test_unknown_devices_get_no_estimate():
    text = describe(commandline.load("estimate", LARGE))
    assert "set gpu_memory_gb=" in text
    assert "set gpu= (a100-40, a100-80, h100-pcie, h100-sxm, h200, l40s, l4, t4, rtx4090)" in text
    assert "hours of" not in text
    assert "time is estimated for GPUs only" in describe(commandline.load("estimate", ["gpus=0"]))
    with pytest.raises(UserError, match="gpu=a1000: must be one of a100-40, a100-80"):
        describe(commandline.load("estimate", ["gpu=a1000"]))


def test_bf16_on_a_gpu_without_it_is_warned_of():
    texts = [describe(commandline.load("estimate", ["model=tiny", f"gpu={name}"])) for name in ("t4", "l4")]
    assert ["compute capability 7.5; bf16 products need 8.0" in text for text in texts] == [True, False]
    assert "warning" not in describe(
        commandline.load("estimate", ["model=tiny", "gpu=t4", "train.precision=fp32"])
    )


def test_keys_of_the_machine_replace_what_is_known_of_the_gpu():
    config = commandline.load(
        "estimate", ["model=tiny", "gpu=a100-80", "gpu_memory_gb=40", "gpu_bandwidth_gbs=1555"]
    )
    machine = machine_of(config)
    assert (machine.memory_gb, machine.bandwidth_gbs, machine.tflops) == (40, 1555, 312)


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


def test_expected_flops_follow_from_the_fraction_of_episodes():
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


@pytest.mark.parametrize(
    ("head", "backward_over_support"), [("learned", 0), ("prototypes", 2)], ids=["learned", "prototypes"]
)
def test_reptile_has_no_backward_pass_of_the_query_loss(head: str, backward_over_support: int):
    """Nor one through the support states that a head is made from. A backward pass costs two forward passes."""
    words = ["objective=maml_paper", "meta.scope=full", f"meta.initial_head={head}"]
    fomaml, reptile = (
        commandline.load("pretrain", [*words, f"meta.algorithm={name}"]) for name in ("fomaml", "reptile")
    )
    support, query = (length * Cost.of(fomaml.model, length).blocks for length in (20, 30))
    saved = flops_of_episode(fomaml, [20], [30]) - flops_of_episode(reptile, [20], [30])
    assert saved == 2 * query + backward_over_support * support


KNOWN = Machine(Ranks(2, "cuda"), tflops=100, bandwidth_gbs=1000)


@pytest.mark.parametrize(
    ("work", "seconds"),
    [
        (Work(kernels=1000), 7e-3),
        (Work(bytes=8e9), 0.01),
        (Work(flops=75e12), 1.0),
        (Work(kernels=1000, bytes=8e9, flops=75e10), 0.02),
    ],
)
def test_time_of_work_follows_the_roofline(work: Work, seconds: float):
    """Launches overlap with the device, whose traffic and products follow one another."""
    assert KNOWN.seconds(work) == pytest.approx(seconds)


def test_hours_follow_from_the_time_of_units():
    words = ["model=tiny", "objective=maml_paper", "meta.rho=0.25", "train.micro_batches_per_update=5"]
    config = commandline.load("pretrain", words)
    lm, episode, step = micro_batch_work(config, True), episode_work(config, True), step_work(config)
    mean = 0.75 * 3 * KNOWN.seconds(lm) + 0.25 * 2 * KNOWN.seconds(episode) + KNOWN.seconds(step)
    assert episodes_of_update(config) == 4
    assert hours(config, KNOWN, compiled=True) == pytest.approx(6000 * mean / 3600)
    assert hours(config, Machine(Ranks(2, "cpu"), tflops=100, bandwidth_gbs=1000), compiled=True) is None


def test_estimated_mfu_grows_with_scale_and_with_the_micro_batch():
    """At four sequences, launches limit tiny; no utilization exceeds the assumed fraction of the peak."""
    a100 = Machine(Ranks(1, "cuda"), tflops=312, bandwidth_gbs=2039)
    configs = [commandline.load("pretrain", [f"model={size}", "objective=vanilla"]) for size in SCALES]
    found = [mfu(config, a100, compiled=False) for config in configs]
    assert found == sorted(found)
    assert found[-1] < PEAK_REACHED
    for config in configs:
        assert mfu(with_micro_batch(config, 16), a100, compiled=True) > mfu(config, a100, compiled=False)


def test_convention_with_all_attention_scores():
    """PaLM, appendix B: 6 FLOPs per weight of a matrix and token, and 12 L d T for scores."""
    for size, more in zip(SCALES, (0.27, 0.17, 0.12, 0.07), strict=True):
        config = commandline.load("pretrain", [f"model={size}", "objective=vanilla"])
        model, train = config.model, config.train
        matrices = parameter_count(model) - model.vocab_size * model.hidden_size
        matrices -= (2 * model.num_layers + 1) * model.hidden_size  # gains
        palm = (6 * matrices + 12 * model.num_layers * model.hidden_size * train.seq_len) * tokens_of_step(
            config, False
        )
        assert palm / flops_of_step(config, False) == pytest.approx(with_whole_scores(config))
        assert with_whole_scores(config) - 1 == pytest.approx(more, abs=0.01)


def test_all_errors_are_reported_at_once():
    with pytest.raises(UserError) as caught:
        commandline.load("estimate", ["model=tny", "gpus=-3", "headroom=2", "gpu_memory_gb=0", "gpux=1"])
    for part in (
        "model=tny: must be one of",
        "gpus=-3: must be at least 0",
        "headroom=2.0: must be at most 0.9",
        "gpu_memory_gb=0.0: must be greater than 0",
        "gpux: no such key; did you mean gpu",
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
    cluster = ClusterConfig(name="slurm", gpus_per_node=2, gpu="a100-80")
    header, vanilla, maml, disk, total, limit = requirements(grid_plan, grid_plan.jobs, cluster)
    assert header.split()[:2] == ["pretraining", "run"]
    assert vanilla.split()[:3] == ["nano-vanilla", "3", "2"]
    assert maml.split()[:3] == ["nano-maml", "3", "2"]
    assert "GB of checkpoints" in disk
    assert "node-hours" in total
    assert "8 jobs to do: at most 157.0 node-hours" in limit  # 6 times 24 hours, preparation 12, report 1


def test_disk_of_the_grid_of_all_scales():
    """With the optimizer state in every checkpoint it was 1.6 TB."""
    grid_plan = plan(commandline.load("submit", ["grid=scales"]))
    configs = [grid_plan.configs[job.id] for job in grid_plan.jobs if job.kind == "pretrain"]
    assert len(configs) == 8
    assert sum(map(run_bytes, configs)) == pytest.approx(0.44e12, rel=0.03)
    line = next(
        text for text in requirements(grid_plan, (), ClusterConfig(name="slurm")) if text.startswith("disk")
    )
    assert re.match(r"disk: 4\d\d\.\d GB of checkpoints and 1\d\d\.\d GB of taggers", line)
    for config in configs:
        config.train.keep_optimizer_states = 0
    assert sum(map(run_bytes, configs)) == pytest.approx(1.6e12, rel=0.03)


def test_hub_runs_read_what_their_updates_need_and_arms_share_it():
    """6,000 updates of 1,024 or 2,048 sequences of 2,048 tokens; no arm sees a token twice."""
    for size, sequences in zip(SCALES, (1024, 2048, 2048, 2048), strict=True):
        configs = [
            commandline.load("pretrain", [f"model={size}", "data=hub", f"objective={name}"])
            for name in ("vanilla", "maml_paper")
        ]
        first, second = (config.data.max_tokens for config in configs)
        assert first == second
        assert 6000 * sequences * 2048 / 0.99 < first < 1.05 * 6000 * sequences * 2048 / 0.99
        assert [0.95 < passes_over(config, round(0.99 * first)) < 1 for config in configs] == [True, False]
    assert commandline.load("pretrain", ["data=hub", "data.max_tokens=5000"]).data.max_tokens == 5000
    assert commandline.load("pretrain", ["data=demo"]).data.max_tokens is None


def test_unequal_repetition_is_warned_of():
    for words, expected in (([], 0), (["grid.pretrain=['data=hub','data.max_tokens=2000000000']"], 4)):
        grid_plan = plan(commandline.load("submit", ["grid=scales", *words]))
        lines = requirements(grid_plan, (), ClusterConfig(name="slurm"))
        warnings = [line for line in lines if line.startswith("warning: passes over")]
        assert len(warnings) == expected
    assert "tiny (vanilla 6.4, maml_paper 3.2)" in warnings[0]
    assert "small (vanilla 12.7, maml_paper 6.4)" in warnings[1]


def test_disk_of_a_run_equals_what_it_writes():
    """4 bytes per parameter and model folder, 12 per parameter and state of the optimizer."""
    config = commandline.load("pretrain", ["model=nano", "objective=vanilla", "train.max_steps=250"])
    parameters = parameter_count(config.model)
    assert checkpoint_count(config) == 4
    assert run_bytes(config) == 4 * 4 * parameters + 2 * 12 * parameters
    config.train.keep_checkpoints = 1
    assert run_bytes(config) == 16 * parameters
    assert largest_run_bytes(config) == 32 * parameters


def test_dry_run_estimates_hours_only_if_the_throughput_is_known(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    from metapt.launch.submission import submit

    submit(commandline.load("submit", ["grid=demo", "dry_run=true", f"root={tmp_path}"]))
    printed = capsys.readouterr().out
    assert "GiB/rank" in printed
    assert "set cluster.gpu=" in printed
    assert "an estimated" not in printed
