"""Means and differences of F1 with their uncertainty: seed values, bootstrap samples by set, swapped differences."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

import numpy as np

from metapt.evaluation.bootstrap import p_value
from metapt.evaluation.seed_inference import Interval, SeedMean, SetSamples

Seed = int | None
"""a training seed; None for a mean of runs that have no seed in common"""


class _Inferred(ABC):
    """The properties of a score or difference that follow from its seed values and its variance over units."""

    @property
    @abstractmethod
    def inference(self) -> SeedMean:
        """The mean of the seed values, with their variance and that over units."""

    @property
    def value(self) -> float:
        return self.inference.value

    @property
    def interval(self) -> Interval:
        """The confidence interval at LEVEL; (NaN, NaN) if the score is undefined."""
        return self.inference.interval

    @property
    def seeds(self) -> int:
        """The number of training seeds."""
        return self.inference.seeds


@dataclass(frozen=True, eq=False)
class Estimate(_Inferred):
    """A mean F1.

    Attributes:
        by_seed: the F1 of each training seed.
        sets: what each set contributes to the uncertainty, by the set's name.
        unit: what a seed is a seed of.
        restrict: computes the same estimate from some of its seeds.
        single: the interval of a single run on a single set.
    """

    by_seed: Mapping[Seed, float]
    sets: Mapping[str, SetSamples]
    unit: str
    restrict: Callable[[frozenset[Seed]], Estimate]
    single: Callable[[], Interval] | None = None

    @cached_property
    def inference(self) -> SeedMean:
        return SeedMean(_seed_values(self.by_seed), *_unit_variances(self.sets.values()))

    @cached_property
    def interval(self) -> Interval:
        """The confidence interval at LEVEL, within 0 to 1; (NaN, NaN) if the score is undefined."""
        low, high = self.single() if self.single else self.inference.interval
        return (max(low, 0.0), min(high, 1.0)) if low == low else (low, high)

    @cached_property
    def samples(self) -> np.ndarray:
        """Bootstrap samples of the mean over sets, [resamples]."""
        return np.sum([part.samples for part in self.sets.values()], axis=0)


@dataclass(frozen=True, eq=False)
class Difference(_Inferred):
    """Two systems on the same sentences, paired by seed.

    Attributes:
        first, second: the means of the two systems over the seeds of the pairs.
        missing: standard errors that the bootstrap misses, towards the lower and the upper limit, by set.
        swapped: the difference after random swaps of the outputs of the two systems, fp64 [resamples].
        unit: what a seed is a seed of.
        restrict: computes the same difference from some of its seeds.
    """

    first: Estimate
    second: Estimate
    missing: Mapping[str, tuple[float, float]]
    swapped: np.ndarray = field(repr=False)
    unit: str
    restrict: Callable[[frozenset[Seed]], Difference]

    @property
    def by_seed(self) -> dict[Seed, float]:
        """First minus second for each training seed."""
        return {seed: value - self.second.by_seed[seed] for seed, value in self.first.by_seed.items()}

    @property
    def samples(self) -> np.ndarray:
        """Bootstrap samples of first minus second, [resamples]; not kept, as thousands would take much memory."""
        return self.first.samples - self.second.samples

    @cached_property
    def inference(self) -> SeedMean:
        sets = [
            SetSamples(part.samples - self.second.sets[name].samples, part.units, self.missing[name])
            for name, part in self.first.sets.items()
        ]
        return SeedMean(_seed_values(self.by_seed), *_unit_variances(sets))

    @cached_property
    def interval(self) -> Interval:
        """The confidence interval at LEVEL, within -1 to 1; (NaN, NaN) if the difference is undefined."""
        low, high = self.inference.interval
        return (max(low, -1.0), min(high, 1.0)) if low == low else (low, high)

    @property
    def relative_gain(self) -> SeedMean:
        """First / second - 1, by the delta method; what the bootstrap of the difference misses counts in full. NaN where second is 0."""
        first, second = self.first, self.second
        if not second.value > 0:
            return SeedMean(np.array([np.nan]), np.nan, np.nan)
        ratio = first.value / second.value
        residuals = np.array([value - ratio * second.by_seed[seed] for seed, value in first.by_seed.items()])
        parts = [
            SetSamples(
                (part.samples - ratio * second.sets[name].samples) / second.value,
                part.units,
                (self.missing[name][0] / second.value, self.missing[name][1] / second.value),
            )
            for name, part in first.sets.items()
        ]
        return SeedMean(ratio - 1 + residuals / second.value, *_unit_variances(parts))

    @property
    def p(self) -> float:
        """The smallest level whose interval excludes 0; NaN with fewer than MIN_SEEDS seeds."""
        return self.inference.p

    @property
    def mde(self) -> float:
        """The minimum detectable effect; NaN with fewer than MIN_SEEDS seeds."""
        return self.inference.mde

    @property
    def degrees_of_freedom(self) -> int:
        """Those of the spread over seeds; 0 with fewer than MIN_SEEDS seeds."""
        return self.inference.degrees_of_freedom

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval excludes 0; False with fewer than MIN_SEEDS seeds, whose interval lacks their spread."""
        low, high = self.interval
        return self.degrees_of_freedom > 0 and (low > 0 or high < 0)

    @cached_property
    def p_given_models(self) -> float:
        """The p-value of the randomization test, which takes the trained models as given."""
        return p_value(self.value, self.swapped)


