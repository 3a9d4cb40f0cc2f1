"""What DeepSpeed makes of the objectives' gradients, at every stage, against the reference without DeepSpeed."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import reference
import torch

from metapt import commandline
from metapt.data.episodes import Episode, EpisodeSampler, WindowIndex
from metapt.meta.objectives import autoregressive, episode
from metapt.models.learner import build_learner
from metapt.training.engine import Engine

STAGES = ["zero0", "zero1", "zero2", "zero2_offload"]
TOLERANCE = 2e-7  # of parameters, after an update of 1e-3: rounding of the clipping factor


def configuration(ds: str, scope: str = "head", precision: str = "fp32", clip: float = 1.0):
    words = ["objective=maml", "meta.head_dropout=0", "meta.max_share=1", "meta.inner_steps=4"]
    more = [f"ds={ds}", f"meta.scope={scope}", f"train.precision={precision}", f"train.grad_clip={clip}"]
    return commandline.load("pretrain", words + more)


def draw_tasks(stream_of, config, count: int) -> list[Episode]:
    tokens = np.random.default_rng(0).integers(2, 50, 20_000)
    index = WindowIndex.build(tokens, 64, config.meta.window, config.meta.min_context)
    sampler = EpisodeSampler(stream_of(tokens), index, config.meta, 0, 1, 0)
    return [sampler.episode(0, number) for number in range(count)]


def furthest(engine: Engine, learner: torch.nn.Module) -> float:
    weights = engine.weights()
    return max((weights[name] - value).abs().max().item() for name, value in learner.named_parameters())


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("scope", ["head", "full", "last_n"])
@pytest.mark.parametrize("ds", STAGES)
def test_episode_updates_equal_the_reference(stream_of, ds: str, scope: str, clip: float):
    """Two AdamW updates from two tasks each: the accumulated outer gradient, its clipping, the moments."""
    config = configuration(ds, scope, clip=clip)
    learner = build_learner(config)
    expected = copy.deepcopy(learner)
    optimizer = reference.Optimizer(expected, config.train)
    engine = Engine(learner, config)
    episodes = draw_tasks(stream_of, config, 4)
    for pair in (episodes[:2], episodes[2:]):
        for number, task in enumerate(pair):
            outcome = episode(engine.learner, task, config.meta, 0, 0, number)
            support = outcome.measures["support_loss_nats"]
            assert support[-1] < support[0], "the inner loop moves nothing"
            engine.backward(outcome.loss / 2, last=number == 1)
        norm = optimizer.step(reference.outer_gradient(expected, pair, config.meta), 1e-3)
        assert engine.step(1e-3) == pytest.approx(norm, rel=1e-5)
        assert furthest(engine, expected) <= TOLERANCE


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("ds", STAGES)
def test_accumulated_language_model_updates_equal_the_plain_sum(ds: str, precision: str):
    """Several backward calls before a step are summed (DeepSpeed by itself keeps the last at stages 1 and 2)."""
    config = configuration(ds, precision=precision)
    learner = build_learner(config)
    expected = copy.deepcopy(learner)
    optimizer = reference.Optimizer(expected, config.train)
    engine = Engine(learner, config)
    sequences = torch.randint(0, 2048, (2, 3, 4, 33), generator=torch.Generator().manual_seed(0))
    for update in sequences:
        expected.zero_grad()
        for index, micro_batch in enumerate(update):
            engine.backward(autoregressive(engine.learner, micro_batch).loss / 3, last=index == 2)
            (autoregressive(expected, micro_batch).loss / 3).backward()
        gradient = {name: value.grad for name, value in expected.named_parameters()}
        norm = optimizer.step(gradient, 1e-3)
        assert engine.step(1e-3) == pytest.approx(norm, rel=1e-5)
        assert furthest(engine, expected) <= TOLERANCE


@pytest.mark.parametrize("ds", STAGES)
def test_saved_state_is_restored_exactly(tmp_path, ds: str):
    config = configuration(ds)
    sequences = torch.randint(0, 2048, (4, 4, 33), generator=torch.Generator().manual_seed(0))

    def update(engine: Engine, batch: torch.Tensor) -> None:
        engine.backward(autoregressive(engine.learner, batch).loss, last=True)
        engine.step(1e-3)

    engine = Engine(build_learner(config), config)
    for batch in sequences[:2]:
        update(engine, batch)
    engine.save(tmp_path)
    for batch in sequences[2:]:
        update(engine, batch)
    other = Engine(build_learner(config), config)
    other.load(tmp_path)
    for batch in sequences[2:]:
        update(other, batch)
    for (name, left), right in zip(engine.weights().items(), other.weights().values(), strict=True):
        assert torch.equal(left, right), name


def test_a_process_alone_leaves_its_environment_as_it_was():
    """Its children would take themselves for ranks."""
    before = dict(os.environ)
    config = configuration("zero1")
    engine = Engine(build_learner(config), config)
    assert (engine.rank, engine.world_size) == (0, 1)
    changed = {name for name in os.environ if os.environ[name] != before.get(name)}
    assert not changed & {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}


class Touch:
    """Unpickling one makes a file."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("ds", ["zero0", "zero2"])
def test_a_checkpoint_cannot_run_code(tmp_path, ds: str):
    config = configuration(ds)
    engine = Engine(build_learner(config), config)
    engine.save(tmp_path / "saved")
    for file in (tmp_path / "saved").rglob("*.pt"):
        torch.save({"module": {}, "more": Touch(str(tmp_path / "made"))}, file)
    with pytest.raises(pickle.UnpicklingError):
        engine.load(tmp_path / "saved")
    assert not (tmp_path / "made").exists()
