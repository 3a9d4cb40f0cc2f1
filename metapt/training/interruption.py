"""Signals that ask a run to stop. A handler only sets a flag; the trainer looks at it where it is safe to stop."""

from __future__ import annotations

import signal
from types import FrameType

from metapt.errors import STOP_SIGNALS


class StopRequest:
    """Remembers the first of USR1, USR2 and TERM that came since `listen`."""

    def __init__(self) -> None:
        self.name: str | None = None

    def listen(self) -> StopRequest:
        """Replaces the process' handlers of these signals; call it in the main thread."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name

    def __bool__(self) -> bool:
        return self.name is not None
