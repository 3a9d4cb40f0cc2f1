"""Messages on stderr, and a line that shows the progress of a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import torch
    from rich.progress import Progress

TERMINAL_SECONDS, LOG_SECONDS = 0.5, 10.0  # minimum time between two updates of the line


def log(message: str) -> None:
    """Print a message on stderr."""
    print(message, file=sys.stderr, flush=True)


def quantity(number: float) -> str:
    """A number in three digits: `950`, `12.3 k`, `2.2 M`, `1.5 B`."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}" if number < 1000 * size else f"{number / size:,.0f} {unit}"
    return f"{number:.3g}"


def device_name(device: torch.device) -> str:
    """The model of a GPU, or the type of another device."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def resumption(unit: str, number: int) -> str:
    """From which update or step a run resumes, for its header; empty for a new run."""
    return f", resumed from {unit} {number}" if number else ""


class ProgressLine:
    """Shows step, values and time left on one line: rewritten in place on a terminal, else printed at intervals.

    Args:
        max_steps: the last step of the run.
        stops_early: whether the run may end before `max_steps`, so that the time left is an upper bound.
        out: stderr by default.
    """

    def __init__(self, max_steps: int, *, stops_early: bool = False, out: TextIO | None = None):
        self._max_steps, self._out = max_steps, out or sys.stderr
        self._time_left = "at most {} left" if stops_early else "{} left"
        self._is_terminal = self._out.isatty()
        self._bar: Progress | None = None
        self._first: tuple[int, float] | None = None
        self._last_shown = 0.0

    def show(self, step: int, values: Sequence[str]) -> None:
        """Update the line for a step, unless it was updated only a moment ago; the last step is always shown."""
        now = time.monotonic()
        self._first = self._first or (step, now)
        interval = TERMINAL_SECONDS if self._is_terminal else LOG_SECONDS
        if now - self._last_shown < interval and step < self._max_steps:
            return
        self._last_shown = now
        parts = [*values]
        first_step, first_time = self._first
        if step > first_step:
            seconds = (now - first_time) / (step - first_step) * (self._max_steps - step)
            parts.append(self._time_left.format(timedelta(seconds=int(seconds))))
        if self._is_terminal:
            self._show_bar(step, "  ".join(parts))
        else:
            print(f"{step}/{self._max_steps}", *parts, sep="  ", file=self._out, flush=True)

    def close(self) -> None:
        """End the line on a terminal."""
        if self._bar is not None:
            self._bar.stop()

    def _show_bar(self, step: int, text: str) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("{task.completed:.0f}/{task.total:.0f}", markup=False),
                BarColumn(bar_width=8),
                TextColumn("{task.description}", markup=False),
                console=Console(file=self._out),
                auto_refresh=False,  # no thread, which a fork would lose
            )
            self._bar.add_task(text, total=self._max_steps, completed=step)
            self._bar.start()
        else:
            self._bar.update(self._bar.task_ids[0], completed=step, description=text, refresh=True)
