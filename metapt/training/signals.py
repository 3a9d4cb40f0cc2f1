"""Signals that ask a run to stop. A handler only sets a flag; the program looks at it where it is safe to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from metapt.errors import STOP_SIGNALS


class StopRequested(Exception):
    """Unfinished work is given up, since a signal asked for it; whoever began it catches this."""


class StopRequest:
    """Remembers the first of USR1, USR2 and TERM that came since `listen`; later ones change nothing."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._at_once = False

    def listen(self) -> StopRequest:
        """Replaces the process' handlers of these signals; call it in the main thread."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._remember)
        return self

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it a signal raises StopRequested wherever the program is, for work that leaves nothing half done.

        It is raised at the end as well, if it was lost on the way (exceptions in a finalizer are), and at the
        beginning for a signal that came before.
        """
        self._raise_if_asked()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False
        self._raise_if_asked()

    def _raise_if_asked(self) -> None:
        if self:
            raise StopRequested

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.name is None:
            self.name = signal.Signals(number).name
            if self._at_once:
                raise StopRequested

    def __bool__(self) -> bool:
        return self.name is not None
