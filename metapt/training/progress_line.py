"""One line on stderr that shows how far a run is: rewritten in place on a terminal, printed now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TextIO

TERMINAL_SECONDS, LOG_SECONDS = 0.5, 10.0  # least time between two lines


class ProgressLine:
    """Shows step, values and time left.

    Args:
        max_steps: the last step of the run.
        stops_early: whether the run may end before `max_steps`, so that the time left is an upper bound.
    """

    def __init__(self, max_steps: int, *, stops_early: bool = False, out: TextIO = sys.stderr):
        self._max_steps, self._out = max_steps, out
        self._time_left = "at most {} left" if stops_early else "{} left"
        self._is_terminal = out.isatty()
        self._first: tuple[int, float] | None = None
        self._last_shown = 0.0

    def show(self, step: int, values: Sequence[str]) -> None:
        """Show the line for a step, unless the last one was shown only a moment ago."""
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
