"""Messages on stderr, and a line that shows the progress of a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TextIO

TERMINAL_SECONDS, LOG_SECONDS = 0.5, 10.0  # minimum time between two updates of the line


def log(message: str) -> None:
    """Print a message on stderr."""
    print(message, file=sys.stderr, flush=True)


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
        parts = [f"step {step}/{self._max_steps}", *values]
        first_step, first_time = self._first
        if step > first_step:
            seconds = (now - first_time) / (step - first_step) * (self._max_steps - step)
            parts.append(self._time_left.format(timedelta(seconds=int(seconds))))
        print("  ".join(parts), end="\r" if self._is_terminal else "\n", file=self._out, flush=True)

    def close(self) -> None:
        """End the line on a terminal."""
        if self._is_terminal:
            print(file=self._out, flush=True)
