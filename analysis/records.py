"""What is kept of a run folder: a few arrays and names, small enough that ten thousand of them fit into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from metapt.ner.resampling import micro_f1
from metapt.ner.scoring import Span

TARGET_LANGUAGES = ("tl", "ceb")
BASELINE = "baseline"
"""the objective in the record of a baseline"""
FATES = ("correct", "wrong type", "wrong boundary", "missed")
"""of a gold span: predicted; the same words with another type; another span that shares a word with it; none"""
Columns = Mapping[str, np.ndarray]
"""field of metrics.jsonl to its values [lines], or [lines, inner steps]"""


def is_target(set_name: str) -> bool:
    """Whether a set is in Tagalog or Cebuano, the languages that no corpus and no source has."""
    return not set(TARGET_LANGUAGES).isdisjoint(set_name.split("_"))


@dataclass(frozen=True)
class Setting:
    """What the two runs of a pair share, seeds and data aside."""

    scale: str
    label: str
    step: int | None
    regime: str
    source: str


@dataclass(frozen=True, eq=False)
class GoldSet:
    """The labelled sentences of an evaluation set. Runs that saw the same ones share one object."""

    name: str
    ids: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]
    spans: tuple[tuple[Span, ...], ...]

    @cached_property
    def gold_spans(self) -> int:
        return sum(len(found) for found in self.spans)

    @cached_property
    def lengths(self) -> list[int]:
        """Words of each sentence."""
        return [len(words) for words in self.words]

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each sentence begins among all words of the set, and their number: [sentences + 1]."""
        return np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])

    @cached_property
    def table(self) -> SpanTable:
        return SpanTable.of(self.spans)

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """First word and one past the last of each gold span among all words of the set."""
        return self.table.bounds(self.starts)

    @cached_property
    def in_span(self) -> np.ndarray:
        """Whether a word belongs to a gold span, [words]."""
        inside = np.zeros(self.starts[-1], dtype=bool)
        for start, found in zip(self.starts, self.spans, strict=False):
            for _, first, end in found:
                inside[start + first : start + end] = True
        return inside


