"""What a default run spends beside training: `python benchmarks/shares.py` writes benchmarks/shares.md.

The parts of real runs are timed in turn, each as the trainer does it: data, micro-batches and episodes with their backward
passes, optimizer steps, lines of metrics, measurements of learning dynamics, checkpoints. The shares follow from how often
the settings ask for each. The corpus is generated and lies in the page cache, as a corpus does from the second epoch on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any

import torch
from timing import medians

from metapt.config import PretrainConfig, commandline
from metapt.data.corpus import prepare_corpus
from metapt.estimate.flops import flops_of_step
from metapt.meta.objectives import episode_objective, next_token_objective
from metapt.runs import Run
from metapt.training.dynamics import parameter_groups
from metapt.training.metrics import MetricsLogger, RunTotals
from metapt.training.signals import StopRequest
from metapt.training.trainer import Trainer

FILE = Path(__file__).parent / "shares.md"
THE_THREE, DATA = 0.05, 0.01  # largest shares that are aimed at
CASES = [(model, objective) for model in ("nano", "tiny") for objective in ("vanilla", "maml")]


@dataclass(frozen=True)
class Seconds:
    """Of one of each."""

    batch: float  # reading the tokens of a micro-batch
    draw: float  # drawing an episode
    micro_batch: float
    task: float
    optimizer: float
    line: float
    dynamics: float
    checkpoint: float


def shares(config: PretrainConfig, seconds: Seconds) -> dict[str, float]:
    """Shares of the time of a run: dynamics, checkpoints, metrics, "the three" together, and data.

    An update is (1 - rho) a (B + M) + rho t (D + E) + O + L, with B, D, M, E, O, L the seconds of a batch, a draw, a micro-batch,
    an episode, an optimizer step and a line, a = train.micro_batches_per_update, t = meta.tasks_per_step; dynamics and checkpoint come once in
    train.dynamics_every and train.checkpoint_every updates. Held-out evaluation, which is none of them, is left out.
    """
    train, meta = config.train, config.meta
    units, tasks = (1 - meta.rho) * train.micro_batches_per_update, meta.rho * meta.tasks_per_step
    data = units * seconds.batch + tasks * seconds.draw
    training = units * seconds.micro_batch + tasks * seconds.task + seconds.optimizer
    dynamics = seconds.dynamics / train.dynamics_every
    checkpoints = seconds.checkpoint / train.checkpoint_every
    beside = dynamics + checkpoints + seconds.line
    parts = {"dynamics": dynamics, "checkpoints": checkpoints, "metrics": seconds.line, "the three": beside}
    return {name: part / (training + data + beside) for name, part in {**parts, "data": data}.items()}


def measured(model: str, objective: str, folder: Path) -> dict[str, float]:
    """The shares of a run at the defaults of a scale, on generated text."""
    words = [f"model={model}", f"objective={objective}", "data=demo", "data.vocab_size=2048"]
    words += [commandline.quote_override("data.cache_dir", folder / "corpus")]
    words += [commandline.quote_override("run_dir", folder / f"{model}-{objective}"), "train.keep_checkpoints=1"]
    config = commandline.load("pretrain", words)
    run = Run(config.run_dir)
    run.start({}, {})
    trainer = Trainer(config, run, prepare_corpus(config.data), StopRequest())
    seconds = _seconds(trainer, MetricsLogger(run, config, RunTotals(), 0, 0))
    return shares(config, seconds)


def _seconds(trainer: Trainer, telemetry: MetricsLogger) -> Seconds:
    """Each part in turn, in an order in which there is a gradient when its norms are measured and the optimizer steps."""
    config, engine, sampler = trainer.config, trainer.engine, trainer.sampler
    train, meta, numbers = config.train, config.meta, count(1)
    sequences = torch.from_numpy(trainer.batches.sequences(0, train.micro_batch))
    task = sampler.episode(0, 0) if sampler else None
    values = next_token_objective(engine.meta_lm, sequences).metrics
    told: dict[str, Any] = {name: value.tolist() for name, value in values.items()} | {
        "grad_norm": 1 / 3,
        "flops": flops_of_step(config, False),
        "lr": train.lr,
    }

    def batch() -> None:
        trainer.batches.sequences(next(numbers) * train.micro_batch, train.micro_batch)

    def draw() -> None:
        if sampler:
            sampler.episode(next(numbers), 0)

    def run_task() -> None:
        if task:
            loss = episode_objective(engine.meta_lm, task, meta, train.seed, 0, 0, trainer.poll).loss
            engine.backward(loss, last=True)

    def micro_batch() -> None:
        trainer.poll()
        engine.backward(next_token_objective(engine.meta_lm, sequences).loss, last=True)

    def dynamics() -> None:
        engine.gradient_norms(parameter_groups(engine.meta_lm))
        telemetry.dynamics(next(numbers), **trainer.dynamics.measure())

    parts: dict[str, Callable[[], object]] = {
        "batch": batch,
        "draw": draw,
        "task": run_task,
        "micro_batch": micro_batch,
        "dynamics": dynamics,
        "optimizer": lambda: engine.step(train.lr),
        "line": lambda: telemetry.update(next(numbers), False, **told),
        "checkpoint": lambda: trainer.checkpoints.save(next(numbers), telemetry.totals),
    }
    return Seconds(**dict(zip(parts, medians(*parts.values()), strict=True)))


def row(model: str, objective: str, found: dict[str, float]) -> str:
    """A line of the table."""
    return f"| {model}, {objective} | {' | '.join(f'{share:.2%}' for share in found.values())} |"


def main() -> None:
    """Measures all cases and writes the table."""
    from machine import machine

    lines = [
        "# What a run spends beside training",
        "",
        "`python benchmarks/shares.py` measured this; it also says how. Shares of the time of a run at the defaults of its scale. Aims: dynamics,",
        f"checkpoints and metrics together below {THE_THREE:.0%}, data below {DATA:.0%}.",
        "",
        f"Machine: {machine()}; {date.today()}.",
        "",
        "| run | dynamics | checkpoints | metrics | the three | data |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for model, objective in CASES:
            lines.append(row(model, objective, measured(model, objective, Path(folder))))
            print(lines[-1], flush=True)
    FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
