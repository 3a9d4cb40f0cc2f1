"""Spans and the fates of gold spans, against seqeval and against every small case there is."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2, Entities

from analysis.collect import Evaluation, GoldSet
from analysis.errors import FATES, fate, is_spurious, tally
from metapt.data.iob2 import spans
from metapt.ner.resampling import micro_f1
from metapt.ner.scoring import count

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
sentence_pairs = st.lists(
    st.integers(1, 8).flatmap(
        lambda size: st.tuples(*[st.lists(st.sampled_from(TAGS), min_size=size, max_size=size)] * 2)
    ),
    min_size=1,
    max_size=6,
)


@given(st.lists(st.sampled_from(TAGS), min_size=1, max_size=10))
def test_spans_are_those_of_seqeval_in_strict_mode(tags: list[str]) -> None:
    expected = {(entity.tag, entity.start, entity.end) for entity in Entities([tags], IOB2).entities[0]}
    assert set(spans(tags)) == expected


@given(sentence_pairs)
def test_micro_f1_is_that_of_seqeval(pairs: list[tuple[list[str], list[str]]]) -> None:
    gold, predicted = ([list(pair[side]) for pair in pairs] for side in (0, 1))
    counts = count([spans(tags) for tags in predicted], [spans(tags) for tags in gold])
    expected = f1_score(gold, predicted, mode="strict", scheme=IOB2, zero_division=0)
    np.testing.assert_allclose(micro_f1(counts.sum(axis=0)), expected)


def test_every_gold_span_has_exactly_one_fate() -> None:
    """All pairs of tag sequences of four words, against the definitions spelt out one by one."""
    sequences = [tuple(spans(tags)) for tags in itertools.product(TAGS, repeat=4)]
    distinct = sorted(set(sequences))
    for gold, predicted in itertools.product(distinct, repeat=2):
        for span in gold:
            kind, start, end = span
            words = set(range(start, end))
            same = span in predicted
            same_words = any(other[1:] == (start, end) and other[0] != kind for other in predicted)
            touched = any(words & set(range(*other[1:])) for other in predicted)
            expected = {
                "correct": same,
                "wrong type": same_words and not same,
                "wrong boundary": touched and not same and not same_words,
                "missed": not touched,
            }
            assert [name for name in FATES if expected[name]] == [fate(span, predicted)]
        for span in predicted:
            words = set(range(*span[1:]))
            assert is_spurious(span, gold) == (not any(words & set(range(*other[1:])) for other in gold))


def test_tally_counts_by_length() -> None:
    gold = (("PER", 0, 1), ("LOC", 2, 4), ("ORG", 5, 6), ("PER", 7, 9)), ()
    predicted = (("PER", 0, 1), ("LOC", 2, 3), ("PER", 5, 6)), (("PER", 0, 2), ("LOC", 3, 4))
    words = (("w",) * 9, ("w",) * 4)
    evaluation = Evaluation(GoldSet("x", ("1", "2"), words, gold), predicted, count(predicted, gold), 0.0, {})
    assert tally([evaluation]) == {
        ("one word", "correct"): 1,
        ("several words", "wrong boundary"): 1,
        ("one word", "wrong type"): 1,
        ("several words", "missed"): 1,
        ("several words", "spurious"): 1,
        ("one word", "spurious"): 1,
    }
