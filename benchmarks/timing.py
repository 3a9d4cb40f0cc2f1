"""Timing of alternatives: interleaved repetitions in one process, and the ratio of their medians."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

REPETITIONS = int(os.environ.get("METAPT_BENCH_REPETITIONS", "7"))
"""Set the variable to a small number to try a benchmark."""


class Row(NamedTuple):
    """A ratio of two measurements, of time unless `name` says otherwise."""

    name: str
    baseline: str
    ratio: float


class Case(NamedTuple):
    """Two functions to compare."""

    name: str
    run: Callable[[], object]
    baseline: str
    run_baseline: Callable[[], object]

    def row(self) -> Row:
        """Time both, and compute their ratio."""
        return Row(self.name, self.baseline, time_ratio(self.run, self.run_baseline))


def medians(*functions: Callable[[], object]) -> list[float]:
    """Median seconds of each function over interleaved repetitions, after a warm-up."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(REPETITIONS + 1):
        for function, measured in zip(functions, seconds, strict=True):
            started = time.perf_counter()
            function()
            measured.append(time.perf_counter() - started)
    return [median(measured[1:]) for measured in seconds]


def time_ratio(run: Callable[[], object], run_baseline: Callable[[], object]) -> float:
    """Time of a function divided by that of a baseline."""
    seconds, baseline_seconds = medians(run, run_baseline)
    return seconds / baseline_seconds
