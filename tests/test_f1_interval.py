"""Confidence intervals of a micro-F1, of differences and of means: references, invariants, edge cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from metapt.evaluation.bootstrap import micro_f1
from metapt.evaluation.f1_interval import clopper_pearson, f1_difference_interval, f1_interval, mean_interval


@st.composite
def span_counts(draw: st.DrawFn, systems: int = 1) -> tuple[np.ndarray, ...]:
    """Counts of systems on the same sentences, of which one has a gold span, and the document of each sentence."""
    sentences = draw(st.integers(1, 12))
    sizes = st.lists(st.integers(0, 4), min_size=sentences, max_size=sentences)
    gold = np.array(draw(sizes))
    gold[0] += not gold.any()
    tables = []
    for _ in range(systems):
        correct = np.minimum(draw(sizes), gold)
        tables.append(np.stack([correct, correct + draw(sizes), gold], axis=1))
    return (*tables, np.array(draw(sizes)))


def test_equals_clopper_pearson_if_no_sentence_has_two_spans():
    """Then the design effect is 1, and only the factor (z / t)^2 is left; with 100,000 sentences it is 1 too."""
    counts = np.zeros((100_000, 3), dtype=np.int64)
    counts[:, 2] = 1
    counts[:130, :2] = 1
    expected = binomtest(130, 100_000).proportion_ci(0.9)
    assert f1_interval(counts, level=0.9) == pytest.approx(
        [2 * limit / (1 + limit) for limit in (expected.low, expected.high)], rel=1e-4
    )


@given(st.integers(0, 60), st.integers(1, 60), st.floats(0.5, 0.999))
def test_clopper_pearson_equals_scipy(successes, trials, level):
    expected = binomtest(min(successes, trials), trials).proportion_ci(level)
    found = clopper_pearson(min(successes, trials), trials, level)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(span_counts())
def test_contains_the_score_and_grows_with_the_level(case):
    counts, units = case
    score = micro_f1(counts.sum(axis=0))
    for unit in (None, units):
        low, high = f1_interval(counts, unit)
        wider_low, wider_high = f1_interval(counts, unit, level=0.99)
        assert 0 <= wider_low <= low <= score <= high <= wider_high <= 1
        assert low < high


@given(span_counts(), st.randoms(use_true_random=False))
def test_order_and_names_of_sentences_and_units_change_nothing(case, random):
    counts, units = case
    order = random.sample(range(len(counts)), len(counts))
    assert f1_interval(counts[order], 100 - units[order]) == pytest.approx(
        f1_interval(counts, units), abs=1e-12
    )
    assert f1_interval(counts[order]) == pytest.approx(f1_interval(counts), abs=1e-12)


@given(span_counts())
def test_sentences_without_any_span_change_nothing(case):
    counts, units = case
    more = np.concatenate([counts, np.zeros((3, 3), dtype=int)])
    assert f1_interval(more) == pytest.approx(f1_interval(counts))
    assert f1_interval(more, [*units, 0, 8, 9]) == pytest.approx(f1_interval(counts, units))


@given(span_counts())
def test_four_times_the_data_give_a_narrower_interval(case):
    counts, _ = case
    (low, high), (other_low, other_high) = f1_interval(counts), f1_interval(np.tile(counts, (4, 1)))
    assert other_high - other_low < high - low


@given(st.integers(2, 60), st.data())
def test_one_more_correct_span_moves_both_limits_up(sentences, data):
    """For sentences of one gold span each, of which the first are found."""
    counts = np.zeros((sentences, 3), dtype=np.int64)
    counts[:, 2] = 1
    counts[: data.draw(st.integers(0, sentences - 1)), :2] = 1
    more = counts.copy()
    more[counts[:, 0].sum(), :2] = 1
    assert f1_interval(more)[0] > f1_interval(counts)[0]
    assert f1_interval(more)[1] >= f1_interval(counts)[1]


def test_a_score_is_undefined_without_gold_spans():
    for counts in (np.zeros((4, 3), dtype=int), np.array([[0, 2, 0]]), np.empty((0, 3), dtype=int)):
        assert np.isnan(f1_interval(counts)).all()
        assert np.isnan(f1_difference_interval(counts, counts)).all()


@pytest.mark.parametrize("predicted", [0, 1])
def test_nothing_correct_has_a_lower_limit_of_0_and_an_upper_limit_above_0(predicted):
    low, high = f1_interval(np.tile([0, predicted, 1], (33, 1)))
    assert low == 0
    assert 0.05 < high < 0.25


def test_everything_correct_has_an_upper_limit_of_1_and_a_lower_limit_below_1():
    low, high = f1_interval(np.tile([1, 1, 1], (33, 1)))
    assert 0.85 < low < 0.97
    assert high == 1


@pytest.mark.parametrize("units", [None, np.zeros(1, dtype=int)])
def test_one_sentence_counts_as_one_span(units):
    """Nothing is known about the other units: the interval is that of one trial."""
    assert f1_interval(np.array([[0, 0, 5]]), units) == pytest.approx((0, 2 * 0.975 / 1.975))
    assert f1_interval(np.array([[5, 5, 5]]), units) == pytest.approx((2 * 0.025 / 1.025, 1))


@given(span_counts())
def test_units_count_as_the_sums_of_their_sentences(case):
    counts, units = case
    sums = np.stack([counts[units == unit].sum(axis=0) for unit in np.unique(units)])
    assert f1_interval(counts, units) == pytest.approx(f1_interval(sums))


def test_all_spans_in_one_unit_count_as_one_span():
    counts = np.array([[1, 2, 3], [2, 2, 2], [0, 0, 0]])
    assert f1_interval(counts, np.array([4, 4, 7])) == f1_interval(counts, np.zeros(3, dtype=int))
    assert f1_interval(counts, np.array([4, 4, 7])) == f1_interval(counts.sum(axis=0, keepdims=True))


def test_dependent_spans_of_a_document_widen_the_interval():
    """Twenty documents of ten sentences, in which either all spans are found or none."""
    counts = np.tile([1, 1, 1], (200, 1))
    counts[:100, :2] = 0
    low, high = f1_interval(counts, np.arange(200) // 10)
    sentence_low, sentence_high = f1_interval(counts)
    assert (high - low) / (sentence_high - sentence_low) == pytest.approx(math.sqrt(10), rel=0.2)


@given(span_counts(2))
@settings(max_examples=200)
def test_difference_is_antisymmetric_and_contains_its_estimate(case):
    first, second, units = case
    low, high = f1_difference_interval(first, second, units)
    other_low, other_high = f1_difference_interval(second, first, units)
    assert (low, high) == pytest.approx((-other_high, -other_low))
    assert low + 1e-12 >= -1
    assert low <= micro_f1(first.sum(axis=0)) - micro_f1(second.sum(axis=0)) <= high <= 1 + 1e-12


@pytest.mark.parametrize("correct", [0, 1, 20, 33])
def test_two_systems_with_the_same_counts_have_an_interval_around_0(correct):
    counts = np.tile([0, 0, 1], (33, 1))
    counts[:correct, :2] = 1
    low, high = f1_difference_interval(counts, counts)
    assert low < 0 < high


def test_difference_of_unpaired_scores_is_refused():
    counts = np.array([[0, 1, 1], [1, 1, 1]])
    with pytest.raises(ValueError, match="same sentences"):
        f1_difference_interval(counts, counts[:1])
    with pytest.raises(ValueError, match="same sentences"):
        f1_difference_interval(counts, np.array([[0, 1, 2], [1, 1, 1]]))


@pytest.mark.parametrize(
    "counts", [np.zeros(3), np.zeros((3, 2)), np.array([[2, 1, 3]]), np.array([[0, -1, 3]])]
)
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="count"):
        f1_interval(counts)


def test_small_integer_types_do_not_overflow():
    counts = np.tile([100, 200, 200], (5, 1))
    assert f1_interval(counts.astype(np.uint8)) == f1_interval(counts)
    assert f1_difference_interval(*[counts.astype(np.uint8)] * 2) == f1_difference_interval(counts, counts)


def test_units_of_other_sentences_are_refused():
    with pytest.raises(ValueError, match="2 sentences, but units"):
        f1_interval(np.ones((2, 3), dtype=int), np.zeros(3, dtype=int))


def test_mean_of_normal_intervals_is_that_of_the_summed_variances():
    low, high = mean_interval([0.5, 0.1, 0.3], [(0.3, 0.7), (0.0, 0.2), (0.1, 0.5)])
    assert (low + high) / 2 == pytest.approx(0.3)
    assert (high - low) / 2 == pytest.approx(math.sqrt(0.2**2 + 0.1**2 + 0.2**2) / 3)


def test_mean_of_one_is_itself_and_of_an_undefined_score_is_undefined():
    assert mean_interval([0.5], [(0.2, 0.6)]) == pytest.approx((0.2, 0.6))
    assert np.isnan(mean_interval([0.5, np.nan], [(0.2, 0.6), (np.nan, np.nan)])).all()
