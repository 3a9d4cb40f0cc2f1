"""Ctrl-C, TERM and the hangup of a terminal in the process of a submitter."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class StopCount:
    """How often the process was asked to stop."""

    value: int = 0


@contextmanager
def counted_stops() -> Iterator[StopCount]:
    """Counts the signals instead of raising an exception in the middle of whatever the block does.

    An exception could be raised between the start of a process and the assignment of its handle, which would then be lost,
    or in a finalizer, where Python ignores it. Signals that this process ignores, as under nohup, stay ignored.
    """
    count = StopCount()

    def add(number: int, frame: object) -> None:
        count.value += 1

    with _handled(add):
        yield count


@contextmanager
def term_as_ctrl_c() -> Iterator[None]:
    """TERM, and HUP from a closed terminal, end the block as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    with _handled(interrupt):
        yield


@contextmanager
def ignored_ctrl_c() -> Iterator[None]:
    """Ctrl-C in the terminal ends neither the block nor processes that it starts."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def _handled(handler: Callable[[int, object], None]) -> Iterator[None]:
    numbers = [number for number in NUMBERS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
