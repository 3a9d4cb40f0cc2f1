"""F1 scores with their bootstrap samples: means over seeds, and differences of two systems.

metapt/evaluation/bootstrap.py has the statistics; this module applies them to runs. All systems that were scored on the
same sentences share the resamples, so that differences are paired. Different sets are resampled independently.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np

from metapt.evaluation.bootstrap import (
    LEVEL,
    POWER,
    RESAMPLES,
    SEED,
    f1_samples,
    minimum_detectable_effect,
    p_value,
    percentile_interval,
    seed_weights,
    sentence_weights,
    swap_bits,
    swapped_differences,
)

from ..load.records import FinetuneRun, GoldSet

DEFINITION = (
    f"Confidence intervals: {LEVEL:.0%} percentile bootstrap over sentences (Efron 1979; Koehn 2004), {RESAMPLES:,} resamples, seed {SEED}. "
    "The sentences of a set are sampled with replacement, and micro-F1 is computed from their summed span counts; a resample "
    "without any span has F1 0. Two systems are scored on the same resamples (paired); sets are resampled independently. With "
    "several training seeds, the seeds are resampled too, independently of the sentences (the pigeonhole bootstrap, Owen 2007): n - 1 of n, so that the "
    "variance over few seeds is unbiased (Rao and Wu 1988), and alike for both systems of a pair and for all settings of a scale. With two or three seeds the "
    "interval is still too narrow. With one seed it expresses only how much a score depends on the choice of sentences. "
    "p: approximate randomization test (Noreen 1989; Yeh 2000), two-sided: the outputs of the two systems are swapped on each sentence with probability "
    f"1/2, for all seeds together, {RESAMPLES:,} times; p = (1 + number of differences at least as large) / (1 + {RESAMPLES:,}). It takes "
    "the trained models as given, and tests whether they differ on sentences like these. "
    f"MDE, the minimum detectable effect: the smallest true difference that a two-sided test at level {1 - LEVEL:.2f} would detect with probability {POWER:.0%}, "
    "which is (1.96 + 0.84) standard errors of the bootstrapped difference (Bloom 1995). Most smaller differences would be missed on this set by these systems. "
    "There is no correction for multiple comparisons: of differences that are truly zero, about one interval in "
    "twenty excludes 0, and more on a tiny set. A set without gold spans has no F1."
)


class DifferenceSummary(NamedTuple):
    """A difference with its confidence interval and its minimum detectable effect (MDE)."""

    value: float
    interval: tuple[float, float]
    mde: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval excludes 0; False if there is no interval."""
        low, high = self.interval
        return low > 0 or high < 0


@dataclass(frozen=True, eq=False)
class Estimate:
    """A score and its bootstrap samples [resamples]. Arithmetic applies to both."""

    value: float
    samples: np.ndarray

    def __sub__(self, other: Estimate) -> Estimate:
        return Estimate(self.value - other.value, self.samples - other.samples)

    def relative_to(self, other: Estimate) -> Estimate:
        """Return self / other - 1; NaN where `other` is 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            samples = np.where(other.samples > 0, self.samples / other.samples - 1, np.nan)
        return Estimate(self.value / other.value - 1 if other.value > 0 else np.nan, samples)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The percentile interval at LEVEL; (NaN, NaN) if the score is undefined, even in one resample only."""
        return (np.nan, np.nan) if np.isnan(self.value) else percentile_interval(self.samples)


def average(estimates: Iterable[Estimate]) -> Estimate:
    """Return the unweighted mean of one or more estimates."""
    parts = list(estimates)
    value = fmean(part.value for part in parts)
    return Estimate(value, np.mean([part.samples for part in parts], axis=0))


def over_seeds(estimates: Iterable[Estimate], name: str, seed: int = SEED) -> Estimate:
    """Return the mean over training seeds, where the seeds are resampled as well (`seed_weights`).

    Args:
        estimates: one for each training seed.
        name: of the model; settings that share its training seeds get the same resamples of them.
        seed: of the resampling.
    """
    parts = list(estimates)
    samples = np.stack([part.samples for part in parts])
    weights = seed_weights(len(parts), name, samples.shape[1], seed)
    return Estimate(fmean(part.value for part in parts), np.einsum("sr,sr->r", weights, samples))


