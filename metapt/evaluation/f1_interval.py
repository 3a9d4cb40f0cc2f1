"""Confidence intervals of a micro-F1, and of differences and means of them, that do not collapse near 0 or 1.

A bootstrap of a system that finds nothing gives [0, 0], however few gold spans there are. Here the interval comes from
a proportion. Let J = TP / (TP + FP + FN), the fraction of correct spans in the union of predicted and gold spans; then
F1 = 2 J / (1 + J), which increases with J. An exact binomial interval of J is computed with the effective number of
spans: spans of a unit (a sentence or a document) depend on each other, so that they are worth fewer independent ones.
The limits of J become the limits of F1. Intervals of differences and means combine the limits of their parts.
All are functions of the counts alone: there is no randomness, and the order of sentences and systems is irrelevant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import nan, prod, sqrt

import numpy as np
from scipy.special import betaincinv, ndtri, stdtrit

from metapt.evaluation.bootstrap import LEVEL

PRIOR_CORRELATION = 0.08
"""correlation of spans in the same unit where the data say nothing about it"""
PRIOR_EVENTS = 4.0
"""number of correct spans (or of incorrect ones, if they are fewer) at which data and prior have equal weights"""
PRIOR_VARIANCE = 1.0
"""added to each sum of squared residuals, so that two systems with the same counts do not have correlation 1"""

Interval = tuple[float, float]
"""(lower limit, upper limit)"""


def f1_interval(counts: np.ndarray, units: np.ndarray | None = None, level: float = LEVEL) -> Interval:
    """Compute a confidence interval of the micro-F1 of one system on one set.

    It is the interval of Clopper and Pearson (1934) with an effective number of spans, as Korn and Graubard (1998,
    "Confidence intervals for proportions with small expected number of positive counts estimated from survey data")
    propose: the number of spans, divided by the design effect and by (t / z)^2, where t has one degree of freedom
    less than there are units of equal size. docs/calibration.md measures how often it covers the F1 of a population.

    Args:
        counts: integers [sentences, (correct, predicted, gold)].
        units: integers [sentences], the unit of each sentence (its document); without it, each sentence is a unit.
        level: probability that the interval covers the F1 of the population that the units are sampled from.
    Returns: (NaN, NaN) if there is no gold span.
    Raises:
        ValueError: `counts` or `units` has the wrong shape, or more spans are correct than predicted or gold.
    """
    return _Proportion.of(counts, units).f1_limits(level)


def f1_difference_interval(
    first: np.ndarray, second: np.ndarray, units: np.ndarray | None = None, level: float = LEVEL
) -> Interval:
    """Compute a confidence interval of the difference in micro-F1 of two systems on the same sentences.

    The difference is first minus second. Its interval is MOVER (Zou and Donner 2008, "Construction of confidence limits
    about effect measures: a general approach"): the distances from each F1 to its limits are combined as standard
    errors are, with the correlation of the two F1 over the units.

    Args:
        first, second: integers [sentences, (correct, predicted, gold)] with the same gold.
        units, level: as in `f1_interval`.
    Returns: (NaN, NaN) if there is no gold span. Two systems with the same counts have an interval of positive width,
        because they may differ on other sentences.
    Raises:
        ValueError: as in `f1_interval`, or the gold counts differ.
    """
    if np.shape(first) != np.shape(second) or np.any(np.asarray(first)[:, 2] != np.asarray(second)[:, 2]):
        raise ValueError("the two systems were not scored on the same sentences")
    one, other = _Proportion.of(first, units), _Proportion.of(second, units)
    (low, high), (other_low, other_high) = one.f1_limits(level), other.f1_limits(level)
    correlation = _correlation(one, other)
    difference = one.f1 - other.f1
    return (
        difference - _combined(one.f1 - low, other_high - other.f1, correlation),
        difference + _combined(high - one.f1, other.f1 - other_low, correlation),
    )


def mean_interval(values: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """Compute a confidence interval of the mean of independent estimates, such as the F1 or differences of several sets.

    It is MOVER for a sum (Zou, Huang and Zhang 2009, "A note on confidence interval estimation for a linear function of
    binomial proportions").

    Args:
        values, intervals: of each estimate; the intervals have the same level.
    Returns: (NaN, NaN) if an estimate is NaN.
    """
    low, high = np.asarray(intervals, dtype=float).T
    mean = float(np.mean(values))
    below, above = (float(np.linalg.norm(limit - values)) / len(values) for limit in (low, high))
    return (mean - below, mean + above)


@dataclass(frozen=True, eq=False)
class _Proportion:
    """The fraction J of correct spans in the union of predicted and gold spans.

    Attributes:
        correct, union: number of spans in each unit, fp64 [units]; empty if there is no gold span.
    """

    correct: np.ndarray
    union: np.ndarray

    @classmethod
    def of(cls, counts: np.ndarray, units: np.ndarray | None) -> _Proportion:
        counts = np.asarray(counts, dtype=np.float64)  # sums of small integer types overflow
        if counts.ndim != 2 or counts.shape[1] != 3:
            raise ValueError(f"counts have shape {counts.shape}, but must be [sentences, 3]")
        if (counts < 0).any() or (counts[:, :1] > counts[:, 1:]).any():
            raise ValueError("more spans are correct than predicted or gold, or a count is negative")
        if units is not None and np.shape(units) != (len(counts),):
            raise ValueError(f"{len(counts)} sentences, but units of shape {np.shape(units)}")
        if not counts[:, 2].any():
            return cls(np.empty(0), np.empty(0))
        correct, union = counts[:, 0], counts[:, 1] + counts[:, 2] - counts[:, 0]
        if units is not None:
            _, number = np.unique(units, return_inverse=True)
            correct, union = np.bincount(number, correct), np.bincount(number, union)
        return cls(correct, union)

    @cached_property
    def spans(self) -> float:
        return float(self.union.sum())

    @cached_property
    def value(self) -> float:
        return float(self.correct.sum()) / self.spans if self.spans else nan

    @property
    def f1(self) -> float:
        return _f1(self.value)

    @cached_property
    def residuals(self) -> np.ndarray:
        """Residuals of the ratio estimator: the sum of their squares over spans^2 is the variance of J (Cochran 1977)."""
        return self.correct - self.value * self.union

    def effective_spans(self, level: float) -> float:
        """The number of independent spans that would give as wide an interval.

        The design effect, which is the variance of J divided by that with independent spans, is estimated from the data
        and shrunk to a prior value where few spans are correct, or few incorrect. The prior is (1 + J) (1 + r (size - 1)):
        1 + J is the design effect if every error is a wrong span and a missed one, and the rest is that of spans with
        correlation r in units of `size` spans (Kish 1965). The correction for the degrees of freedom is shrunk alike.
        """
        size = float(self.union @ self.union) / self.spans  # mean number of spans in the unit of a span
        units = int(np.count_nonzero(self.union))
        if units == 1:
            return 1.0
        events = min(self.value, 1 - self.value) * self.spans
        weight = events / (events + PRIOR_EVENTS)
        effect = (1 - weight) * min((1 + self.value) * (1 + PRIOR_CORRELATION * (size - 1)), size)
        if events:
            variance = float(self.residuals @ self.residuals) * units / (units - 1)
            effect += weight * min(variance / (self.spans * self.value * (1 - self.value)), size)
        degrees, upper = max(self.spans / size - 1, 1.0), (1 + level) / 2
        correction = float(ndtri(upper) / stdtrit(degrees, upper)) ** 2
        return self.spans / max(effect, 1.0) * (1 + weight * (correction - 1))

    def f1_limits(self, level: float) -> Interval:
        if not self.spans:
            return (nan, nan)
        trials = self.effective_spans(level)
        low, high = clopper_pearson(self.value * trials, trials, level)
        return (_f1(low), _f1(high))


def clopper_pearson(successes: float, trials: float, level: float = LEVEL) -> Interval:
    """Compute the exact interval of a proportion (Clopper and Pearson 1934); the counts need not be whole numbers."""
    tail, failures = (1 - level) / 2, trials - successes
    low = float(betaincinv(successes, failures + 1, tail)) if successes > 0 else 0.0
    high = float(betaincinv(successes + 1, failures, 1 - tail)) if failures > 0 else 1.0
    return (low, high)


def _f1(value: float) -> float:
    return 2 * value / (1 + value)


def _combined(first: float, second: float, correlation: float) -> float:
    """The distance to a limit of a difference, from the distances to the limits of its two sides."""
    return sqrt(max(first**2 + second**2 - 2 * correlation * first * second, 0.0))


def _correlation(first: _Proportion, second: _Proportion) -> float:
    """The correlation of two F1 over the units; PRIOR_VARIANCE keeps it below 1 for systems with the same counts."""
    covariance = float(first.residuals @ second.residuals)
    variances = (float(part.residuals @ part.residuals) + PRIOR_VARIANCE for part in (first, second))
    return covariance / sqrt(prod(variances))
