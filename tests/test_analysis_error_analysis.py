"""Spans and the outcomes of gold spans, against seqeval and against all small cases."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
from analysis_runs import evaluation
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2, Entities

from analysis.load.records import Evaluation, GoldSet
from analysis.sections.error_analysis import tally
from metapt.data.iob2 import spans
from metapt.evaluation.bootstrap import micro_f1
from metapt.evaluation.span_f1 import Span, span_counts
from metapt.evaluation.span_matching import LENGTHS, OUTCOMES

Spans = Sequence[Sequence[Span]]
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
sentence_pairs = st.lists(
    st.integers(1, 8).flatmap(
        lambda size: st.tuples(*[st.lists(st.sampled_from(TAGS), min_size=size, max_size=size)] * 2)
    ),
    min_size=1,
    max_size=6,
)


@given(st.lists(st.sampled_from(TAGS), min_size=1, max_size=10))
def test_spans_agree_with_seqeval_in_strict_mode(tags: list[str]) -> None:
    expected = {(entity.tag, entity.start, entity.end) for entity in Entities([tags], IOB2).entities[0]}
    assert set(spans(tags)) == expected


@given(sentence_pairs)
def test_micro_f1_agrees_with_seqeval(pairs: list[tuple[list[str], list[str]]]) -> None:
    gold, predicted = ([list(pair[side]) for pair in pairs] for side in (0, 1))
    counts = span_counts([spans(tags) for tags in predicted], [spans(tags) for tags in gold])
    expected = f1_score(gold, predicted, mode="strict", scheme=IOB2, zero_division=0)
    np.testing.assert_allclose(micro_f1(counts.sum(axis=0)), expected)


def outcome(span: Span, predicted: Sequence[Span]) -> str:
    """The outcome of a gold span: a naive implementation of the definitions."""
    _, start, end = span
    if span in predicted:
        return "correct"
    if any(other[1:] == (start, end) for other in predicted):
        return "wrong type"
    overlaps = any(set(range(start, end)) & set(range(*other[1:])) for other in predicted)
    return "wrong boundary" if overlaps else "missed"


def expected_tally(gold: Spans, predicted: Spans) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for true, guessed in zip(gold, predicted, strict=True):
        words = {word for span in true for word in range(*span[1:])}
        found.update((length(span), outcome(span, guessed)) for span in true)
        found.update((length(span), "spurious") for span in guessed if not words & set(range(*span[1:])))
    return found


def length(span: Span) -> str:
    return "several words" if span[2] - span[1] > 1 else "one word"


def evaluated(gold: Spans, predicted: Spans, words: Sequence[int]) -> Evaluation:
    """Evaluate predictions for sentences with these numbers of words."""
    ids = tuple(str(index) for index in range(len(gold)))
    gold_set = GoldSet("x", ids, tuple(("w",) * count for count in words), tuple(map(tuple, gold)))
    found = evaluation(gold_set, predicted)
    assert (found.counts == span_counts(predicted, gold)).all()
    return found


def test_every_gold_span_has_exactly_one_outcome() -> None:
    """For all pairs of tag sequences of four words."""
    distinct = sorted({tuple(spans(tags)) for tags in itertools.product(TAGS, repeat=4)})
    for gold, predicted in itertools.product(distinct, repeat=2):
        found = tally([evaluated([gold], [predicted], [4])])
        assert found == expected_tally([gold], [predicted])
        assert sum(found[size, name] for size in LENGTHS for name in OUTCOMES) == len(gold)


@given(sentence_pairs)
def test_tally_is_the_sum_over_sentences(pairs: list[tuple[list[str], list[str]]]) -> None:
    gold, predicted = ([tuple(spans(pair[side])) for pair in pairs] for side in (0, 1))
    words = [len(tags) for tags, _ in pairs]
    found = evaluated(gold, predicted, words)
    assert tally([found, found]) == expected_tally(gold * 2, predicted * 2)
