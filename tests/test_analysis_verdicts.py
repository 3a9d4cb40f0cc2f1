"""Verdicts of differences with given seed values and variance over units."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.stats.verdicts import EFFECT, INCONCLUSIVE, NEGLIGIBLE, NO_VERDICT, definition, verdict
from metapt.evaluation.seed_inference import SeedMean

MARGIN = 0.02


@pytest.mark.parametrize(
    ("values", "error", "corrected_p", "expected"),
    [
        ([0.05, 0.06, 0.07], 0.001, 0.01, EFFECT),
        ([-0.05, -0.06, -0.07], 0.001, 0.01, EFFECT),
        ([0.05, 0.06, 0.07], 0.001, 0.2, INCONCLUSIVE),
        ([-0.001, 0.0, 0.001], 0.001, 1.0, NEGLIGIBLE),
        ([-0.001, 0.0, 0.001], 0.011, 1.0, INCONCLUSIVE),
        ([0.015, 0.016, 0.017], 0.003, 1.0, INCONCLUSIVE),
        ([0.05, 0.06], 0.001, 0.01, NO_VERDICT),
        ([0.0], 0.001, float("nan"), NO_VERDICT),
    ],
)
def test_verdicts(values: list[float], error: float, corrected_p: float, expected: str) -> None:
    assert verdict(SeedMean(np.array(values), error**2, error**2), corrected_p, MARGIN) == expected


@given(st.lists(st.floats(-0.3, 0.3), min_size=3, max_size=6), st.floats(0, 0.05), st.integers(1, 12))
def test_an_effect_has_an_interval_that_excludes_0(values: list[float], error: float, family: int) -> None:
    found = SeedMean(np.array(values), error**2, error**2)
    low, high = found.interval
    said = verdict(found, min(1.0, family * found.p), MARGIN)
    if said == EFFECT:
        assert low > 0 or high < 0
    if said == NEGLIGIBLE:
        assert max(-low, high) < MARGIN


def test_the_margin_is_a_setting() -> None:
    found = SimpleNamespace(seeds=3, interval=(-0.03, 0.03))
    assert verdict(found, 1.0, 0.04) == NEGLIGIBLE  # type: ignore[arg-type]
    assert verdict(found, 1.0, 0.03) == INCONCLUSIVE  # type: ignore[arg-type]
    assert "2 points, unless" in definition()
