"""The bootstrap: against a plain loop, against cases that can be worked out, and its invariants."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.significance import Estimate, average, resampled_f1
from analysis.spans import micro_f1
from metapt.randomness import generator


def made_up(systems: int, sentences: int) -> np.ndarray:
    draw = generator(3, "test counts", systems, sentences)
    gold = draw.integers(0, 3, sentences)
    predicted = draw.integers(0, 3, (systems, sentences))
    correct = np.minimum(predicted, draw.integers(0, 3, (systems, sentences)))
    correct = np.minimum(correct, gold)
    return np.stack([correct, predicted, np.broadcast_to(gold, predicted.shape)], axis=-1)


def estimates(counts: np.ndarray, name: str = "set", resamples: int = 10_000) -> list[Estimate]:
    values = micro_f1(counts.sum(axis=1))
    samples = resampled_f1(counts, name, resamples)
    return [Estimate(float(value), row) for value, row in zip(values, samples, strict=True)]


def test_equals_a_loop_over_resamples_systems_and_sentences() -> None:
    counts = made_up(2, 11)
    found = resampled_f1(counts, "tl_trg", resamples=600, seed=5)
    for start in (0, 500):
        drawn = generator(5, "bootstrap/tl_trg", start).integers(0, 11, (min(500, 600 - start), 11))
        for resample, chosen in enumerate(drawn, start):
            for system in range(2):
                correct = predicted = gold = 0
                for sentence in chosen:
                    correct += counts[system, sentence, 0]
                    predicted += counts[system, sentence, 1]
                    gold += counts[system, sentence, 2]
                expected = 2 * correct / (predicted + gold) if predicted + gold else 0.0
                assert found[system, resample] == pytest.approx(expected)


def test_a_perfect_system_has_no_spread() -> None:
    (perfect,) = estimates(np.ones((1, 40, 3), dtype=int))
    assert perfect.value == 1
    assert perfect.interval == (1, 1)


def test_interval_of_a_binomial_share() -> None:
    """One gold and one predicted span in every sentence: F1 is a mean of zeros and ones, whose bootstrap is binomial."""
    n, right = 100, 30
    counts = np.ones((1, n, 3), dtype=int)
    counts[0, right:, 0] = 0
    (share,) = estimates(counts)
    deviation = np.sqrt(0.3 * 0.7 / n)
    assert share.samples.mean() == pytest.approx(0.3, abs=4 * deviation / 100)
    assert share.samples.std() == pytest.approx(deviation, rel=0.05)
    low, high = share.interval
    assert (low, high) == pytest.approx((0.21, 0.39), abs=0.0101)


def test_the_difference_of_a_system_and_itself_is_exactly_zero() -> None:
    counts = np.repeat(made_up(1, 50), 2, axis=0)
    one, other = estimates(counts)
    assert (one - other).interval == (0, 0)
    assert not (one - other).excludes_zero


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    counts = np.repeat(made_up(1, 60), 2, axis=0)
    counts[1, :10, 0] = 0
    paired = estimates(counts)
    (alone,) = estimates(counts[1:], name="drawn apart")
    narrow, wide = (gap.interval for gap in (paired[0] - paired[1], paired[0] - alone))
    assert narrow[1] - narrow[0] < wide[1] - wide[0]


def test_seeds_are_averaged_within_a_resample() -> None:
    parts = estimates(made_up(3, 25), resamples=100)
    mean = average(parts)
    np.testing.assert_allclose(mean.samples, np.mean([part.samples for part in parts], axis=0))
    assert mean.value == pytest.approx(np.mean([part.value for part in parts]))


def test_a_set_without_gold_spans_has_no_interval() -> None:
    counts = made_up(2, 12)
    counts[..., [0, 2]] = 0
    samples = resampled_f1(counts, "set", resamples=50)
    assert np.isnan(samples).all()
    assert np.isnan(Estimate(np.nan, samples[0]).interval).all()
    assert not Estimate(np.nan, samples[0]).excludes_zero


def test_relative_gain_is_undefined_where_the_reference_is_zero() -> None:
    zero, half = Estimate(0.0, np.zeros(4)), Estimate(0.5, np.full(4, 0.5))
    assert np.isnan(half.relative_to(zero).value)
    assert np.isnan(half.relative_to(zero).interval).all()
    assert half.relative_to(Estimate(0.4, np.full(4, 0.4))).interval == pytest.approx((0.25, 0.25))


def test_draws_depend_on_the_seed_and_the_set_only() -> None:
    counts = made_up(2, 30)
    alone = resampled_f1(counts[:1], "a", resamples=700)
    np.testing.assert_allclose(resampled_f1(counts, "a", resamples=700)[:1], alone)
    assert not np.array_equal(resampled_f1(counts[:1], "b", resamples=700), alone)
    assert not np.array_equal(resampled_f1(counts[:1], "a", resamples=700, seed=1), alone)
