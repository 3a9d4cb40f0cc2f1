"""Measurements of learning dynamics equal direct computations and do not affect training."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from forks import Forks
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from metapt.config import commandline
from metapt.data.episodes import Episode, EpisodeSampler, WindowIndex
from metapt.launch.run_status import run_status
from metapt.meta.objectives import next_token_objective
from metapt.meta.update_plan import plan_update
from metapt.meta.window_episodes import probe
from metapt.models.meta_lm import MetaLM, build_meta_lm
from metapt.runs import Run
from metapt.training import dynamics
from metapt.training.engine import Engine
from metapt.training.metrics import MetricsLogger, RunTotals

STAGES = ["zero0", "zero1", "zero2", "zero2_offload", "zero3"]
TIMING = ("seconds", "seconds_total", "tokens_per_second")


def configuration(*arguments: str):
    fixed = ["objective=maml_paper", "meta.max_window_fraction=1", "meta.inner_steps=3", "meta.inner_lr=0.05"]
    return commandline.load("pretrain", [*fixed, *arguments])


def sample_task(stream_of, config) -> Episode:
    tokens = np.random.default_rng(0).integers(2, 50, 20_000)
    index = WindowIndex.build(tokens, 64, config.meta.window, config.meta.min_context)
    return EpisodeSampler(stream_of(tokens), index, config.meta, 0, 1, 0).episode(0, 0)


def random_matrix(rows: int, columns: int, rank: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows + columns)
    if rank is None:
        return torch.randn(rows, columns, generator=generator)
    return random_matrix(rows, rank) @ random_matrix(rank, columns)


# Effective rank


@pytest.mark.parametrize(("rows", "columns"), [(48, 48), (48, 128), (128, 48), (1, 7)])
@pytest.mark.parametrize("rank", [None, 1, 5])
def test_singular_values_equal_those_of_an_svd(rows: int, columns: int, rank: int | None):
    matrix = random_matrix(rows, columns, rank)
    expected = torch.linalg.svdvals(matrix.double()).flip(0)
    found = dynamics.singular_values(matrix)
    assert found.dtype is torch.float64
    # the tolerance is the square root of the rounding error of the Gram matrix
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-7 * float(expected[-1]))


@pytest.mark.parametrize("rank", [None, 2, 20])
def test_effective_rank_equals_the_exponential_of_the_entropy(rank: int | None):
    matrix = random_matrix(48, 128, rank)
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)[:rank]  # zeros contribute 0 log 0 = 0
    normalised = values / values.sum()
    expected = math.exp(-(normalised * np.log(normalised)).sum()) / 48
    assert dynamics.effective_rank(matrix) == pytest.approx(expected, rel=1e-5)


def test_effective_rank_at_its_bounds():
    assert dynamics.effective_rank(3 * torch.eye(16)[:, :8]) == pytest.approx(1)
    assert dynamics.effective_rank(torch.ones(8, 32)) == pytest.approx(1 / 8, rel=1e-5)
    assert dynamics.effective_rank(torch.zeros(8, 8)) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_effective_rank_is_nan_if_a_weight_is_not_finite(value: float):
    matrix = torch.ones(8, 8)
    matrix[3, 5] = value
    assert math.isnan(dynamics.effective_rank(matrix))


# Attention entropy


def sharpen_attention(meta_lm: MetaLM) -> MetaLM:
    """Enlarge query projections, so that attention heads differ; at random weights attention is almost uniform."""
    with torch.no_grad():
        for layer in meta_lm.decoder.model.layers:
            layer.self_attn.q_proj.weight.mul_(40)
    return meta_lm


def test_entropy_of_uniform_attention_is_the_logarithm_of_the_visible_keys():
    meta_lm = build_meta_lm(configuration())
    for layer in meta_lm.decoder.model.layers:
        torch.nn.init.zeros_(layer.self_attn.q_proj.weight)
    found = dynamics.attention_entropy(meta_lm, torch.randint(0, 2048, (2, 30)))
    expected = np.log(np.arange(1, 31)).mean()
    np.testing.assert_allclose(found["attention_entropy_nats"], np.full((3, 4), expected), rtol=1e-6)
    np.testing.assert_allclose(found["attention_entropy_ratio"], np.ones((3, 4)), rtol=1e-6)


def test_attention_entropy_equals_that_of_eager_attention_weights(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dynamics, "QUERY_CHUNK", 7)
    meta_lm = sharpen_attention(build_meta_lm(configuration()))
    sequences = torch.randint(0, 2048, (2, 30), generator=torch.Generator().manual_seed(0))
    found = dynamics.attention_entropy(meta_lm, sequences)
    eager = copy.deepcopy(meta_lm.decoder)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = eager(input_ids=sequences, output_attentions=True).attentions
    weights = torch.stack(attentions).double()  # [blocks, sequences, heads, queries, keys]
    entropies = -(weights * weights.clamp(min=1e-300).log()).sum(dim=-1)
    ratios = entropies[..., 1:] / torch.arange(2, 31).log()
    expected = entropies.mean(dim=(1, 3))
    assert expected.max() - expected.min() > 0.1, (
        "the attention heads do not differ, so that this test shows nothing"
    )
    np.testing.assert_allclose(found["attention_entropy_nats"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["attention_entropy_ratio"], ratios.mean(dim=(1, 3)), rtol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_attention_entropy_leaves_the_model_unchanged(precision: str):
    meta_lm = build_meta_lm(configuration(f"train.precision={precision}"))
    sequences = torch.randint(0, 2048, (2, 30), generator=torch.Generator().manual_seed(0))
    before, loss = copy.deepcopy(meta_lm.state_dict()), meta_lm.lm_loss(sequences)
    found = dynamics.attention_entropy(meta_lm, sequences)
    assert np.isfinite(found["attention_entropy_nats"]).all()
    assert meta_lm.lm_loss(sequences) == loss
    assert all(torch.equal(value, before[name]) for name, value in meta_lm.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in meta_lm.modules())


# Gradient norms


@pytest.mark.parametrize("ds", STAGES)
def test_gradient_norms_equal_plain_pytorch(ds: str):
    config = configuration(f"ds={ds}", "train.grad_clip=0.01")
    meta_lm = build_meta_lm(config)
    plain = copy.deepcopy(meta_lm)
    engine = Engine(meta_lm, config)
    groups = dynamics.parameter_groups(engine.meta_lm)
    assert [*groups] == ["embedding", "block_0", "block_1", "block_2", "output_layer", "episode_head"]
    sequences = torch.randint(0, 2048, (3, 4, 33), generator=torch.Generator().manual_seed(0))
    for index, micro_batch in enumerate(sequences):
        engine.backward(next_token_objective(engine.meta_lm, micro_batch).loss / 3, last=index == 2)
        (next_token_objective(plain, micro_batch).loss / 3).backward()
    gradients = {name: value.grad.double() for name, value in plain.named_parameters()}
    norms = engine.gradient_norms(groups)
    for group, names in groups.items():
        expected = math.sqrt(sum(float(gradients[name].square().sum()) for name in names))
        assert norms[group] == pytest.approx(expected, rel=1e-6), group
    assert norms["episode_head"] == 0
    assert math.hypot(*norms.values()) == pytest.approx(engine.step(1e-3), rel=1e-5)  # before clipping


# The probe


@pytest.mark.parametrize("scope", ["head", "full", "last_n"])
def test_probe_equals_the_reference_and_changes_nothing(stream_of, scope: str):
    """The reference has no dropout; the episode head has, and the probe must turn it off."""
    config = configuration(f"meta.scope={scope}")
    meta, meta_lm = config.meta, build_meta_lm(config)
    task, before = sample_task(stream_of, config), copy.deepcopy(meta_lm.state_dict())
    rng_state = torch.get_rng_state()
    found = probe(meta_lm, task, meta)
    again = probe(meta_lm, task, meta)
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert torch.equal(torch.get_rng_state(), rng_state)
    assert all(torch.equal(value, before[name]) for name, value in meta_lm.state_dict().items())
    assert all(value.grad is None for value in meta_lm.parameters())
    assert all(module.training for module in meta_lm.modules())
    meta_lm.eval()
    for step in range(meta.inner_steps + 1):
        copied, _, _ = reference.adapted(meta_lm, task, replace(meta, inner_steps=step))
        for name in ("support", "query"):
            logits, labels = reference.logits_and_labels(copied, task, name, meta)
            expected = cross_entropy(logits, labels).item()
            assert found[f"{name}_loss_nats"][step].item() == pytest.approx(expected, rel=1e-5)
            accuracy = (logits.argmax(dim=-1) == labels).float().mean().item()
            assert found[f"{name}_accuracy"][step].item() == pytest.approx(accuracy, abs=1 / len(labels))
    assert found["support_loss_nats"][-1] < found["support_loss_nats"][0]


# In a run

KINDS = {
    "zero0": ["ds=zero0"],
    "zero1": ["ds=zero1", "objective=vanilla", "train.precision=bf16"],
    "zero2": ["ds=zero2"],
    "zero2_offload": ["ds=zero2_offload", "meta.scope=full"],
    "zero3": ["ds=zero3", "meta.scope=full"],
}


@pytest.fixture(scope="module")
def runs(forks: Forks, nano_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Three updates at every ZeRO stage on one and two ranks with a measurement after each, and without any."""
    root = tmp_path_factory.mktemp("runs")
    fixed = [*nano_arguments, "objective=maml_paper", "train.max_steps=3", "train.checkpoint_every=3"]

    def commands(ranks: int, every: int) -> list[list[str]]:
        return [
            [*fixed, *arguments, f"train.dynamics_every={every}", f"run_dir={root}/{name}-{ranks}-{every}"]
            for name, arguments in KINDS.items()
        ]

    for ranks, argument_lists in ((1, commands(1, 1) + commands(1, 0)), (2, commands(2, 1))):
        forks.pretrain_many(argument_lists, ranks)
    return {path.name: Run(path) for path in root.iterdir()}


