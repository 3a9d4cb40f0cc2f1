"""Overhead of a pretraining run at its defaults: `python benchmarks/overhead.py` writes benchmarks/overhead.md.

The parts of real runs are timed in turn, each as the trainer runs it: reading data, micro-batches and episodes with their
backward passes, optimizer steps, lines of metrics, measurements of learning dynamics, checkpoints. Fractions of the
running time follow from how often the settings require each part. The corpus is synthetic and in the page cache, as any
corpus is from the second epoch on.
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
from metapt.meta.objectives import next_token_objective
from metapt.meta.update_plan import UpdatePlan
from metapt.meta.window_episodes import episode_objective
from metapt.runs import Run
from metapt.training.dynamics import parameter_groups
from metapt.training.metrics import MetricsLogger, RunTotals
from metapt.training.signals import StopRequest
from metapt.training.trainer import Trainer

FILE = Path(__file__).parent / "overhead.md"
TARGET, DATA_TARGET = 0.05, 0.01
"""Largest fractions aimed at, of dynamics, checkpoints and metrics together, and of data."""
CASES = [(model, objective) for model in ("nano", "tiny") for objective in ("vanilla", "maml_paper")]
COLUMNS = ("dynamics", "checkpoints", "metrics", "total", "data")


@dataclass(frozen=True)
class Seconds:
    """Time of one of each."""

    batch: float
    """Reading the tokens of a micro-batch."""
    sampling: float
    """Sampling an episode and reading its windows."""
    micro_batch: float
    episode: float
    optimizer_step: float
    metrics_line: float
    dynamics: float
    checkpoint: float


def overhead(config: PretrainConfig, seconds: Seconds) -> dict[str, float]:
    """Fractions of the running time: dynamics, checkpoints, metrics, their total, and data.

    An update takes (1 - rho) a (B + M) + rho t (S + E) + O + L, where B, S, M, E, O, L are the seconds of a batch, of
    sampling an episode, of a micro-batch, an episode, an optimizer step and a line of metrics;
    a = train.micro_batches_per_update, t = meta.tasks_per_step. There is one measurement of dynamics in
    train.dynamics_every updates and one checkpoint in train.checkpoint_every. Evaluation on held-out text is left out.
    """
    train, meta = config.train, config.meta
    micro_batches, episodes = (1 - meta.rho) * train.micro_batches_per_update, meta.rho * meta.tasks_per_step
    data = micro_batches * seconds.batch + episodes * seconds.sampling
    training = micro_batches * seconds.micro_batch + episodes * seconds.episode + seconds.optimizer_step
    parts = {
        "dynamics": seconds.dynamics / train.dynamics_every,
        "checkpoints": seconds.checkpoint / train.checkpoint_every,
        "metrics": seconds.metrics_line,
    }
    parts["total"] = sum(parts.values())
    update = training + data + parts["total"]
    return {name: part / update for name, part in {**parts, "data": data}.items()}


def measure(model: str, objective: str, folder: Path) -> dict[str, float]:
    """The overhead of a run at the defaults of a model size, on synthetic text."""
    arguments = [
        f"model={model}",
        f"objective={objective}",
        "data=demo",
        "data.vocab_size=2048",
        commandline.quote_override("data.cache_dir", folder / "corpus"),
        commandline.quote_override("run_dir", folder / f"{model}-{objective}"),
        "train.keep_checkpoints=1",
    ]
    config = commandline.load("pretrain", arguments)
    run = Run(config.run_dir)
    run.start({}, {})
    trainer = Trainer(config, run, prepare_corpus(config.data), StopRequest())
    logger = MetricsLogger(run, config, RunTotals(), rank=0, updates_done=0)
    return overhead(config, _seconds(trainer, logger))


def _seconds(trainer: Trainer, logger: MetricsLogger) -> Seconds:
    """Time each part in turn; a gradient exists when its norms are measured and when the optimizer steps."""
    config, engine, sampler = trainer.config, trainer.engine, trainer.data.sampler
    train, meta, numbers = config.train, config.meta, count(1)
    sequences = torch.from_numpy(trainer.data.batches.sequences(0, train.micro_batch))
    task = sampler.episode(0, 0) if sampler else None
    metrics = next_token_objective(engine.meta_lm, sequences).metrics
    line: dict[str, Any] = {name: value.tolist() for name, value in metrics.items()} | {
        "grad_norm": 1 / 3,
        "flops": flops_of_step(config, False),
        "lr": train.lr,
    }

    def batch() -> None:
        trainer.data.batches.sequences(next(numbers) * train.micro_batch, train.micro_batch)

    def sampling() -> None:
        if sampler:
            sampler.episode(next(numbers), 0)

    def micro_batch() -> None:
        trainer.check_stop()
        engine.backward(next_token_objective(engine.meta_lm, sequences).loss, last=True)

    def episode() -> None:
        if task:
            output = episode_objective(engine.meta_lm, task, meta, train.seed, 0, 0, trainer.check_stop)
            engine.backward(output.loss, last=True)

    def dynamics() -> None:
        engine.gradient_norms(parameter_groups(engine.meta_lm))
        logger.log_dynamics(next(numbers), **trainer.dynamics.measure())

    plan = UpdatePlan(tuple(range(train.micro_batches_per_update)), (), (1, 1))
    parts: dict[str, Callable[[], object]] = {
        "batch": batch,
        "sampling": sampling,
        "episode": episode,
        "micro_batch": micro_batch,
        "dynamics": dynamics,
        "optimizer_step": lambda: engine.step(train.lr),
        "metrics_line": lambda: logger.log_update(next(numbers), plan, **line),
        "checkpoint": lambda: trainer.checkpoints.save(next(numbers), logger.totals),
    }
    return Seconds(**dict(zip(parts, medians(*parts.values()), strict=True)))


def main() -> None:
    """Measure all cases and write the table."""
    from machine import machine

    lines = [
        "# Overhead of a pretraining run",
        "",
        "`python benchmarks/overhead.py` measured this and describes it: percentages of the running time at the defaults of each model size.",
        f"Targets: dynamics, checkpoints and metrics together (total) below {TARGET:.0%}, data below {DATA_TARGET:.0%}.",
        "",
        f"Machine: {machine()}; {date.today()}.",
        "",
        f"| run | {' | '.join(COLUMNS)} |",
        f"|---|{'---:|' * len(COLUMNS)}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for model, objective in CASES:
            fractions = measure(model, objective, Path(folder))
            cells = " | ".join(f"{fractions[name]:.2%}" for name in COLUMNS)
            lines.append(f"| {model}, {objective} | {cells} |")
            print(lines[-1], flush=True)
    FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
