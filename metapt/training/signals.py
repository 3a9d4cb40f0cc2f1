"""Signals that ask a run to stop. The handler only sets a flag; the program checks it where it is safe to stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType

from metapt.errors import STOP_SIGNALS, Interrupted
from metapt.node_failures import watched
from metapt.runs import Run

SAVING = b"\nsaving; press Ctrl-C again to stop at once\n"


class StopRequested(Exception):
    """Work is abandoned because a signal asked the run to stop. Whoever started the work catches this."""


class StopRequest:
    """Records the first of USR1, USR2, TERM and INT (Ctrl-C) that arrives after `listen`.

    Later ones have no effect, except that a second INT raises KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.queries = 0
        """How often the run has asked whether it should stop, which is a sign of life (metapt.node_failures)."""
        self._queried = time.monotonic()
        self._at_once = False

    def listen(self) -> StopRequest:
        """Install the signal handlers; must be called in the main thread."""
        for number in STOP_SIGNALS:
            if (
                number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN
            ):  # ignored in the background
                signal.signal(number, self._record)
        return self

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block, a signal raises StopRequested immediately; only for work that can be abandoned anywhere.

        The exception is also raised on entry if a signal came before, and on exit if it was lost within the block
        (exceptions in a finalizer are).
        """
        self._raise_if_requested()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once, self._queried = False, time.monotonic()
        self._raise_if_requested()

    def watched(self, run: Run, hang_seconds: float) -> AbstractContextManager[None]:
        """The block of a run, whose device errors and hangs count as interruptions (metapt.node_failures.watched)."""
        return watched(run, self, hang_seconds)

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last query; 0 within `at_once`, where there need not be any."""
        return 0.0 if self._at_once else time.monotonic() - self._queried

    def interruption(self, run_dir: str | Path, when: str) -> Interrupted:
        """Create the exception that ends an interrupted run; `when` says where it stopped (`after step 3`)."""
        cause = self.name or "a signal to another rank"
        return Interrupted(f"{run_dir}: stopped by {cause} {when}; the same command resumes the run")

    def _raise_if_requested(self) -> None:
        if self:
            raise StopRequested

    def _record(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if os.environ.get("RANK", "0") == "0":
                os.write(2, SAVING)  # unlike print, safe in a signal handler
        if self.name is None:
            self.name = signal.Signals(number).name
            if self._at_once:
                raise StopRequested

    def __bool__(self) -> bool:
        self.queries, self._queried = self.queries + 1, time.monotonic()
        return self.name is not None