def lines(run: Run, *kinds: str) -> list[dict]:
    return [
        {key: value for key, value in line.items() if key not in TIMING}
        for line in run.metrics()
        if line["kind"] in kinds
    ]


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint(3) / "model" / "model.safetensors")


@pytest.mark.commands
@pytest.mark.parametrize("kind", STAGES)
def test_measuring_does_not_change_training(runs: dict[str, Run], kind: str):
    measured, unmeasured = runs[f"{kind}-1-1"], runs[f"{kind}-1-0"]
    kinds = ("lm", "episode", "eval")
    updates = lines(measured, *kinds)
    for line in updates:
        line.pop("gradient_norms", None)
    assert updates == lines(unmeasured, *kinds)
    expected = weights(unmeasured)
    assert all(torch.equal(value, expected[name]) for name, value in weights(measured).items())
    assert not lines(unmeasured, "dynamics")
    assert [line["step"] for line in lines(measured, "dynamics")] == [0, 1, 2, 3]


@pytest.mark.commands
@pytest.mark.parametrize("kind", STAGES)
def test_measurements_do_not_depend_on_the_number_of_ranks(runs: dict[str, Run], kind: str):
    one, two = (lines(runs[f"{kind}-{ranks}-1"], "dynamics") for ranks in (1, 2))
    tolerance = 1e-2 if "train.precision=bf16" in KINDS[kind] else 1e-4
    for left, right in zip(one, two, strict=True):
        assert left.keys() == right.keys()
        for name in left.keys() - {"kind"}:
            for (path, value), (_, other) in zip(leaves(left[name]), leaves(right[name]), strict=True):
                assert value == pytest.approx(other, rel=tolerance, abs=1e-6), (left["step"], name, path)
    assert one[0]["effective_rank"] == two[0]["effective_rank"]


