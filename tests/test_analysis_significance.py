"""Bootstrap, randomization test and power against naive loops, exact enumeration, scipy and simulation; invariants."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.stats.significance import Difference, Estimate, average, average_difference, over_seeds
from metapt.evaluation.bootstrap import (
    f1_samples,
    micro_f1,
    minimum_detectable_effect,
    p_value,
    percentile_interval,
    seed_weights,
    swapped_differences,
)
from metapt.randomness import generator


def random_counts(systems: int, sentences: int) -> np.ndarray:
    draw = generator(3, "test counts", systems, sentences)
    gold = draw.integers(0, 3, sentences)
    predicted = draw.integers(0, 3, (systems, sentences))
    correct = np.minimum(predicted, draw.integers(0, 3, (systems, sentences)))
    correct = np.minimum(correct, gold)
    return np.stack([correct, predicted, np.broadcast_to(gold, predicted.shape)], axis=-1)


def estimates(counts: np.ndarray, name: str = "set", resamples: int = 10_000) -> list[Estimate]:
    values = micro_f1(counts.sum(axis=1))
    samples = f1_samples(counts, name, resamples)
    return [Estimate(float(value), row) for value, row in zip(values, samples, strict=True)]


def test_bootstrap_equals_a_loop() -> None:
    counts = random_counts(2, 11)
    found = f1_samples(counts, "tl_trg", resamples=600, seed=5)
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


def test_a_perfect_system_has_an_interval_of_width_zero() -> None:
    (perfect,) = estimates(np.ones((1, 40, 3), dtype=int))
    assert perfect.value == 1
    assert perfect.interval == (1, 1)


def test_interval_of_a_binomial_proportion() -> None:
    """With one gold and one predicted span in every sentence, F1 is a mean of zeros and ones, and its bootstrap is binomial."""
    n, right = 100, 30
    counts = np.ones((1, n, 3), dtype=int)
    counts[0, right:, 0] = 0
    (proportion,) = estimates(counts)
    deviation = np.sqrt(0.3 * 0.7 / n)
    assert proportion.samples.mean() == pytest.approx(0.3, abs=4 * deviation / 100)
    assert proportion.samples.std() == pytest.approx(deviation, rel=0.05)
    low, high = proportion.interval
    assert (low, high) == pytest.approx((0.21, 0.39), abs=0.0101)


def test_a_system_does_not_differ_from_itself() -> None:
    counts = np.repeat(random_counts(1, 50), 2, axis=0)
    one, other = estimates(counts)
    assert (one - other).interval == (0, 0)
    assert not Difference(one, other, np.zeros(1)).summary.excludes_zero


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    counts = np.repeat(random_counts(1, 60), 2, axis=0)
    counts[1, :10, 0] = 0
    paired = estimates(counts)
    (alone,) = estimates(counts[1:], name="other resamples")
    narrow, wide = (gap.interval for gap in (paired[0] - paired[1], paired[0] - alone))
    assert narrow[1] - narrow[0] < wide[1] - wide[0]


def test_a_set_without_gold_spans_has_no_interval() -> None:
    counts = random_counts(2, 12)
    counts[..., [0, 2]] = 0
    samples = f1_samples(counts, "set", resamples=50)
    assert np.isnan(samples).all()
    unknown = Estimate(np.nan, samples[0])
    assert np.isnan(unknown.interval).all()
    assert not Difference(unknown, unknown, samples[0]).summary.excludes_zero


def test_relative_gain_is_undefined_where_the_reference_is_zero() -> None:
    zero, half = Estimate(0.0, np.zeros(4)), Estimate(0.5, np.full(4, 0.5))
    assert np.isnan(half.relative_to(zero).value)
    assert np.isnan(half.relative_to(zero).interval).all()
    assert half.relative_to(Estimate(0.4, np.full(4, 0.4))).interval == pytest.approx((0.25, 0.25))


def test_resamples_depend_on_the_seed_and_the_set_only() -> None:
    counts = random_counts(2, 30)
    alone = f1_samples(counts[:1], "a", resamples=700)
    np.testing.assert_allclose(f1_samples(counts, "a", resamples=700)[:1], alone)
    assert not np.array_equal(f1_samples(counts[:1], "b", resamples=700), alone)
    assert not np.array_equal(f1_samples(counts[:1], "a", resamples=700, seed=1), alone)


def difference(counts: np.ndarray, name: str = "set", resamples: int = 10_000) -> Difference:
    """Compare two systems [2, sentences, 3]."""
    first, second = estimates(counts, name, resamples)
    return Difference(first, second, swapped_differences(counts[:1], counts[1:], name, resamples)[0])


def binary(hits: np.ndarray) -> np.ndarray:
    """Return counts with one gold and one predicted span per sentence, correct where `hits` [..., sentences] is 1."""
    counts = np.ones((*hits.shape, 3), dtype=int)
    counts[..., 0] = hits
    return counts


def exact_p(counts: np.ndarray) -> float:
    """The fraction of all 2 ** sentences swaps of [2, pairs, sentences, 3] with a mean difference as large as observed."""

    def gap(arranged: np.ndarray) -> float:
        first, second = micro_f1(arranged.sum(axis=2))
        return abs(float(np.mean(first - second)))

    observed = gap(counts)
    found = []
    for swaps in product((False, True), repeat=counts.shape[2]):
        arranged = np.where(np.array(swaps)[None, None, :, None], counts[::-1], counts)
        found.append(gap(arranged) >= observed - 1e-12)
    return float(np.mean(found))


@pytest.mark.parametrize("sentences", [1, 4, 9])
def test_p_equals_that_of_all_swaps(sentences: int) -> None:
    counts = random_counts(2, sentences)
    exact = exact_p(counts[:, None])
    assert difference(counts).p == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 10_000) + 2e-4)


def test_seeds_are_swapped_together() -> None:
    """Three seeds with the same errors are no more evidence than one."""
    counts = random_counts(6, 8).reshape(2, 3, 8, 3)
    swapped = swapped_differences(*counts, "set").mean(axis=0)
    observed = float(np.subtract(*micro_f1(counts.sum(axis=2))).mean())
    assert p_value(observed, swapped) == pytest.approx(exact_p(counts), abs=0.02)
    again = np.repeat(counts[:, :1], 3, axis=1)
    alone, repeated = (swapped_differences(*each, "set") for each in (counts[:, :1], again))
    np.testing.assert_array_equal(repeated, np.repeat(alone, 3, axis=0))


def test_p_and_interval_agree_with_scipy() -> None:
    draw = generator(1, "scipy")
    hits = (draw.random((2, 80)) < [[0.65], [0.45]]).astype(int)
    found = difference(binary(hits))

    def gap(one: np.ndarray, other: np.ndarray, axis: int = -1) -> np.ndarray:
        return one.mean(axis=axis) - other.mean(axis=axis)

    test = stats.permutation_test(hits, gap, permutation_type="samples", n_resamples=9999, rng=draw)
    assert found.p == pytest.approx(test.pvalue, abs=0.01)
    bootstrap = stats.bootstrap(hits, gap, paired=True, method="percentile", n_resamples=9999, rng=draw)
    assert found.estimate.interval == pytest.approx(tuple(bootstrap.confidence_interval), abs=0.0126)
    assert found.summary.mde == pytest.approx(
        (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * bootstrap.standard_error, rel=0.04
    )


@pytest.mark.parametrize(("wins", "losses"), [(5, 0), (9, 2), (3, 3)])
def test_p_of_wins_and_losses_is_the_sign_test(wins: int, losses: int) -> None:
    """With one span per sentence, only sentences that one system alone gets right matter, and each is a fair coin."""
    hits = np.ones((2, 40), dtype=int)
    hits[1, :wins] = 0
    hits[0, wins : wins + losses] = 0
    exact = stats.binomtest(wins, wins + losses).pvalue
    assert difference(binary(hits)).p == pytest.approx(exact, abs=0.02)


def test_p_is_uniform_where_there_is_no_difference() -> None:
    """For two equal systems, about one test in twenty rejects at level 0.05."""
    draw = generator(2, "null")
    rejected = [
        difference(binary((draw.random((2, 60)) < 0.5).astype(int)), str(trial), 400).p <= 0.05
        for trial in range(400)
    ]
    assert 0.01 <= np.mean(rejected) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(0, 2**32 - 1))
def test_exchanging_the_systems_changes_the_sign(sentences: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    counts = binary(draw.integers(0, 2, (2, sentences)))
    counts[:, :, 1] += draw.integers(0, 2, (2, sentences))
    one, other = difference(counts, resamples=300), difference(counts[::-1], resamples=300)
    np.testing.assert_allclose(one.estimate.samples, -other.estimate.samples)
    np.testing.assert_allclose(one.swapped, -other.swapped, atol=1e-12)
    assert one.p == other.p
    assert one.summary.mde == pytest.approx(other.summary.mde, nan_ok=True)


def test_the_order_of_sentences_matters_little() -> None:
    counts = random_counts(2, 50)
    reversed_counts = counts[:, ::-1]
    one, other = difference(counts), difference(reversed_counts)
    assert one.estimate.value == other.estimate.value
    assert one.p == pytest.approx(other.p, abs=0.03)
    assert one.estimate.interval == pytest.approx(other.estimate.interval, abs=0.01)


def test_swaps_depend_on_the_seed_and_the_set_only() -> None:
    counts = random_counts(4, 30)
    alone = swapped_differences(counts[:1], counts[1:2], "a", resamples=700)
    together = swapped_differences(counts[[0, 2]], counts[[1, 3]], "a", resamples=700)
    np.testing.assert_allclose(together[:1], alone, atol=1e-12)
    assert not np.array_equal(swapped_differences(counts[:1], counts[1:2], "b", resamples=700), alone)
    assert not np.array_equal(swapped_differences(counts[:1], counts[1:2], "a", 700, seed=1), alone)


def test_equal_systems_have_p_1_and_no_minimum_detectable_effect() -> None:
    same = difference(np.repeat(random_counts(1, 20), 2, axis=0))
    assert same.p == 1
    assert np.isnan(same.summary.mde)


@pytest.mark.parametrize("sentences", [50, 150])
def test_intervals_cover_the_truth(sentences: int) -> None:
    """Spans per sentence are random; the true F1 is 2 E(correct) / (E(predicted) + E(gold))."""
    draw = generator(4, "coverage", sentences)

    def sample(size: tuple[int, ...]) -> np.ndarray:
        gold, spurious = draw.poisson(0.8, size), draw.poisson(0.3, size)
        correct = draw.binomial(gold, 0.6)
        return np.stack([correct, correct + spurious, gold], axis=-1)

    truth = 2 * 0.6 * 0.8 / (0.6 * 0.8 + 0.3 + 0.8)
    assert micro_f1(sample((200_000,)).sum(axis=0)) == pytest.approx(truth, abs=0.01)
    samples = f1_samples(sample((600, sentences)), "coverage", resamples=1000)
    low, high = np.array([percentile_interval(row) for row in samples]).T
    assert 0.95 - 0.035 <= np.mean((low <= truth) & (truth <= high)) <= 0.98


def test_the_minimum_detectable_effect_has_a_power_of_80_percent() -> None:
    """If the true difference is the MDE of a pilot study, about 80 % of new sets show it."""
    draw = generator(5, "power")

    def pairs(count: int, gap: float) -> np.ndarray:
        """Two systems that agree on three sentences of four. [2 * count, 120, 3]"""
        shared, alone = draw.random((count, 120)) < 0.5, draw.random((2, count, 120))
        own = alone < np.array([0.5 + 2 * gap, 0.5 - 2 * gap])[:, None, None]
        hits = np.where(draw.random((count, 120)) < 0.75, shared, own)
        return binary(hits.reshape(2 * count, 120).astype(int))

    def gaps(count: int, gap: float) -> np.ndarray:
        first, second = np.split(f1_samples(pairs(count, gap), "power", resamples=600), 2)
        return first - second

    effect = float(np.mean([minimum_detectable_effect(row) for row in gaps(100, 0.05)]))
    intervals = [percentile_interval(row) for row in gaps(600, effect)]
    assert np.mean([low > 0 for low, _ in intervals]) == pytest.approx(0.8, abs=0.07)


def test_only_seeds_with_different_scores_widen_the_interval() -> None:
    parts = estimates(random_counts(3, 25), resamples=4000)
    mean = over_seeds(parts, "tiny/")
    assert mean.value == pytest.approx(np.mean([part.value for part in parts]))
    np.testing.assert_allclose(over_seeds(parts[:1] * 3, "tiny/").samples, parts[0].samples)
    np.testing.assert_array_equal(over_seeds(parts[:1], "tiny/").samples, parts[0].samples)
    assert mean.samples.std() > average(parts).samples.std()


def test_seed_weights() -> None:
    weights = seed_weights(4, "tiny/", 20_000)
    np.testing.assert_allclose(weights.sum(axis=0), 1)
    np.testing.assert_allclose(weights.mean(axis=1), 0.25, atol=0.01)
    values = np.array([0.1, 0.2, 0.4, 0.9])
    assert (weights.T @ values).var() == pytest.approx(values.var(ddof=1) / 4, rel=0.05)
    np.testing.assert_array_equal(weights, seed_weights(4, "tiny/", 20_000))
    assert not np.array_equal(weights, seed_weights(4, "small/", 20_000))


def test_an_interval_over_sentences_alone_covers_too_little() -> None:
    """Six seeds of a model whose true F1 varies by seed; the estimand is the mean over all possible seeds."""
    draw = generator(6, "seeds")
    covered = {"sentences": 0, "both": 0}
    for trial in range(150):
        skill = np.clip(draw.normal(0.5, 0.08, 6), 0, 1)
        runs = estimates(binary((draw.random((6, 200)) < skill[:, None]).astype(int)), str(trial), 400)
        for name, mean in (("sentences", average(runs)), ("both", over_seeds(runs, str(trial)))):
            low, high = mean.interval
            covered[name] += low <= 0.5 <= high
    assert covered["sentences"] / 150 < 0.75
    assert covered["both"] / 150 > 0.83


def test_p_of_an_average_over_sets() -> None:
    parts = [difference(random_counts(2, 12), name) for name in ("a", "b")]
    mean = average_difference(parts)
    assert mean.estimate.value == pytest.approx(np.mean([part.estimate.value for part in parts]))
    np.testing.assert_allclose(mean.swapped, (parts[0].swapped + parts[1].swapped) / 2)
    assert 0 < mean.p <= 1
