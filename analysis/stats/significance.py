"""F1 scores of runs, means over training seeds, and differences of two systems, each with its uncertainty.

The statistics are in metapt/evaluation: bootstrap.py resamples and swaps units (documents or sentences), f1_interval.py
has intervals close to 0 and 1, seed_inference.py combines the spread over seeds with the variance over units. This
module applies them to runs. All systems that were scored on the same sentences share the resamples, so that differences
are paired; different sets are resampled independently. No number depends on the names of runs or on other runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from math import sqrt
from statistics import fmean
from typing import Any

import numpy as np

from metapt.evaluation.bootstrap import (
    RESAMPLES,
    SEED,
    by_unit,
    f1_samples,
    swap_bits,
    swapped_differences,
    unit_weights,
)
from metapt.evaluation.f1_interval import f1_difference_interval, f1_interval
from metapt.evaluation.seed_inference import (
    LEVEL,
    MIN_SEEDS,
    POWER,
    Interval,
    SetSamples,
    Z,
    bootstrap_variance,
    missing_error,
)

from ..load.records import FinetuneRun, GoldSet
from .estimates import Difference, Estimate, Seed, average, average_difference

__all__ = [
    "DEFINITION",
    "Difference",
    "Estimate",
    "Pairs",
    "Scores",
    "average",
    "average_difference",
    "comparable",
]

LOW_F1 = 0.05
"""a score below this, or above 1 minus this, has an interval from f1_interval.py: the bootstrap's is too narrow"""
LEAST_SPANS = 2
"""the variance of a difference is at least that of this number of spans that one system alone finds"""

Pairs = Sequence[tuple[FinetuneRun, FinetuneRun]]
"""pairs of runs to compare; the pairs differ in the seed only"""
PRETRAINING, FINETUNING = "pretraining seed", "fine-tuning seed"

DEFINITION = (
    "Inference: a mean and a difference estimate F1 over all training seeds in the population that a set samples; sources, sets and tunings are fixed. "
    "The unit is the pretraining seed, or the fine-tuning seed of models that were not pretrained here; scores are first averaged within a seed, over the "
    "seeds that all parts of a mean have. Two systems are paired by seed. "
    f"The half-width of a {LEVEL:.0%} confidence interval is the square root of t² s² / n + z² V: s is the standard deviation of the n seed values, t has n - 1 degrees "
    f"of freedom, and V is the variance over documents or sentences: that of {RESAMPLES:,} bootstrap resamples (Efron 1979; Koehn 2004; resampling seed {SEED}), "
    f"times (t / z)² for the number of units with spans; the units are documents where a set marks them. Sets are resampled independently. Where F1 is below {LOW_F1}, V is at least that of an exact binomial interval (Clopper and "
    f"Pearson 1934; differences: MOVER, Zou and Donner 2008). With fewer than {MIN_SEEDS} seeds the interval expresses only how much a score depends on the choice of "
    "sentences, and there is no p and no verdict. "
    "p: the smallest level at which the interval excludes 0. "
    f"MDE, the minimum detectable effect: the smallest true difference whose interval would exclude 0 with probability {POWER:.0%}. "
    "p, given these models: approximate randomization (Noreen 1989; Yeh 2000), two-sided: the outputs of the two systems are swapped on each unit with probability "
    f"1/2, for all seeds, sources and tunings together, {RESAMPLES:,} times; p = (1 + number of differences at least as large) / (1 + {RESAMPLES:,}). It "
    "tests whether these trained models differ on sentences like these, and says nothing about other seeds: it may be small where the interval, which covers other sentences and seeds, includes 0. Where the interval excludes 0 although this p is not "
    "small, swaps give such a difference too often: treat it as inconclusive. "
    "A set without gold spans has no F1."
)


def is_extreme(f1: float) -> bool:
    """Whether a score is so close to 0 or 1 that its bootstrap is too narrow."""
    return min(f1, 1 - f1) < LOW_F1


