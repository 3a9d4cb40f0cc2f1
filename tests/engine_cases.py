"""Make two updates of each case under DeepSpeed and save their results.

arguments: OUT STAGE,... CASE,...

Weights and AdamW's moments (Engine.save) and results.json are written to OUT/CASE-STAGE. test_engine.py compares them
with the same updates on one rank without DeepSpeed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metapt.config import PretrainConfig, commandline
from metapt.data.episodes import Episode, EpisodeSampler, WindowIndex
from metapt.meta.objectives import next_token_objective
from metapt.meta.window_episodes import episode_objective
from metapt.models.meta_lm import build_meta_lm
from metapt.training.engine import Engine

STAGES = ["zero0", "zero1", "zero2", "zero2_offload", "zero3"]
UPDATES, UNITS, LR = 2, 4, 1e-3


@dataclass(frozen=True)
class Case:
    """A kind of update: next-token prediction if `scope` is None, else episodes."""

    scope: str | None = None
    algorithm: str = "fomaml"
    precision: str = "fp32"
    clip: float = 1.0

    def config(self, ds: str) -> PretrainConfig:
        arguments = [
            f"ds={ds}",
            "objective=maml_paper",
            f"train.precision={self.precision}",
            f"train.grad_clip={self.clip}",
            f"train.micro_batches_per_update={UNITS}",
            f"meta.tasks_per_step={UNITS}",
            f"meta.algorithm={self.algorithm}",
            f"meta.scope={self.scope or 'head'}",
            "meta.n_way=8",
            "meta.k_shot=2",
            "meta.inner_steps=4",
            "meta.head_dropout=0",
            "meta.max_window_fraction=1",
        ]
        return commandline.load("pretrain", arguments)


CASES = {
    "lm": Case(),
    "lm-unclipped": Case(clip=0.0),
    "lm-bf16": Case(precision="bf16"),
    "head": Case("head"),
    "full": Case("full"),
    "full-unclipped": Case("full", clip=0.0),
    "last_n": Case("last_n"),
    "head-bf16": Case("head", precision="bf16"),
    "full-bf16": Case("full", precision="bf16"),
    "head-meta_sgd": Case("head", "meta_sgd"),
    "full-meta_sgd": Case("full", "meta_sgd"),
    "full-reptile": Case("full", "reptile"),
}


class Tokens:
    """A token stream in memory."""

    def __init__(self, tokens: np.ndarray):
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        return self._tokens[start:stop]

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        return self._tokens[starts[:, None] + np.arange(length)]


def tasks(config: PretrainConfig, update: int) -> list[Episode]:
    """The episodes of an update."""
    tokens = np.random.default_rng(0).integers(2, 50, 20_000)
    index = WindowIndex.build(tokens, 64, config.meta.window, config.meta.min_context)
    sampler = EpisodeSampler(Tokens(tokens), index, config.meta, 0, 1, 0)
    return [sampler.episode(update, number) for number in range(UNITS)]


def batches(update: int) -> Tensor:
    """The micro-batches of an update."""
    return torch.randint(0, 2048, (UNITS, 2, 33), generator=torch.Generator().manual_seed(update))


def make_update(
    engine: Engine, case: Case, config: PretrainConfig, update: int
) -> tuple[float, list[Tensor]]:
    """Make one update as the trainer does. Returns the gradient norm, and the support losses of this rank's episodes."""
    units = range(engine.rank, UNITS, engine.world_size)
    if case.scope is None:
        for unit in units:
            loss = next_token_objective(engine.meta_lm, batches(update)[unit]).loss
            engine.backward(loss / len(units), last=unit == units[-1])
        return engine.step(LR), []
    if engine.shares_episodes(config.meta):
        begin = engine.begin_episode(config.meta, weight=1 / UNITS)
        metrics = [
            episode_objective(engine.meta_lm, task, config.meta, 0, update, unit, begin=begin).metrics
            for unit, task in enumerate(tasks(config, update))
        ]
        return engine.step(LR), [unit["support_loss_nats"] for unit in metrics]
    support = []
    for unit in units:
        task = tasks(config, update)[unit]
        output = episode_objective(engine.meta_lm, task, config.meta, 0, update, unit)
        engine.backward(output.loss / len(units), last=unit == units[-1])
        support.append(output.metrics["support_loss_nats"])
    return engine.step(LR), support


def run(case: Case, ds: str, folder: Path) -> None:
    """Make the updates of a case and write its results."""
    config = case.config(ds)
    engine = Engine(build_meta_lm(config), config)
    results: dict[str, list] = {"norms": [], "support": []}
    for update in range(UPDATES):
        norm, support = make_update(engine, case, config, update)
        results["norms"].append(norm)
        results["support"].append([losses.tolist() for losses in support])
    engine.save(folder)
    if engine.rank == 0:
        (folder / "results.json").write_text(json.dumps(results))
    engine.barrier()


def main(argv: Sequence[str]) -> None:
    out, stages, cases = argv
    for ds in stages.split(","):
        for name in cases.split(","):
            run(CASES[name], ds, Path(out) / f"{name}-{ds}")
