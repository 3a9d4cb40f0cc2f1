"""Predicted entity spans against gold ones: what became of every gold span, and which predicted ones are spurious."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from metapt.data.iob2 import spans
from metapt.evaluation.span_f1 import Span, conlleval_spans

OUTCOMES = ("correct", "wrong type", "wrong boundary", "missed")
"""of a gold span: it was predicted; its words with another type; another span that shares a word with it; no such span"""
SPURIOUS = "spurious"
"""a predicted span that shares no word with a gold span"""
LENGTHS = ("one word", "several words")

Spans = tuple[Span, ...]


class TagSpans(NamedTuple):
    """The entity spans of a sentence's tags: in strict IOB2, and as the conlleval script finds them."""

    strict: Spans
    conlleval: Spans


class SentenceMatch(NamedTuple):
    """The spans of one sentence.

    Attributes:
        outcomes: the outcome of each gold span, as an index in OUTCOMES.
        cells: the cell of `SetMatch.tally` of each gold span and of each spurious predicted one.
        counts: (correct, predicted, gold).
    """

    outcomes: tuple[int, ...]
    cells: tuple[tuple[int, int], ...]
    counts: tuple[int, int, int]


class SetMatch(NamedTuple):
    """Arrays of a whole set, as `Evaluation` has them."""

    outcomes: np.ndarray
    tally: np.ndarray
    counts: np.ndarray


@lru_cache(maxsize=100_000)  # most sentences of most runs have the same tags
def spans_of_tags(tags: tuple[str, ...]) -> TagSpans:
    """Return the spans of a sentence's tags."""
    return TagSpans(tuple(spans(tags)), tuple(conlleval_spans(tags)))


@lru_cache(maxsize=100_000)
def match_sentence(gold: Spans, predicted: Spans) -> SentenceMatch:
    """Match the spans of one sentence. Within `gold`, and within `predicted`, no two spans share a word."""
    outcomes = tuple(OUTCOMES.index(_outcome(span, predicted)) for span in gold)
    cells = [(_length(span), outcome) for span, outcome in zip(gold, outcomes, strict=True)]
    spurious = [span for span in predicted if not any(_overlap(span, other) for other in gold)]
    cells += [(_length(span), len(OUTCOMES)) for span in spurious]
    return SentenceMatch(outcomes, tuple(cells), (outcomes.count(0), len(predicted), len(gold)))


def match_set(gold: Sequence[Spans], predicted: Sequence[Spans]) -> SetMatch:
    """Match the spans of all sentences of a set."""
    matches = [match_sentence(true, found) for true, found in zip(gold, predicted, strict=True)]
    outcomes = [outcome for match in matches for outcome in match.outcomes]
    tally = np.zeros((len(LENGTHS), len(OUTCOMES) + 1), dtype=np.int64)
    for cell, count in Counter(cell for match in matches for cell in match.cells).items():
        tally[cell] = count
    counts = np.array([match.counts for match in matches], dtype=np.int16).reshape(-1, 3)
    return SetMatch(np.array(outcomes, dtype=np.uint8), tally, counts)


def _outcome(span: Span, predicted: Spans) -> str:
    if span in predicted:
        return "correct"
    touching = [other[1:] for other in predicted if _overlap(span, other)]
    if not touching:
        return "missed"
    return "wrong type" if span[1:] in touching else "wrong boundary"


def _overlap(one: Span, other: Span) -> bool:
    return one[1] < other[2] and other[1] < one[2]


def _length(span: Span) -> int:
    """Return the index in LENGTHS."""
    return int(span[2] - span[1] > 1)
