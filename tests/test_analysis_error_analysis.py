"""Spans and the fates of gold spans, against seqeval and against every small case there is."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2, Entities

from analysis.load.records import Evaluation, GoldSet
from analysis.load.span_matching import OUTCOMES, LENGTHS, Gold, packed
from analysis.sections.error_analysis import tally
from metapt.data.iob2 import spans
from metapt.evaluation.bootstrap import micro_f1
from metapt.evaluation.span_f1 import Span, span_counts

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
def test_spans_are_those_of_seqeval_in_strict_mode(tags: list[str]) -> None:
    expected = {(entity.tag, entity.start, entity.end) for entity in Entities([tags], IOB2).entities[0]}
    assert set(spans(tags)) == expected


@given(sentence_pairs)
def test_micro_f1_is_that_of_seqeval(pairs: list[tuple[list[str], list[str]]]) -> None:
    gold, predicted = ([list(pair[side]) for pair in pairs] for side in (0, 1))
    counts = span_counts([spans(tags) for tags in predicted], [spans(tags) for tags in gold])
    expected = f1_score(gold, predicted, mode="strict", scheme=IOB2, zero_division=0)
    np.testing.assert_allclose(micro_f1(counts.sum(axis=0)), expected)


def fate(span: Span, predicted: Sequence[Span]) -> str:
    """The fate of a gold span, by the definitions spelt out word by word."""
    _, start, end = span
    if span in predicted:
        return "correct"
    if any(other[1:] == (start, end) for other in predicted):
        return "wrong type"
    touched = any(set(range(start, end)) & set(range(*other[1:])) for other in predicted)
    return "wrong boundary" if touched else "missed"


def expected_tally(gold: Spans, predicted: Spans) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for true, guessed in zip(gold, predicted, strict=True):
        words = {word for span in true for word in range(*span[1:])}
        found.update((length(span), fate(span, guessed)) for span in true)
        found.update((length(span), "spurious") for span in guessed if not words & set(range(*span[1:])))
    return found


def length(span: Span) -> str:
    return "several words" if span[2] - span[1] > 1 else "one word"


def evaluated(gold: Spans, predicted: Spans, words: Sequence[int]) -> Evaluation:
    """Predictions for sentences of so many words."""
    ids = tuple(str(index) for index in range(len(gold)))
    golden = GoldSet("x", ids, tuple(("w",) * count for count in words), tuple(map(tuple, gold)))
    [matches] = Gold([(gold, words)]).matches(list(map(packed, predicted)))
    found = Evaluation.of(golden, matches, {})
    assert (found.counts == span_counts(predicted, gold)).all()
    return found


def test_every_gold_span_has_exactly_one_fate() -> None:
    """All pairs of tag sequences of four words, each pair by itself."""
    distinct = sorted({tuple(spans(tags)) for tags in itertools.product(TAGS, repeat=4)})
    for gold, predicted in itertools.product(distinct, repeat=2):
        found = tally([evaluated([gold], [predicted], [4])])
        assert found == expected_tally([gold], [predicted])
        assert sum(found[size, name] for size in LENGTHS for name in OUTCOMES) == len(gold)


@given(sentence_pairs)
def test_sentences_are_tallied_as_each_by_itself(pairs: list[tuple[list[str], list[str]]]) -> None:
    gold, predicted = ([tuple(spans(pair[side])) for pair in pairs] for side in (0, 1))
    words = [len(tags) for tags, _ in pairs]
    evaluation = evaluated(gold, predicted, words)
    assert tally([evaluation, evaluation]) == expected_tally(gold * 2, predicted * 2)


@given(st.lists(sentence_pairs, min_size=1, max_size=4))
def test_sets_are_matched_together_as_each_by_itself(sets: list[list[tuple[list[str], list[str]]]]) -> None:
    gold = [([tuple(spans(true)) for true, _ in pairs], [len(true) for true, _ in pairs]) for pairs in sets]
    predicted = [[packed(spans(guessed)) for _, guessed in pairs] for pairs in sets]
    together = Gold(gold).matches(list(itertools.chain(*predicted)))
    for one, found, guessed in zip(gold, together, predicted, strict=True):
        [alone] = Gold([one]).matches(guessed)
        for field in ("fates", "tally", "counts"):
            np.testing.assert_array_equal(getattr(found, field), getattr(alone, field))
