"""What a pretraining run reports while it runs: lines of metrics.jsonl, running totals, and a progress line."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from metapt.config import PretrainConfig
from metapt.data.corpus import Corpus
from metapt.estimate.flops import tokens_of_units
from metapt.meta.update_plan import UpdatePlan
from metapt.runs import Run
from metapt.training.experiment_trackers import TrackedMetricsWriter
from metapt.training.progress_line import ProgressLine, log, quantity
from metapt.training.run_header import run_header


@dataclass
class RunTotals:
    """What a run has used so far; stored in its checkpoints."""

    tokens_total: int = 0
    flops_total: int = 0
    seconds_total: float = 0.0
    skipped_total: int = 0
    skipped_in_row: int = 0


class MetricsLogger:
    """Writes metrics.jsonl, its copies and the progress line on rank 0; other ranks only count totals.

    Args:
        run: the run whose metrics.jsonl is written.
        totals: totals so far, which are updated in place.
        rank: this rank.
        updates_done: number of updates in `totals`.
    """

    def __init__(self, run: Run, config: PretrainConfig, totals: RunTotals, rank: int, updates_done: int):
        self.config, self.totals = config, totals
        self._run, self._updates_done = run, updates_done
        self._writer: TrackedMetricsWriter | None = None
        self._progress: PretrainProgress | None = None
        if rank == 0:
            self._writer = TrackedMetricsWriter(run, config.log, asdict(config), updates_done)
            self._progress = PretrainProgress(config.train.max_steps, config.meta.n_way)
        self._clock = time.perf_counter()

    def announce(self, corpus: Corpus, device: torch.device, ranks: int) -> None:
        """Print the header of the run on rank 0."""
        if self._writer:
            log(run_header(self.config, self._run, corpus, device, ranks, self._updates_done))

    def log_update(self, step: int, plan: UpdatePlan, flops: int, **values: Any) -> None:
        """Log an optimizer update.

        Args:
            step: number of the update, from 1.
            plan: its units of work.
            flops: floating point operations of the update.
            values: further values of the line.
        """
        self.totals.skipped_in_row = 0
        if plan.kind == "mixed":
            values["next_token_tokens"] = tokens_of_units(self.config, len(plan.micro_batches), 0)
        self._log_step(step, plan, flops, plan.kind, **values)

    def log_skipped(
        self, step: int, plan: UpdatePlan, flops: int, not_finite: list[str], batch: dict[str, Any]
    ) -> None:
        """Log an update that was not applied; its time and tokens count all the same.

        Args:
            step, plan, flops: as in `log_update`.
            not_finite: names of the values that are not finite.
            batch: identifies the data of the update.
        """
        self.totals.skipped_total += 1
        self.totals.skipped_in_row += 1
        self._log_step(step, plan, flops, "skipped", objective=plan.kind, not_finite=not_finite, batch=batch)
        if self._writer:
            names = ", ".join(not_finite)
            message = f"warning: update {step} ({plan.kind}) skipped, not finite: {names}"
            print(message, file=sys.stderr, flush=True)

    def _log_step(self, step: int, plan: UpdatePlan, flops: int, kind: str, **values: Any) -> None:
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        tokens = tokens_of_units(self.config, len(plan.micro_batches), len(plan.episodes))
        self.totals.tokens_total += tokens
        self.totals.flops_total += flops
        self.totals.seconds_total += seconds
        cost = {"flops": flops, "seconds": seconds, "tokens_per_second": tokens / seconds}
        self._write(step, kind, **values, **cost, **asdict(self.totals))

    def log_evaluation(self, step: int, **values: float) -> None:
        """Log an evaluation on held-out text; its time does not count as training."""
        self._write(step, "eval", **values)
        self.restart_clock()

    def log_dynamics(self, step: int, **values: Any) -> None:
        """Log a measurement of learning dynamics; its time does not count as training."""
        self._write(step, "dynamics", **values)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Exclude the time since the last update, such as that of saving, from training time."""
        self._clock = time.perf_counter()

    def close(self) -> None:
        for output in (self._writer, self._progress):
            if output:
                output.close()

    def _write(self, step: int, kind: str, **values: Any) -> None:
        if self._writer and self._progress:
            self._writer.write(step, kind, **values)
            self._progress.show(step, values)


class PretrainProgress:
    """Shows losses, accuracy beside chance, and speed of a pretraining run on the progress line."""

    def __init__(self, max_steps: int, n_way: int):
        self._line = ProgressLine(max_steps)
        self._n_way = n_way
        self._latest: dict[str, Any] = {}

    def show(self, step: int, values: dict[str, Any]) -> None:
        """Update the line with values of metrics.jsonl after `step` updates."""
        self._latest |= values
        self._line.show(step, list(progress_values(self._latest, self._n_way)))

    def close(self) -> None:
        self._line.close()


def progress_values(latest: Mapping[str, Any], n_way: int) -> Iterator[str]:
    """The values on the progress line, short enough for a terminal of 80 columns.

    Args:
        latest: the latest value of each entry of metrics.jsonl.
        n_way: number of classes of an episode on masked windows; its classes are balanced, so chance is 1 / n_way.
    """
    if "lm_loss_nats" in latest:
        yield f"lm {latest['lm_loss_nats']:.2f}"
    if "query_accuracy" in latest:
        yield f"acc {latest['query_accuracy']:.0%} (chance {1 / n_way:.0%})"
    elif "episodes_query_accuracy" in latest:  # balanced accuracy after the inner loop
        chance = 1 / latest["episodes_ways"]
        yield f"acc {latest['episodes_query_accuracy'][-1]:.0%} (chance {chance:.0%})"
    elif "multitask_accuracy" in latest:
        yield f"acc {latest['multitask_accuracy']:.0%}"
    if "eval_perplexity" in latest:
        yield f"ppl {latest['eval_perplexity']:.4g}"
    if "tokens_per_second" in latest:
        yield f"{quantity(latest['tokens_per_second'])} tok/s"
