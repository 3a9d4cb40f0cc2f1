"""Inference for a mean over training seeds: interval, p-value and minimum detectable effect from one standard error.

The estimand is the mean over all training seeds of a score, or of a difference of scores, in the population that an
evaluation set samples. Two things make an estimate uncertain: few seeds, and few units (documents or sentences). The
seeds are the sample of a t-test; the units contribute a variance V, which the bootstrap or an exact interval estimates
from many spans. The half-width at level 1 - alpha is

    h(alpha) = sqrt(t(n - 1, alpha)^2 s^2 / n + z(alpha)^2 V),

where s is the standard deviation of the n seed values, and t and z are two-sided quantiles. Everything else follows:
the p-value is the smallest alpha whose interval excludes 0. Fewer than MIN_SEEDS seeds do not show their spread; then
the interval expresses the units only, and there is no p-value. docs/calibration.md has the coverage of these intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import inf, nan, sqrt

import numpy as np
from scipy.optimize import brentq
from scipy.special import chdtri, ndtr, ndtri, stdtrit

from metapt.evaluation.bootstrap import LEVEL
from metapt.evaluation.f1_interval import Interval

POWER = 0.80
MIN_SEEDS = 3
"""with fewer seeds there is no p-value and no verdict"""
Z = float(ndtri((1 + LEVEL) / 2))
SMALLEST_P = 1e-12
QUADRATURE_POINTS = 200


@dataclass(frozen=True, eq=False)
class SeedMean:
    """The mean of seed values, and what follows from it.

    Attributes:
        values: one for each training seed, fp64 [seeds]; NaN where the score is undefined.
        below, above: the variance of the mean over units, as far as it concerns the lower and the upper limit. The two
            are equal unless the score is close to a bound of its range.
    """

    values: np.ndarray
    below: float
    above: float

    @classmethod
    def of_seeds(cls, values: Sequence[float]) -> SeedMean:
        """The mean of values that depend on the training seed alone, not on a sample of units; NaN of no values."""
        return cls(np.array(values if len(values) else [nan]), 0.0, 0.0)

    @property
    def seeds(self) -> int:
        return len(self.values)

    @cached_property
    def value(self) -> float:
        return float(np.mean(self.values))

    @property
    def degrees_of_freedom(self) -> int:
        """Those of the spread over seeds; 0 if there are too few seeds to use it."""
        return self.seeds - 1 if self.seeds >= MIN_SEEDS else 0

    @cached_property
    def seed_variance(self) -> float:
        """The variance of the mean over seeds, s^2 / n; 0 if there are too few seeds to use it."""
        return float(np.var(self.values, ddof=1)) / self.seeds if self.degrees_of_freedom else 0.0

    @property
    def unit_variance(self) -> float:
        return max(self.below, self.above)

    @property
    def standard_error(self) -> float:
        return sqrt(self.seed_variance + self.unit_variance)

    def half_width(self, alpha: float, variance: float) -> float:
        """Compute the distance from the value to a limit at level 1 - `alpha`, given the variance over units."""
        tail = 1 - alpha / 2
        width = float(ndtri(tail)) ** 2 * variance
        if self.seed_variance:
            width += float(stdtrit(self.degrees_of_freedom, tail)) ** 2 * self.seed_variance
        return sqrt(width)

    @cached_property
    def interval(self) -> Interval:
        """The confidence interval at LEVEL; (NaN, NaN) if the score is undefined."""
        if np.isnan(self.value):
            return (nan, nan)
        alpha = 1 - LEVEL
        return (
            self.value - self.half_width(alpha, self.below),
            self.value + self.half_width(alpha, self.above),
        )

    @property
    def interval_over_seeds(self) -> Interval:
        """The interval of a mean to which units contribute nothing; (NaN, NaN) with too few seeds to show their spread."""
        return self.interval if self.degrees_of_freedom else (nan, nan)

    @cached_property
    def p(self) -> float:
        """The smallest alpha whose interval excludes 0, at least SMALLEST_P; NaN with fewer than MIN_SEEDS seeds."""
        if not self.degrees_of_freedom or np.isnan(self.value):
            return nan
        distance, variance = abs(self.value), self.below if self.value > 0 else self.above
        if distance == 0 or variance == inf:
            return 1.0
        if self.half_width(SMALLEST_P, variance) <= distance:
            return SMALLEST_P

        def excess(log_alpha: float) -> float:
            return self.half_width(float(np.exp(log_alpha)), variance) - distance

        return float(np.exp(brentq(excess, np.log(SMALLEST_P), 0.0, xtol=1e-10)))

    @cached_property
    def mde(self) -> float:
        """The minimum detectable effect: the smallest true value whose interval excludes 0 with probability POWER.

        It is that of a noncentral t-test where the units contribute nothing, and (z(1 - alpha / 2) + z(POWER)) standard
        errors where the seeds contribute nothing (Bloom 1995, "Minimum detectable effects").

        Returns: NaN with fewer than MIN_SEEDS seeds, or if the standard error is 0 or unknown.
        """
        error = self.standard_error
        if not self.degrees_of_freedom or not 0 < error < inf:
            return nan
        return error * _relative_mde(
            round(self.seed_variance / error**2, 3), self.degrees_of_freedom, 1 - LEVEL
        )


def planned_mde(seeds: int, seed_deviation: float, tests: int = 1) -> float:
    """Compute the minimum detectable effect that a plan may expect, if the evaluation sets are large.

    Args:
        seeds: number of seeds.
        seed_deviation: standard deviation of the difference of two arms over seeds.
        tests: number of tests that are corrected together; the effect is detected at level (1 - LEVEL) / tests.
    Returns: NaN with fewer than MIN_SEEDS seeds.
    """
    if seeds < MIN_SEEDS:
        return nan
    return seed_deviation / sqrt(seeds) * _relative_mde(1.0, seeds - 1, (1 - LEVEL) / tests)


@lru_cache(maxsize=4096)
def _relative_mde(fraction: float, degrees_of_freedom: int, alpha: float) -> float:
    """Compute the minimum detectable effect in standard errors.

    The estimate is normal around the true value, and s^2 is independent of it and proportional to a chi-squared variable,
    over whose quantiles the power is averaged.

    Args:
        fraction: of the variance that the seeds contribute.
        alpha: the level of the test.
    """
    tails = (np.arange(QUADRATURE_POINTS) + 0.5) / QUADRATURE_POINTS
    spread = chdtri(degrees_of_freedom, tails) / degrees_of_freedom  # s^2 relative to its expectation
    t, z = (float(stdtrit(df, 1 - alpha / 2)) for df in (degrees_of_freedom, inf))
    limits = np.sqrt(t**2 * fraction * spread + z**2 * (1 - fraction))

    def missing_power(effect: float) -> float:
        return POWER - float(np.mean(ndtr(effect - limits)))

    return float(brentq(missing_power, 0.0, limits.max() + 10))


@dataclass(frozen=True, eq=False)
class SetSamples:
    """What the choice of the units of one set contributes to a mean.

    Attributes:
        samples: bootstrap samples of the set's part of the mean, [resamples].
        units: number of documents or sentences.
        missing: standard errors that the bootstrap misses, towards the lower and the upper limit.
    """

    samples: np.ndarray
    units: int
    missing: tuple[float, float] = (0.0, 0.0)

    @cached_property
    def variance(self) -> float:
        return bootstrap_variance(self.samples, self.units)


def bootstrap_variance(samples: np.ndarray, units: int) -> float:
    """Compute the variance over units from bootstrap samples; infinite for a single unit, if the samples vary.

    A bootstrap divides by the number of units instead of one less, and its normal interval takes the variance as known:
    the factor corrects both, as a t interval does.
    """
    variance = float(np.var(samples, dtype=np.float64))
    if units < 2:
        return inf if variance else 0.0
    return variance * units / (units - 1) * (float(stdtrit(units - 1, (1 + LEVEL) / 2)) / Z) ** 2


def missing_error(target: float, variance: float) -> float:
    """Compute the standard error that, added to a variance, gives at least the standard error `target`."""
    return sqrt(max(target**2 - variance, 0.0))
