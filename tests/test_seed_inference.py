"""Means over seeds against scipy's t-tests, noncentral t, the normal distribution, and simulation; invariants."""

from __future__ import annotations

from math import inf, isnan, sqrt
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from metapt.evaluation.bootstrap import holm
from metapt.evaluation.seed_inference import (
    LEVEL,
    POWER,
    SeedMean,
    SetSamples,
    bootstrap_variance,
    missing_error,
)

ALPHA = 1 - LEVEL
finite = st.floats(-1, 1, allow_subnormal=False)


def test_without_variance_over_units_it_is_a_t_test() -> None:
    values = np.array([0.10, 0.12, 0.20, 0.16])
    found, expected = SeedMean(values, 0.0, 0.0), stats.ttest_1samp(values, 0)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(LEVEL)))
    assert found.degrees_of_freedom == 3


def test_without_spread_over_seeds_it_is_a_z_test() -> None:
    found = SeedMean(np.full(3, 0.1), 0.05**2, 0.05**2)
    assert found.p == pytest.approx(2 * stats.norm.sf(2))
    assert found.interval == pytest.approx((0.1 - 1.959964 * 0.05, 0.1 + 1.959964 * 0.05))


def test_the_half_width_is_the_documented_formula() -> None:
    values = np.array([0.1, 0.3, 0.2])
    t, z = stats.t.ppf(0.975, 2), stats.norm.ppf(0.975)
    half = sqrt(t**2 * values.var(ddof=1) / 3 + z**2 * 0.01)
    assert SeedMean(values, 0.01, 0.01).interval == pytest.approx((0.2 - half, 0.2 + half))


@given(st.lists(finite, min_size=3, max_size=8), st.floats(0, 0.1), st.floats(0, 0.1))
def test_p_is_the_smallest_level_whose_interval_excludes_0(
    values: list[float], below: float, above: float
) -> None:
    found = SeedMean(np.array(values), below, above)
    low, high = found.interval
    if abs(found.p - ALPHA) > 1e-6:
        assert (found.p < ALPHA) == (low > 0 or high < 0)
    variance = below if found.value > 0 else above
    if 1e-11 < found.p < 1:
        assert found.half_width(found.p, variance) == pytest.approx(abs(found.value), rel=1e-6)


@given(st.lists(finite, min_size=1, max_size=8), st.floats(0, 0.1), st.floats(0, 0.1))
def test_the_sign_changes_nothing_else(values: list[float], below: float, above: float) -> None:
    one, other = SeedMean(np.array(values), below, above), SeedMean(-np.array(values), above, below)
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]))
    assert one.p == pytest.approx(other.p, nan_ok=True)
    assert one.mde == pytest.approx(other.mde, nan_ok=True)


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_or_two_seeds_express_the_units_only(seeds: int) -> None:
    found = SeedMean(np.array([0.1, 0.3])[:seeds], 0.01, 0.01)
    assert found.interval == pytest.approx((found.value - 0.196, found.value + 0.196), abs=1e-4)
    assert isnan(found.p)
    assert isnan(found.mde)
    assert found.degrees_of_freedom == 0


def test_the_mde_of_three_seeds_is_that_of_the_noncentral_t() -> None:
    """3.26 standard deviations of the seed values; (1.96 + 0.84) standard errors would be 1.62."""
    values = np.array([-1.0, 0.0, 1.0])
    found = SeedMean(values, 0.0, 0.0).mde
    assert found == pytest.approx(3.26, abs=0.01)
    power = stats.nct.sf(stats.t.ppf(0.975, 2), 2, found * sqrt(3))
    assert power == pytest.approx(POWER, abs=0.002)


def test_the_mde_without_spread_over_seeds() -> None:
    found = SeedMean(np.zeros(3), 0.04, 0.04).mde
    assert found == pytest.approx(0.2 * (stats.norm.ppf(0.975) + stats.norm.ppf(POWER)), rel=1e-3)