@dataclass(frozen=True, eq=False)
class SpanTable:
    """Entity spans of the sentences of a set: `rows` is [spans, (sentence, index of the type in `kinds`, start, end)], in order."""

    kinds: tuple[str, ...]
    rows: np.ndarray

    @classmethod
    def of(cls, sentences: Sequence[Sequence[Span]]) -> SpanTable:
        rows = np.zeros((sum(map(len, sentences)), 4), dtype=np.int32)
        rows[:, 0] = np.repeat(np.arange(len(sentences)), list(map(len, sentences)))
        found, starts, ends = zip(*chain.from_iterable(sentences), strict=True) if len(rows) else ((), (), ())
        kinds = tuple(sorted(set(found)))
        rows[:, 1], rows[:, 2], rows[:, 3] = list(map(kinds.index, found)), starts, ends
        return cls(kinds, rows)

    @property
    def is_long(self) -> np.ndarray:
        """Whether a span has several words, [spans]."""
        return self.rows[:, 3] - self.rows[:, 2] > 1

    def by_sentence(self, sentences: int) -> list[tuple[Span, ...]]:
        """The spans of each of so many sentences."""
        found: list[list[Span]] = [[] for _ in range(sentences)]
        for index, kind, start, end in self.rows.tolist():
            found[index].append((self.kinds[kind], start, end))
        return [tuple(spans) for spans in found]

    def bounds(self, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First word and one past the last of each span among all words of the set, of which `before` stand before each sentence."""
        first = before[self.rows[:, 0]]
        return first + self.rows[:, 2], first + self.rows[:, 3]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one run predicted on one set.

    `fates` has the fate of each gold span, its place in FATES, and `spurious` whether a predicted span shares a word with
    no gold one. `counts` is [sentences, (correct, predicted, gold)], `totals` its sums; `f1` is strict micro-F1, 0 without
    any span. `logprobs` is [words], the natural logarithm of the probability of each word's gold tag, over all sentences
    in turn; empty for sets that are no target and taggers without probabilities.
    """

    gold: GoldSet
    predicted: SpanTable
    fates: np.ndarray
    spurious: np.ndarray
    counts: np.ndarray
    totals: tuple[int, ...]
    f1: float
    conlleval_f1: float
    per_type: Mapping[str, Mapping[str, float]]
    logprobs: np.ndarray

    @classmethod
    def of(
        cls,
        gold: GoldSet,
        spans: Sequence[Sequence[Span]],
        per_type: Mapping[str, Mapping[str, float]],
        conlleval_f1: float | None = None,
        logprobs: Sequence[float] = (),
    ) -> Evaluation:
        """The predicted spans of each sentence held against the gold ones.

        Args:
            conlleval_f1: absent where conlleval finds the same spans.
        """
        predicted = SpanTable.of(spans)
        fates, spurious = _matched(gold, predicted)
        counts = np.zeros((len(gold.ids), 3), dtype=np.int16)
        found = (gold.table.rows[fates == 0], predicted.rows, gold.table.rows)
        for column, rows in enumerate(found):
            counts[:, column] = np.bincount(rows[:, 0], minlength=len(counts))
        totals = counts.sum(axis=0)
        f1 = float(micro_f1(totals))
        lax = f1 if conlleval_f1 is None else conlleval_f1
        return cls(gold, predicted, fates, spurious, counts, tuple(totals.tolist()), f1, lax, per_type, np.array(logprobs, dtype=np.float32))  # fmt: skip


def _matched(gold: GoldSet, predicted: SpanTable) -> tuple[np.ndarray, np.ndarray]:
    """The fate of each gold span, and which predicted ones are spurious."""
    true = gold.table
    starts, ends = gold.bounds
    other_starts, other_ends = predicted.bounds(gold.starts)
    place, touched = _touching(starts, ends, other_starts, other_ends)
    same = touched.copy()
    same[touched] = (other_starts[place[touched]] == starts[touched]) & (other_ends[place[touched]] == ends[touched])  # fmt: skip
    kinds = np.array([true.kinds.index(kind) if kind in true.kinds else -1 for kind in predicted.kinds], int)
    correct = same.copy()
    correct[same] = kinds[predicted.rows[place[same], 1]] == true.rows[same, 1]
    # what is correct has the same words, and what has them is touched
    fates = np.full(len(starts), len(FATES) - 1, dtype=np.uint8) - touched - same - correct
    return fates, ~_touching(other_starts, other_ends, starts, ends)[1]


def _touching(starts: np.ndarray, ends: np.ndarray, other_starts: np.ndarray, other_ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The first of the others that ends behind the start of each span, and whether it begins before its end.

    Spans of a side are in order and share no word.
    """
    place = np.searchsorted(other_ends, starts, side="right")
    found = place < len(other_ends)
    found[found] = other_starts[place[found]] < ends[found]
    return place, found


@dataclass(frozen=True, eq=False)
class PretrainRun:
    """`autoregressive`, `episodes`, `skipped` and `heldout` hold the lines of these kinds by step; `dynamics` whole lines."""

    path: Path
    scale: str
    label: str
    objective: str
    seed: int
    parameters: int
    corpus: str
    n_way: int
    provenance: Mapping[str, Any]
    result: Mapping[str, Any]
    autoregressive: Columns
    episodes: Columns
    skipped: Columns
    heldout: Columns
    dynamics: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class FinetuneRun:
    """A tuned model, or a baseline. `losses` is [steps], nats per word; `seeds` is (pretraining, fine-tuning)."""

    path: Path
    objective: str
    setting: Setting
    seeds: tuple[int | None, int]
    parameters: int | None
    corpus: str
    provenance: Mapping[str, Any]
    result: Mapping[str, Any]
    losses: np.ndarray
    sets: Mapping[str, Evaluation]

    @property
    def is_baseline(self) -> bool:
        """Whether a baseline made it: its scale is then the baseline's name, and it may have no source."""
        return self.objective == BASELINE


@dataclass(frozen=True)
class LeftOut:
    """A run folder that is in no table, and why."""

    path: Path
    state: str
    reason: str
