"""Percentile bootstrap over sentences, of micro-F1 and of everything that is computed from several F1.

In each resample the sentences of a set are drawn with replacement, as many as it has, and micro-F1 is computed from
the summed span counts (Efron 1979; Koehn 2004, "Statistical significance tests for machine translation
evaluation", for the paired form). The same draws serve every system on the same sentences, so a difference of two
systems, or of means over seeds, is paired; different sets are drawn independently of one another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.records import FinetuneRun, GoldSet
from analysis.spans import micro_f1
from metapt.randomness import generator

RESAMPLES = 10_000
SEED = 0
LEVEL = 0.95
CHUNK = 500

DEFINITION = (
    f"Intervals: {LEVEL:.0%} percentile bootstrap over sentences, {RESAMPLES:,} resamples, seed {SEED}. "
    "The sentences of a set are drawn with replacement and micro-F1 is computed from their summed span counts; a resample "
    "without any span has F1 0. MAML and vanilla are scored on the same draws (paired); seeds are averaged within a "
    "resample; sets are drawn independently. An interval tells how much a figure depends on which sentences are in the "
    "set. It does not tell how much it depends on the training seed; for that, look at the spread over seeds. "
    "No correction is made for the number of comparisons: of differences that are truly zero, about one interval in "
    "twenty leaves out 0, and more where a set is tiny. A set without gold spans has no F1."
)


@dataclass(frozen=True, eq=False)
class Estimate:
    """A figure and its value in each resample [resamples]. Arithmetic acts on both."""

    value: float
    samples: np.ndarray

    def __sub__(self, other: Estimate) -> Estimate:
        return Estimate(self.value - other.value, self.samples - other.samples)

    def relative_to(self, other: Estimate) -> Estimate:
        """self / other - 1; NaN where `other` is 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            samples = np.where(other.samples > 0, self.samples / other.samples - 1, np.nan)
        return Estimate(self.value / other.value - 1 if other.value > 0 else np.nan, samples)

    @property
    def interval(self) -> tuple[float, float]:
        """The percentile interval at LEVEL; (NaN, NaN) if the figure is undefined in a resample."""
        if np.isnan(self.value) or np.isnan(self.samples).any():
            return (np.nan, np.nan)
        low, high = np.quantile(self.samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return (float(low), float(high))

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside of the interval; False where there is none."""
        low, high = self.interval
        return low > 0 or high < 0


def average(estimates: Iterable[Estimate]) -> Estimate:
    """The unweighted mean of one or more estimates."""
    parts = list(estimates)
    value = float(np.mean([part.value for part in parts]))
    return Estimate(value, np.mean([part.samples for part in parts], axis=0))


def resampled_f1(counts: np.ndarray, name: str, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """Micro-F1 of several systems in each resample.

    Args:
        counts: integers [systems, sentences, (correct, predicted, gold)].
        name: of the set; the draws are a function of (seed, name) and of nothing else.
    Returns: [systems, resamples]; NaN throughout for sentences without a gold span.
    """
    systems, sentences, _ = counts.shape
    if not counts[..., 2].any():
        return np.full((systems, resamples), np.nan)
    columns = counts.transpose(1, 0, 2).reshape(sentences, -1).astype(np.float64)
    found = np.empty((systems, resamples))
    for start in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - start)
        drawn = generator(seed, f"bootstrap/{name}", start).integers(0, sentences, (size, sentences))
        flat = (drawn + np.arange(size)[:, None] * sentences).ravel()
        weights = np.bincount(flat, minlength=size * sentences).reshape(size, sentences)
        totals = (weights.astype(np.float64) @ columns).reshape(size, systems, 3)
        found[:, start : start + size] = micro_f1(totals).T
    return found


class Scores:
    """The F1 of every run on every set, as estimates that can be subtracted and averaged."""

    def __init__(self, runs: Sequence[FinetuneRun], resamples: int = RESAMPLES, seed: int = SEED):
        self._estimates: dict[tuple[FinetuneRun, str], Estimate] = {}
        for gold in {id(found.gold): found.gold for run in runs for found in run.sets.values()}.values():
            self._score(gold, [run for run in runs if _has(run, gold)], resamples, seed)

    def _score(self, gold: GoldSet, runs: Sequence[FinetuneRun], resamples: int, seed: int) -> None:
        counts = np.stack([run.sets[gold.name].counts for run in runs])
        samples = resampled_f1(counts, gold.name, resamples, seed).astype(np.float32)
        values = micro_f1(counts.sum(axis=1))
        for run, value, row in zip(runs, values, samples, strict=True):
            self._estimates[run, gold.name] = Estimate(float(value) if gold.gold_spans else np.nan, row)

    def __call__(self, run: FinetuneRun, set_name: str) -> Estimate:
        return self._estimates[run, set_name]


def _has(run: FinetuneRun, gold: GoldSet) -> bool:
    return gold.name in run.sets and run.sets[gold.name].gold is gold