@dataclass(frozen=True, eq=False)
class Difference:
    """Two systems on the same sentences.

    Attributes:
        swapped: the difference after random swaps of their outputs, [resamples].
    """

    first: Estimate
    second: Estimate
    swapped: np.ndarray

    @property
    def estimate(self) -> Estimate:
        """First minus second; computed at each access, as thousands of differences would take much memory."""
        return self.first - self.second

    @cached_property
    def summary(self) -> DifferenceSummary:
        """First minus second, with its interval and its minimum detectable effect."""
        estimate = self.estimate
        return DifferenceSummary(
            estimate.value, estimate.interval, minimum_detectable_effect(estimate.samples)
        )

    @cached_property
    def p(self) -> float:
        """The p-value of the randomization test."""
        return p_value(self.first.value - self.second.value, self.swapped)


def average_difference(differences: Iterable[Difference]) -> Difference:
    """Return the unweighted mean of one or more differences."""
    parts = list(differences)
    return Difference(
        average(part.first for part in parts),
        average(part.second for part in parts),
        np.mean([part.swapped for part in parts], axis=0),
    )


Pairs = Sequence[tuple[FinetuneRun, FinetuneRun]]
"""pairs of runs to compare; the pairs differ in the seed only"""
Key = tuple[Path | str, ...]
"""a set and the folders of runs"""


class Scores:
    """The F1 of runs on sets, with bootstrap samples. Means over seeds and differences are computed once and kept in fp32."""

    def __init__(self, resamples: int = RESAMPLES, seed: int = SEED):
        self._resamples, self._seed = resamples, seed
        self._means: dict[Key, Estimate] = {}
        self._differences: dict[Key, Difference] = {}
        self._weights = cache(lambda gold: sentence_weights(len(gold.ids), gold.name, resamples, seed))
        self._swap_bits = cache(lambda gold: swap_bits(len(gold.ids), gold.name, resamples, seed))

    def value(self, run: FinetuneRun, set_name: str) -> float:
        """Return the F1 of a run; NaN if the set has no gold span."""
        evaluation = run.sets[set_name]
        return evaluation.f1 if evaluation.gold.gold_spans else float("nan")

    def mean(self, runs: Sequence[FinetuneRun], set_name: str) -> Estimate:
        """Return the mean F1 over runs that differ in the seed only."""
        key: Key = (set_name, *(run.path for run in runs))
        if key not in self._means:
            samples = np.empty((len(runs), self._resamples), dtype=np.float32)
            for gold, indices in _by_gold_set(runs, set_name).items():
                counts = np.stack([runs[index].sets[set_name].counts for index in indices])
                samples[indices] = f1_samples(
                    counts, set_name, self._resamples, self._seed, self._weights(gold)
                )
            estimates = [
                Estimate(self.value(run, set_name), row) for run, row in zip(runs, samples, strict=True)
            ]
            self._means[key] = over_seeds(estimates, _model_name(runs[0]), self._seed)
        return self._means[key]

    def difference(self, pairs: Pairs, set_name: str) -> Difference:
        """Return the first run of each pair minus the second, mean over the pairs.

        Args:
            pairs: one or more, which `comparable` has selected.
        """
        first, second = (list(runs) for runs in zip(*pairs, strict=True))
        key = (set_name, *(run.path for run in (*first, *second)))
        if key not in self._differences:
            swapped = np.empty((len(pairs), self._resamples))
            for gold, indices in _by_gold_set(first, set_name).items():
                counts, other_counts = (
                    np.stack([runs[index].sets[set_name].counts for index in indices])
                    for runs in (first, second)
                )
                swapped[indices] = swapped_differences(
                    counts, other_counts, set_name, self._resamples, self._seed, self._swap_bits(gold)
                )
            self._differences[key] = Difference(
                self.mean(first, set_name),
                self.mean(second, set_name),
                swapped.mean(axis=0).astype(np.float32),
            )
        return self._differences[key]


def _by_gold_set(runs: Sequence[FinetuneRun], set_name: str) -> dict[GoldSet, list[int]]:
    """Return the indices of the runs by the version of the set that they were scored on."""
    indices: dict[GoldSet, list[int]] = {}
    for index, run in enumerate(runs):
        indices.setdefault(run.sets[set_name].gold, []).append(index)
    return indices


def comparable(pairs: Pairs, set_name: str) -> list[tuple[FinetuneRun, FinetuneRun]]:
    """Return the pairs whose runs were both scored on the same sentences of a set, if these have a gold span."""
    selected = []
    for pair in pairs:
        first, second = (run.sets.get(set_name) for run in pair)
        if first is not None and second is not None and first.gold is second.gold and first.gold.gold_spans:
            selected.append(pair)
    return selected


def _model_name(run: FinetuneRun) -> str:
    """Return scale and variant: what is pretrained again for each seed, however it is fine-tuned then."""
    return f"{run.setting.scale}/{run.setting.variant}"