def leaves(value: object, path: str = ""):
    """The numbers in nested dictionaries and lists, with their paths."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from leaves(item, f"{path}/{key}")
    else:
        yield path, value


@pytest.mark.commands
@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize("ranks", [1, 2])
def test_recorded_dynamics(runs: dict[str, Run], kind: str, ranks: int):
    run = runs[f"{kind}-{ranks}-1"]
    updates = {line["step"]: line for line in lines(run, "lm", "episode")}
    for line in lines(run, "dynamics"):
        assert [*line["effective_rank"]] == ["q", "k", "v", "o", "gate", "up", "down"]
        assert all(
            len(blocks) == 3 and 0 < min(blocks) <= max(blocks) <= 1
            for blocks in line["effective_rank"].values()
        )
        assert np.shape(line["attention_entropy_nats"]) == np.shape(line["attention_entropy_ratio"]) == (3, 4)
        if line["step"]:
            update = updates[line["step"]]
            assert math.hypot(*update["gradient_norms"].values()) == pytest.approx(
                update["grad_norm"], rel=1e-4
            )
        for name in ("support_loss_nats", "support_accuracy", "query_loss_nats", "query_accuracy"):
            assert len(line.get(f"probe_{name}", [])) == (0 if kind == "zero1" else 11)


@pytest.mark.commands
def test_run_status_ignores_dynamics(runs: dict[str, Run]):
    run = runs["zero0-1-1"]
    assert [*run.metrics()][-1]["kind"] == "dynamics"
    run.result_file.unlink()
    status = run_status(run.path)
    assert (status.state, status.step, status.max_steps) == ("interrupted", 3, 3)
    assert status.tokens_per_second > 0


def test_measuring_does_not_count_as_training_time(tmp_path: Path):
    run = Run(tmp_path)
    config = commandline.load("pretrain", [f"run_dir={tmp_path}"])
    logger = MetricsLogger(run, config, RunTotals(), rank=0, updates_done=0)
    logger.log_update(1, plan_update(config, 0), 0, lm_loss_nats=1.0)
    time.sleep(0.3)
    logger.log_dynamics(1, effective_rank={})
    logger.log_update(2, plan_update(config, 1), 0, lm_loss_nats=1.0)
    logger.close()
    assert sum(line.get("seconds", 0) for line in run.metrics()) < 0.2
