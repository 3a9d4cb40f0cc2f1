"""Fine-tunes the small decoder of ner_world, completely or until it is killed, and compares outcomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metapt.config import commandline
from metapt.finetuning.run_finetuning import finetune
from metapt.finetuning.tuner import Tuner
from metapt.runs import Run
from metapt.tagger.serialization import load_tagger
from metapt.training.signals import StopRequest

FAST = ("ner.batch_size=8", "ner.lr=0.02", "ner.patience=9")


class Killed(Exception):
    """Simulates the sudden death of a process."""


def arguments(world: Path, run_dir: Path, *more: str) -> list[str]:
    return [
        f"checkpoint={world / 'model'}",
        "source=aa_one",
        f"data.uner_dir={world / 'uner'}",
        f"run_dir={run_dir}",
        *FAST,
        *more,
    ]


def tune(world: Path, run_dir: Path, *more: str, stop: StopRequest | None = None) -> Run:
    stop = StopRequest() if stop is None else stop
    finetune(commandline.load("finetune", arguments(world, run_dir, *more)), stop)
    return Run(run_dir)


def die_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Kill the process when it starts the step after `steps`."""
    real = Tuner._step

    def step(self: Tuner, batch: np.ndarray) -> tuple[float, bool]:
        if self.state.step == steps:
            raise Killed
        return real(self, batch)

    monkeypatch.setattr(Tuner, "_step", step)


def outcome(run: Run) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Result, metrics and weights of a run, without timing."""
    result = {name: value for name, value in run.result().items() if name != "seconds_total"}
    metrics = [
        {name: value for name, value in line.items() if name != "seconds_total"} for line in run.metrics()
    ]
    return result, metrics, load_tagger(run.tagger_dir)[0].state_dict()


def assert_same(one: Run, other: Run) -> None:
    (result, metrics, weights), (other_result, other_metrics, other_weights) = outcome(one), outcome(other)
    assert result == other_result
    assert metrics == other_metrics
    assert weights.keys() == other_weights.keys()
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