@pytest.mark.parametrize("fraction", [0.5, 0.9])
@pytest.mark.parametrize("seeds", [3, 5])
def test_the_mde_has_the_stated_power(seeds: int, fraction: float) -> None:
    """Values in standard errors: fraction of the variance over seeds, the rest over units."""
    draw = np.random.default_rng(seeds)
    spread = sqrt(fraction * seeds)
    pattern = stats.zscore(np.arange(seeds), ddof=1) * spread
    effect = SeedMean(pattern, 1 - fraction, 1 - fraction).mde
    found = [
        SeedMean(draw.normal(effect + unit, spread, seeds), 1 - fraction, 1 - fraction).p < ALPHA
        for unit in draw.normal(0, sqrt(1 - fraction), 4000)
    ]
    assert np.mean(found) == pytest.approx(POWER, abs=4 * sqrt(POWER * (1 - POWER) / 4000))


def test_nothing_varies() -> None:
    zero = SeedMean(np.zeros(3), 0.0, 0.0)
    assert zero.interval == (0, 0)
    assert zero.p == 1
    assert isnan(zero.mde)


def test_undefined_scores() -> None:
    found = SeedMean(np.array([np.nan, 0.1, 0.2]), 0.1, 0.1)
    assert np.isnan(found.interval).all()
    assert isnan(found.p)


def test_an_infinite_variance_over_units() -> None:
    found = SeedMean(np.array([0.1, 0.2, 0.3]), inf, inf)
    assert found.interval == (-inf, inf)
    assert found.p == 1
    assert isnan(found.mde)


def test_the_variance_over_few_units_is_that_of_a_t_interval() -> None:
    """A bootstrap of n values has variance (n - 1) / n s^2 / n in the limit."""
    draw = np.random.default_rng(0)
    values = draw.normal(size=12)
    samples = values[draw.integers(0, 12, (200_000, 12))].mean(axis=1)
    half = stats.norm.ppf(0.975) * sqrt(bootstrap_variance(samples, 12))
    interval = stats.ttest_1samp(values, 0).confidence_interval()
    assert 2 * half == pytest.approx(interval.high - interval.low, rel=0.01)
    assert bootstrap_variance(np.array([0.0, 1.0]), 1) == inf
    assert bootstrap_variance(np.zeros(4), 1) == 0
    assert SetSamples(samples, 12).variance == bootstrap_variance(samples, 12)


def test_what_the_bootstrap_misses() -> None:
    assert missing_error(0.5, 0.16) == pytest.approx(0.3)
    assert missing_error(0.1, 0.16) == 0


def test_the_erratum_of_the_study_follows_from_its_table() -> None:
    """The new half-width and p lie between those of sentences alone (normal) and of three seeds alone (t)."""
    text = (Path(__file__).parents[1] / "docs" / "results" / "study.md").read_text(encoding="utf-8")
    old, new = (
        [_cells(line) for line in text.partition(part)[2].splitlines()]
        for part in ("## Results", "## Erratum")
    )
    old, new = (
        [row for row in rows if row[:1] in (["Tagalog, Cebuano"], ["other languages"])][:12]
        for rows in (old, new)
    )
    for group in ("Tagalog, Cebuano", "other languages"):
        before, after = ([row for row in rows if row[0] == group] for rows in (old, new))
        differences = [float(row[5].replace("−", "-").replace("+", "")) for row in before]
        errors = [float(row[8]) / (stats.norm.ppf(0.975) + stats.norm.ppf(POWER)) for row in before]
        pattern = np.array([-1.0, 0.0, 1.0]) * sqrt(3)
        limits = [
            (SeedMean(np.full(3, gap), error**2, error**2), SeedMean(gap + error * pattern, 0.0, 0.0))
            for gap, error in zip(differences, errors, strict=True)
        ]
        lowest, highest = (holm([found[side].p for found in limits]) for side in (0, 1))
        for row, old_row, (one, other), low, high in zip(after, before, limits, lowest, highest, strict=True):
            assert (row[:4], row[6]) == ([*old_row[:3], old_row[5]], old_row[9])
            widths = [(found.interval[1] - found.interval[0]) / 2 for found in (one, other)]
            assert row[4] == f"{widths[0]:.1f} to {widths[1]:.1f}"
            assert row[5] == ("< 0.0001" if low < 0.0001 else f"{low:.4f}") + f" to {high:.4f}"
            assert row[7] == ("effect" if high < ALPHA else "undecidable" if low < ALPHA else "inconclusive")


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
