"""How sides are timed: in turn, in one run, by the medians of their repetitions."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median

REPETITIONS = int(os.environ.get("METAPT_BENCH_REPETITIONS", "7"))  # fewer only to try a benchmark
Row = tuple[str, str, float]  # what, against, the first's share of the second


def medians(*runs: Callable[[], object]) -> list[float]:
    """Median seconds of each over interleaved repetitions; the first repetition warms up."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(REPETITIONS + 1):
        for run, kept in zip(runs, times, strict=True):
            started = time.perf_counter()
            run()
            kept.append(time.perf_counter() - started)
    return [median(kept[1:]) for kept in times]


def compare(ours: Callable[[], object], theirs: Callable[[], object]) -> float:
    """The time of `ours` as a share of that of `theirs`."""
    first, second = medians(ours, theirs)
    return first / second
