"""What a pretraining run tells while it runs: lines of metrics.jsonl, totals, and a progress display."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from metapt.config import PretrainConfig
from metapt.estimate.flops import tokens_of_step
from metapt.runs import MetricsWriter, Run
from metapt.training.experiment_trackers import open_trackers


@dataclass
class Totals:
    """What a run has spent so far; kept in its checkpoints."""

    tokens_total: int = 0
    flops_total: int = 0
    seconds_total: float = 0.0
    skipped_total: int = 0
    skipped_in_row: int = 0


class Telemetry:
    """Writes metrics and shows progress; on ranks other than 0 it only counts.

    Args:
        done: updates that the run has made before, in `totals`.
    """

    def __init__(self, run: Run, config: PretrainConfig, totals: Totals, rank: int, done: int):
        self.config, self.totals = config, totals
        self._writer = MetricsWriter(run) if rank == 0 else None
        self._progress = Progress(config.train.max_steps) if rank == 0 else None
        self._loggers = open_trackers(run, config, done) if rank == 0 else None
        self._started = time.perf_counter()

    def update(self, step: int, is_episode: bool, flops: int, **values: Any) -> None:
        """One optimizer update of so many floating point operations is done; `step` counts from 1."""
        self.totals.skipped_in_row = 0
        self._step(step, is_episode, flops, "episode" if is_episode else "lm", **values)

    def skipped(
        self, step: int, is_episode: bool, flops: int, not_finite: list[str], batch: dict[str, Any]
    ) -> None:
        """The update was not applied; its time and tokens are spent all the same.

        Args:
            not_finite: names of what was not.
            batch: what identifies the data.
        """
        self.totals.skipped_total += 1
        self.totals.skipped_in_row += 1
        objective = "episode" if is_episode else "lm"
        self._step(
            step, is_episode, flops, "skipped", objective=objective, not_finite=not_finite, batch=batch
        )
        if self._writer:
            names = ", ".join(not_finite)
            print(f"update {step} ({objective}) is skipped: {names} not finite", file=sys.stderr, flush=True)

    def _step(self, step: int, is_episode: bool, flops: int, kind: str, **values: Any) -> None:
        now = time.perf_counter()
        seconds, self._started = now - self._started, now
        tokens = tokens_of_step(self.config, is_episode)
        self.totals.tokens_total += tokens
        self.totals.flops_total += flops
        self.totals.seconds_total += seconds
        spent = {"flops": flops, "seconds": seconds, "tokens_per_second": tokens / seconds}
        self._write(step, kind, **values, **spent, **asdict(self.totals))

    def evaluation(self, step: int, **values: float) -> None:
        """A held-out evaluation; its time is not counted as training."""
        self._write(step, "eval", **values)
        self._started = time.perf_counter()

    def dynamics(self, step: int, **values: Any) -> None:
        """A measurement of learning dynamics; its time is not counted as training."""
        self._write(step, "dynamics", **values)
        self._started = time.perf_counter()

    def restart_clock(self) -> None:
        """What happened since the last update (saving, say) is not counted as training."""
        self._started = time.perf_counter()

    def close(self) -> None:
        for part in (self._writer, self._progress, self._loggers):
            if part:
                part.close()

    def _write(self, step: int, kind: str, **values: Any) -> None:
        if self._writer and self._progress and self._loggers:
            self._writer.write(step, kind, **values)
            self._progress.show(step, values)
            self._loggers.write(step, kind, values)


class Progress:
    """One line that tells step, losses, speed and time left: redrawn on a terminal, now and then in a log."""

    LABELS = (
        ("lm_loss_nats", "lm {:.3f}"),
        ("query_loss_nats", "query {:.3f}"),
        ("query_accuracy", "acc {:.2f}"),
        ("eval_perplexity", "held-out ppl {:.1f}"),
    )

    def __init__(self, max_steps: int, out: TextIO = sys.stderr):
        self._max_steps, self._out = max_steps, out
        self._live = out.isatty()
        self._latest: dict[str, Any] = {}
        self._first: tuple[int, float] | None = None
        self._shown = 0.0

    def show(self, step: int, values: dict[str, Any]) -> None:
        self._latest |= values
        now = time.monotonic()
        self._first = self._first or (step, now)
        if now - self._shown < (0.5 if self._live else 10) and step < self._max_steps:
            return
        self._shown = now
        end = "\r" if self._live else "\n"
        print(self._line(step, now), end=end, file=self._out, flush=True)

    def _line(self, step: int, now: float) -> str:
        first_step, first_time = self._first or (step, now)
        parts = [f"step {step}/{self._max_steps}"]
        parts += [form.format(self._latest[name]) for name, form in self.LABELS if name in self._latest]
        if "tokens_per_second" in self._latest:
            parts.append(f"{self._latest['tokens_per_second']:,.0f} tokens/s")
        if step > first_step:
            left = int((now - first_time) / (step - first_step) * (self._max_steps - step))
            parts.append(f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left")
        return "  ".join(parts)

    def close(self) -> None:
        if self._live:
            print(file=self._out, flush=True)