def _seed_values(by_seed: Mapping[Seed, float]) -> np.ndarray:
    return np.array(list(by_seed.values()), dtype=np.float64)


def _unit_variances(sets: Iterable[SetSamples]) -> tuple[float, float]:
    """The variance of a mean over the units of its sets, towards the lower and the upper limit."""
    parts = list(sets)
    below, above = (sum(part.variance + part.missing[side] ** 2 for part in parts) for side in (0, 1))
    return below, above


def average(estimates: Iterable[Estimate]) -> Estimate:
    """Return the unweighted mean of one or more estimates, over the seeds that all of them have.

    Without a common seed the value is the mean of their values, as if of a single seed: there is then no verdict.
    """
    parts = list(estimates)
    if len(parts) == 1:
        return parts[0]
    common = _common_seeds(parts)
    if common:
        parts = [part if part.by_seed.keys() == common else part.restrict(common) for part in parts]
    seeds: list[Seed] = sorted(common, key=_order) or [None]
    by_seed = {seed: fmean(part.by_seed[seed] if common else part.value for part in parts) for seed in seeds}
    sets = _mean_samples(parts)
    return Estimate(
        by_seed, sets, _common_unit(parts), lambda chosen: average(part.restrict(chosen) for part in parts)
    )


def average_difference(differences: Iterable[Difference]) -> Difference:
    """Return the unweighted mean of one or more differences, over the seeds that all of them have (see `average`)."""
    parts = list(differences)
    if len(parts) == 1:
        return parts[0]
    if common := _common_seeds(parts):
        parts = [part if part.by_seed.keys() == common else part.restrict(common) for part in parts]
    missing = {
        name: _mean_missing([part.missing[name] for part in parts if name in part.missing], len(parts))
        for part in parts
        for name in part.missing
    }
    return Difference(
        average(part.first for part in parts),
        average(part.second for part in parts),
        missing,
        np.mean([part.swapped for part in parts], axis=0),
        _common_unit(parts),
        lambda chosen: average_difference(part.restrict(chosen) for part in parts),
    )


def _common_seeds(parts: Sequence[Estimate | Difference]) -> frozenset[Seed]:
    return frozenset.intersection(*(frozenset(part.by_seed) for part in parts)) - {None}


def _order(seed: Seed) -> int:
    return -1 if seed is None else seed


def _common_unit(parts: Sequence[Estimate | Difference]) -> str:
    units = {part.unit for part in parts}
    return units.pop() if len(units) == 1 else "seed"


def _mean_samples(parts: Sequence[Estimate]) -> dict[str, SetSamples]:
    """The contribution of each set to the mean of some estimates; what the bootstrap misses counts as correlated."""
    by_set: dict[str, list[SetSamples]] = {}
    for part in parts:
        for name, samples in part.sets.items():
            by_set.setdefault(name, []).append(samples)
    return {
        name: SetSamples(
            np.sum([item.samples for item in items], axis=0) / np.float32(len(parts)),
            min(item.units for item in items),
            _mean_missing([item.missing for item in items], len(parts)),
        )
        for name, items in by_set.items()
    }


def _mean_missing(missing: Sequence[tuple[float, float]], parts: int) -> tuple[float, float]:
    below, above = (sum(side) / parts for side in zip(*missing, strict=True))
    return below, above
