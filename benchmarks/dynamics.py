"""What measuring the learning dynamics costs: the time of one measurement as a share of that of the updates between two."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from timing import Row
from tokens import Tokens

from metapt import commandline
from metapt.config import PretrainConfig
from metapt.data.episodes import EpisodeSampler, WindowIndex
from metapt.meta.objectives import autoregressive, episode
from metapt.models.learner import build_learner
from metapt.training.dynamics import Dynamics, parameter_groups
from metapt.training.engine import Engine

REPETITIONS = 3


def shares(model: str) -> list[Row]:
    """(what, against, share) at the defaults of a scale, without and with episodes.

    Measured in turn: a measurement M, a micro-batch A, an episode E (both with their backward pass). The share is
    M / (N a A) without episodes, and M / (N ((1 - rho) a A + rho t E)) with them, for N = train.dynamics_every,
    a = train.accumulation and t = meta.tasks_per_step: an update's optimizer step, which would lower it, is left out.
    """
    rows = []
    for objective in ("vanilla", "maml"):
        config = commandline.load(
            "pretrain", [f"model={model}", f"objective={objective}", "meta.max_share=1"]
        )
        measure, micro_batch, task = _times(config)
        train, meta = config.train, config.meta
        update = (1 - meta.rho) * train.accumulation * micro_batch + meta.rho * meta.tasks_per_step * task
        updates = f"{train.dynamics_every} updates at {model}, objective={objective}"
        rows.append(
            ("a measurement of learning dynamics", updates, measure / (train.dynamics_every * update))
        )
    return rows


def unit_seconds(config: PretrainConfig) -> float:
    """Seconds of one micro-batch with its backward pass."""
    return _times(config)[1]


def _times(config: PretrainConfig) -> tuple[float, float, float]:
    """Seconds of a measurement, of a micro-batch, and of an episode (0 without), medians in turn."""
    train, meta = config.train, config.meta
    draw = np.random.default_rng(0)
    sequences = torch.from_numpy(
        draw.integers(0, config.model.vocab_size, (train.micro_batch, train.seq_len + 1))
    )
    sampler = None
    if meta.rho > 0:
        tokens = draw.integers(2, 1000, 1_000_000)
        index = WindowIndex.build(tokens, 1024, meta.window, meta.min_context)
        sampler = EpisodeSampler(Tokens(tokens), index, meta, train.seed, 1, 0)  # type: ignore[arg-type]
    engine = Engine(build_learner(config), config)
    dynamics, groups = Dynamics(engine, config, sequences, sampler), parameter_groups(engine.learner)

    def measure() -> None:
        engine.gradient_norms(groups)
        dynamics.measure()

    def micro_batch() -> None:
        engine.backward(autoregressive(engine.learner, sequences).loss, last=True)

    def task() -> None:
        if sampler is not None:
            outcome = episode(engine.learner, sampler.episode(0, 0), meta, train.seed, 0, 0)
            engine.backward(outcome.loss, last=True)

    runs: list[Callable[[], None]] = [
        micro_batch,
        task,
        measure,
    ]  # the gradient that is observed is there then
    times: list[list[float]] = [[], [], []]
    for _ in range(REPETITIONS + 1):
        for run, kept in zip(runs, times, strict=True):
            started = time.perf_counter()
            run()
            kept.append(time.perf_counter() - started)
    of_micro_batch, of_task, of_measurement = (median(kept[1:]) for kept in times)  # the first warms up
    return of_measurement, of_micro_batch, of_task
