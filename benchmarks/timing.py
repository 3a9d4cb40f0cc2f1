"""How two sides are timed: in turn, in one run, by the medians of their repetitions."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

REPETITIONS = 7
Row = tuple[str, str, float]  # what, against, the first's share of the second


def medians(ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of either side over interleaved repetitions; the first repetition warms up."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPETITIONS + 1):
        for run, kept in zip((ours, theirs), times, strict=True):
            started = time.perf_counter()
            run()
            kept.append(time.perf_counter() - started)
    return median(times[0][1:]), median(times[1][1:])


def compare(ours: Callable[[], object], theirs: Callable[[], object]) -> float:
    """The time of `ours` as a share of that of `theirs`."""
    first, second = medians(ours, theirs)
    return first / second
