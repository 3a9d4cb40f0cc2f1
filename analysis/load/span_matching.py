"""The entity spans of whole sets at once: where they stand among all words, and what became of every gold one.

All sets of a run are matched together: of so few spans, the calls cost more than the work.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, pairwise

import numpy as np

from metapt.evaluation.span_f1 import Span

FATES = ("correct", "wrong type", "wrong boundary", "missed")
"""of a gold span: predicted; the same words with another type; another span that shares a word with it; none"""
LENGTHS = ("one word", "several words")
COLUMNS = len(FATES) + 1  # of a tally: the spurious ones stand last
CELLS = len(LENGTHS) * COLUMNS
TYPE_NUMBERS: defaultdict[str, int] = defaultdict(count().__next__)
"""a number for each entity type, as they come: another one in another process"""
FIELDS = 3


def packed(spans: Sequence[Span]) -> bytes:
    """The spans of a sentence, (number of the type, start, end) of each in turn: what `Spans.of` is fast with."""
    return array(
        "i", [part for kind, start, end in spans for part in (TYPE_NUMBERS[kind], start, end)]
    ).tobytes()


@dataclass(frozen=True, eq=False)
class Spans:
    """The spans of a set in order, each [spans]: sentence, number of the type, first word and one past the last among all words."""

    sentence: np.ndarray
    kind: np.ndarray
    first: np.ndarray
    end: np.ndarray

    @classmethod
    def of(cls, sentences: Sequence[bytes], starts: np.ndarray) -> Spans:
        """Those of each sentence (`packed`), which begin at `starts` among the words of the set."""
        rows = np.frombuffer(b"".join(sentences), dtype=np.intc).reshape(-1, FIELDS)
        sizes = np.fromiter(map(len, sentences), dtype=int, count=len(sentences)) // (FIELDS * rows.itemsize)
        sentence = np.repeat(np.arange(len(sizes)), sizes)
        before = starts[sentence]
        return cls(sentence, rows[:, 0], before + rows[:, 1], before + rows[:, 2])

    @cached_property
    def is_long(self) -> np.ndarray:
        """Whether a span has several words."""
        return self.end - self.first > 1


def matched(gold: Spans, predicted: Spans) -> tuple[np.ndarray, np.ndarray]:
    """The fate of each gold span, its place in FATES, and whether each predicted one is spurious: shares a word with none."""
    place, touched = _touching(gold, predicted)
    same = touched.copy()
    there = place[touched]
    same[touched] = (predicted.first[there] == gold.first[touched]) & (predicted.end[there] == gold.end[touched])  # fmt: skip
    correct = same.copy()
    correct[same] = predicted.kind[place[same]] == gold.kind[same]
    # what is correct has the same words, and what has them is touched
    fates = np.full(len(place), len(FATES) - 1, dtype=np.uint8) - touched - same - correct
    return fates, ~_touching(predicted, gold)[1]


def _touching(spans: Spans, others: Spans) -> tuple[np.ndarray, np.ndarray]:
    """The first of the others that ends behind the start of each span, and whether it begins before its end.

    Spans of a side are in order and share no word.
    """
    place = np.searchsorted(others.end, spans.first, side="right")
    found = place < len(others.end)
    found[found] = others.first[place[found]] < spans.end[found]
    return place, found


@dataclass(frozen=True, eq=False)
class Matches:
    """Of one set: the fate of each gold span; spans by length and fate, the spurious ones last, [LENGTHS, COLUMNS]; and
    [sentences, (correct, predicted, gold)]."""

    fates: np.ndarray
    tally: np.ndarray
    counts: np.ndarray


class Gold:
    """The gold spans of several sets, each [sentences] of spans and of lengths in words, as one text."""

    def __init__(self, sets: Sequence[tuple[Sequence[Sequence[Span]], Sequence[int]]]) -> None:
        sizes = [len(spans) for spans, _ in sets]
        lengths = np.array([words for _, each in sets for words in each], dtype=int)
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._spans = Spans.of([packed(found) for spans, _ in sets for found in spans], self._starts)
        self._set = np.repeat(np.arange(len(sets)), sizes)  # of each sentence
        self._sentences = np.cumsum([0, *sizes])
        self._cells = self._set[self._spans.sentence] * CELLS + self._spans.is_long * COLUMNS
        self._bounds = np.searchsorted(self._spans.sentence, self._sentences)

    def matches(self, predicted: Sequence[bytes]) -> list[Matches]:
        """Of each set, given the predicted spans of all sentences (`packed`)."""
        true, guessed = self._spans, Spans.of(predicted, self._starts)
        fates, spurious = matched(true, guessed)
        counts = np.empty((len(predicted), 3), dtype=np.int16)
        for column, sentences in enumerate((true.sentence[fates == 0], guessed.sentence, true.sentence)):
            counts[:, column] = np.bincount(sentences, minlength=len(counts))
        cells = self._set[guessed.sentence] * CELLS + guessed.is_long * COLUMNS + len(FATES)
        size = (len(self._bounds) - 1) * CELLS
        tallies = np.bincount(self._cells + fates, minlength=size) + np.bincount(cells[spurious], minlength=size)  # fmt: skip
        return [
            Matches(fates[first:end], tally, counts[start:stop])
            for (first, end), tally, (start, stop) in zip(
                pairwise(self._bounds),
                tallies.reshape(-1, len(LENGTHS), COLUMNS),
                pairwise(self._sentences),
                strict=True,
            )
        ]