class Scores:
    """The F1 of runs on sets, with bootstrap samples. Means over seeds and differences are computed once and kept."""

    def __init__(self, resamples: int = RESAMPLES, seed: int = SEED):
        self._resamples, self._seed = resamples, seed
        self._means: dict[tuple[Any, ...], Estimate] = {}
        self._differences: dict[tuple[Any, ...], Difference] = {}
        self._weights = cache(lambda gold: unit_weights(_units(gold), gold.name, resamples, seed))
        self._swap_bits = cache(lambda gold: swap_bits(_units(gold), gold.name, resamples, seed))

    def value(self, run: FinetuneRun, set_name: str) -> float:
        """Return the F1 of a run; NaN if the set has no gold span."""
        evaluation = run.sets[set_name]
        return evaluation.f1 if evaluation.gold.gold_spans else float("nan")

    def mean(self, runs: Sequence[FinetuneRun], set_name: str) -> Estimate:
        """Return the mean F1 over runs that differ in the seeds only."""
        return self._mean(_by_seed([(run,) for run in runs]), set_name, 0)

    def difference(self, pairs: Pairs, set_name: str) -> Difference:
        """Return the first run of each pair minus the second, mean over the pairs.

        Args:
            pairs: one or more, which `comparable` has selected.
        """
        return self._difference(_by_seed(pairs), set_name)

    def _mean(self, tuples: BySeed, set_name: str, side: int) -> Estimate:
        """Return the mean F1 of one side of runs or pairs of runs."""
        runs = [members[side] for _, members in tuples]
        key = (set_name, *((seed, run.path) for (seed, _), run in zip(tuples, runs, strict=True)))
        if key not in self._means:
            by_seed: dict[Seed, list[float]] = {}
            for (seed, _), run in zip(tuples, runs, strict=True):
                by_seed.setdefault(seed, []).append(self.value(run, set_name))
            self._means[key] = Estimate(
                {seed: fmean(values) for seed, values in by_seed.items()},
                {set_name: self._set_samples(runs, _weights(tuples), set_name)},
                _unit(members for _, members in tuples),
                lambda chosen: self._mean(_restricted(tuples, chosen), set_name, side),
                partial(_interval, runs[0], set_name) if len(runs) == 1 else None,
            )
        return self._means[key]

    def _set_samples(self, runs: Sequence[FinetuneRun], weights: np.ndarray, set_name: str) -> SetSamples:
        """Compute the bootstrap samples of a weighted mean over runs on one set."""
        samples = np.empty((len(runs), self._resamples), dtype=np.float32)
        for gold, indices in _by_gold_set(runs, set_name).items():
            counts = _unit_counts([runs[index] for index in indices], set_name)
            samples[indices] = f1_samples(counts, set_name, self._resamples, self._seed, self._weights(gold))
        units = min(_units_with_spans(run.sets[set_name].gold) for run in runs)
        part = SetSamples(weights.astype(np.float32) @ samples, units)
        values = [self.value(run, set_name) for run in runs]
        if not is_extreme(float(weights @ values)):
            return part
        intervals = [_interval(run, set_name) for run in runs]
        return replace(part, missing=_missing(weights, values, intervals, part.variance))

    def _difference(self, pairs: BySeed, set_name: str) -> Difference:
        key = (set_name, *((seed, *(run.path for run in pair)) for seed, pair in pairs))
        if key not in self._differences:
            first, second = (self._mean(pairs, set_name, side) for side in (0, 1))
            self._differences[key] = Difference(
                first,
                second,
                {set_name: self._missing(pairs, set_name, first, second)},
                self._swapped(pairs, set_name),
                first.unit,
                lambda chosen: self._difference(_restricted(pairs, chosen), set_name),
            )
        return self._differences[key]

    def _swapped(self, pairs: BySeed, set_name: str) -> np.ndarray:
        """Compute the mean difference after random swaps, fp64 [resamples]."""
        swapped = np.empty((len(pairs), self._resamples))
        first, second = ([pair[side] for _, pair in pairs] for side in (0, 1))
        for gold, indices in _by_gold_set(first, set_name).items():
            counts, other_counts = (
                _unit_counts([runs[index] for index in indices], set_name) for runs in (first, second)
            )
            swapped[indices] = swapped_differences(
                counts, other_counts, set_name, self._resamples, self._seed, self._swap_bits(gold)
            )
        return _weights(pairs) @ swapped

    def _missing(
        self, pairs: BySeed, set_name: str, first: Estimate, second: Estimate
    ) -> tuple[float, float]:
        """The standard errors of a difference that the bootstrap misses; 0 where both sides are the same runs.

        Two runs that find the same spans in this sample may differ on other sentences. Their variance is at least that
        of LEAST_SPANS spans that one of them alone finds; close to 0 and 1 it is at least that of MOVER.
        """
        different = np.array([pair[0].path != pair[1].path for _, pair in pairs])
        if not different.any():
            return (0.0, 0.0)
        part, other = first.sets[set_name], second.sets[set_name]
        variance = bootstrap_variance(part.samples - other.samples, part.units)
        weights = _weights(pairs) * different
        evaluations = [[run.sets[set_name] for run in pair] for _, pair in pairs]
        if is_extreme(first.value) or is_extreme(second.value):
            values = [one.f1 - two.f1 for one, two in evaluations]
            intervals = [
                f1_difference_interval(one.counts, two.counts, one.gold.units) for one, two in evaluations
            ]
            return _missing(weights, values, intervals, variance)
        spans = np.mean([sum(item.totals[1:]) for pair in evaluations for item in pair])
        least = weights.sum() * sqrt(LEAST_SPANS) * 2 / spans
        return (missing_error(least, variance),) * 2


