"""Bootstrap and randomization test of micro-F1 against naive loops, exact enumeration and scipy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats
from span_counts import binary, random_counts

from metapt.evaluation.bootstrap import (
    by_unit,
    f1_samples,
    micro_f1,
    p_value,
    swapped_differences,
)
from metapt.randomness import generator


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


def test_bootstrap_of_a_binomial_proportion() -> None:
    """With one gold and one predicted span in every sentence, F1 is a mean of zeros and ones, and its bootstrap is binomial."""
    n, right = 100, 30
    counts = np.ones((1, n, 3), dtype=int)
    counts[0, right:, 0] = 0
    (samples,) = f1_samples(counts, "set")
    deviation = np.sqrt(0.3 * 0.7 / n)
    assert samples.mean() == pytest.approx(0.3, abs=4 * deviation / 100)
    assert samples.std() == pytest.approx(deviation, rel=0.05)
    assert np.quantile(samples, [0.025, 0.975]) == pytest.approx([0.21, 0.39], abs=0.0101)


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    counts = np.repeat(random_counts(1, 60), 2, axis=0)
    counts[1, :10, 0] = 0
    paired = f1_samples(counts, "set")
    (alone,) = f1_samples(counts[1:], "other resamples")
    assert np.std(paired[0] - paired[1]) < np.std(paired[0] - alone)


def test_resamples_depend_on_the_seed_and_the_set_only() -> None:
    counts = random_counts(2, 30)
    alone = f1_samples(counts[:1], "a", resamples=700)
    np.testing.assert_allclose(f1_samples(counts, "a", resamples=700)[:1], alone)
    assert not np.array_equal(f1_samples(counts[:1], "b", resamples=700), alone)
    assert not np.array_equal(f1_samples(counts[:1], "a", resamples=700, seed=1), alone)


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


def random_p(counts: np.ndarray, name: str = "set", resamples: int = 10_000) -> float:
    """The p-value of the randomization test on counts [2, pairs, sentences, 3]."""
    observed = float(np.subtract(*micro_f1(counts.sum(axis=2))).mean())
    return p_value(observed, swapped_differences(*counts, name, resamples).mean(axis=0))


@pytest.mark.parametrize("sentences", [1, 4, 9])
def test_p_equals_that_of_all_swaps(sentences: int) -> None:
    counts = random_counts(2, sentences)[:, None]
    exact = exact_p(counts)
    assert random_p(counts) == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 10_000) + 2e-4)


def test_seeds_are_swapped_together() -> None:
    """Three seeds with the same errors are no more evidence than one."""
    counts = random_counts(6, 8).reshape(2, 3, 8, 3)
    swapped = swapped_differences(*counts, "set").mean(axis=0)
    observed = float(np.subtract(*micro_f1(counts.sum(axis=2))).mean())
    assert p_value(observed, swapped) == pytest.approx(exact_p(counts), abs=0.02)
    again = np.repeat(counts[:, :1], 3, axis=1)
    alone, repeated = (swapped_differences(*each, "set") for each in (counts[:, :1], again))
    np.testing.assert_array_equal(repeated, np.repeat(alone, 3, axis=0))


def test_p_agrees_with_scipy() -> None:
    draw = generator(1, "scipy")
    hits = (draw.random((2, 80)) < [[0.65], [0.45]]).astype(int)

    def gap(one: np.ndarray, other: np.ndarray, axis: int = -1) -> np.ndarray:
        return one.mean(axis=axis) - other.mean(axis=axis)

    test = stats.permutation_test(hits, gap, permutation_type="samples", n_resamples=9999, rng=draw)
    assert random_p(binary(hits)[:, None]) == pytest.approx(test.pvalue, abs=0.01)
    bootstrap = stats.bootstrap(hits, gap, paired=True, method="percentile", n_resamples=9999, rng=draw)
    one, other = f1_samples(binary(hits), "set")
    assert np.std(one - other) == pytest.approx(bootstrap.standard_error, rel=0.04)


@pytest.mark.parametrize(("wins", "losses"), [(5, 0), (9, 2), (3, 3)])
def test_p_of_wins_and_losses_is_the_sign_test(wins: int, losses: int) -> None:
    """With one span per sentence, only sentences that one system alone gets right matter, and each is a fair coin."""
    hits = np.ones((2, 40), dtype=int)
    hits[1, :wins] = 0
    hits[0, wins : wins + losses] = 0
    exact = stats.binomtest(wins, wins + losses).pvalue
    assert random_p(binary(hits)[:, None]) == pytest.approx(exact, abs=0.02)


def test_p_is_uniform_where_there_is_no_difference() -> None:
    """For two equal systems, about one test in twenty rejects at level 0.05."""
    draw = generator(2, "null")
    rejected = [
        random_p(binary((draw.random((2, 60)) < 0.5).astype(int))[:, None], str(trial), 400) <= 0.05
        for trial in range(400)
    ]
    assert 0.01 <= np.mean(rejected) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_swaps_depend_on_the_seed_and_the_set_only() -> None:
    counts = random_counts(4, 30)
    alone = swapped_differences(counts[:1], counts[1:2], "a", resamples=700)
    together = swapped_differences(counts[[0, 2]], counts[[1, 3]], "a", resamples=700)
    np.testing.assert_allclose(together[:1], alone, atol=1e-12)
    assert not np.array_equal(swapped_differences(counts[:1], counts[1:2], "b", resamples=700), alone)
    assert not np.array_equal(swapped_differences(counts[:1], counts[1:2], "a", 700, seed=1), alone)


def test_counts_of_documents_are_sums_over_their_sentences() -> None:
    counts = random_counts(2, 5)
    np.testing.assert_array_equal(by_unit(counts, np.arange(5)), counts)
    expected = np.stack([counts[:, [0, 3]].sum(axis=1), counts[:, 1], counts[:, [2, 4]].sum(axis=1)], axis=1)
    np.testing.assert_array_equal(by_unit(counts, np.array([0, 1, 2, 0, 2])), expected)