BySeed = Sequence[tuple[Seed, tuple[FinetuneRun, ...]]]
"""runs, or pairs of runs, with their training seed, in the order of seeds"""


def training_seed(runs: Sequence[FinetuneRun]) -> int:
    """Return the seed of a run or pair: that of the pretraining, or of the fine-tuning if there was none here."""
    pretraining = [run.seeds[0] for run in runs if run.seeds[0] is not None]
    trained = [run for run in runs if not run.is_baseline] or runs
    return pretraining[0] if pretraining else trained[0].seeds[1]


def _by_seed(members: Iterable[tuple[FinetuneRun, ...]]) -> BySeed:
    return sorted(((training_seed(runs), runs) for runs in members), key=lambda item: item[0])


def _unit(members: Iterable[tuple[FinetuneRun, ...]]) -> str:
    known = any(run.seeds[0] is not None for runs in members for run in runs)
    return PRETRAINING if known else FINETUNING


def _restricted(members: BySeed, chosen: frozenset[Seed]) -> BySeed:
    return [item for item in members if item[0] in chosen]


def _weights(members: BySeed) -> np.ndarray:
    """The weight of each run or pair in a mean that averages within each seed first; fp64, sum 1."""
    number = Counter(seed for seed, _ in members)
    return np.array([1 / (len(number) * number[seed]) for seed, _ in members])


def _interval(run: FinetuneRun, set_name: str) -> Interval:
    return f1_interval(run.sets[set_name].counts, run.sets[set_name].gold.units)


def _missing(
    weights: np.ndarray, values: Sequence[float], intervals: Sequence[Interval], variance: float
) -> tuple[float, float]:
    """The standard errors that a bootstrap variance misses, compared with exact intervals, which count as correlated."""
    distances = np.abs(np.array(intervals) - np.array(values)[:, None])
    below, above = (missing_error(float(error), variance) for error in weights @ distances / Z)
    return below, above


def _units(gold: GoldSet) -> int:
    """The number of documents, or of sentences where no documents are marked."""
    return int(gold.units.max(initial=-1)) + 1


@cache
def _units_with_spans(gold: GoldSet) -> int:
    return len({unit for unit, spans in zip(gold.units.tolist(), gold.spans, strict=True) if spans})


def _unit_counts(runs: Sequence[FinetuneRun], set_name: str) -> np.ndarray:
    """The span counts of runs that were scored on the same sentences, [runs, units, 3]."""
    counts = np.stack([run.sets[set_name].counts for run in runs])
    return by_unit(counts, runs[0].sets[set_name].gold.units)


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
