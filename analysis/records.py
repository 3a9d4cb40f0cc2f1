"""What is kept of a run folder: a few arrays and names, small enough that ten thousand of them fit into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from metapt.ner.scoring import Span

TARGET_LANGUAGES = ("tl", "ceb")
BASELINE = "baseline"
"""the objective in the record of a baseline"""
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
        found = [(index, *span) for index, spans in enumerate(sentences) if spans for span in spans]
        kinds = tuple(sorted({kind for _, kind, _, _ in found}))
        place = {kind: index for index, kind in enumerate(kinds)}
        rows = [(index, place[kind], start, end) for index, kind, start, end in found]
        return cls(kinds, np.array(rows, dtype=np.int32).reshape(-1, 4))

    def by_sentence(self, sentences: int) -> list[tuple[Span, ...]]:
        """The spans of each of so many sentences."""
        found: list[list[Span]] = [[] for _ in range(sentences)]
        for index, kind, start, end in self.rows.tolist():
            found[index].append((self.kinds[kind], start, end))
        return [tuple(spans) for spans in found]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one run predicted on one set.

    `counts` is [sentences, (correct, predicted, gold)]. `logprobs` is [words], the natural logarithm of the probability
    of each word's gold tag, over all sentences in turn; empty for sets that are no target
    and taggers without probabilities.
    """

    gold: GoldSet
    predicted: SpanTable
    counts: np.ndarray
    conlleval_f1: float
    per_type: Mapping[str, Mapping[str, float]]
    logprobs: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    @cached_property
    def matches(self) -> Matches:
        """Which gold spans are found, and what the others and the predicted ones share words with."""
        gold, predicted = self.gold.table, self.predicted
        kinds = np.array(
            [gold.kinds.index(kind) if kind in gold.kinds else -1 for kind in predicted.kinds], int
        )
        starts, ends = self._bounds(gold)
        other_starts, other_ends = self._bounds(predicted)
        place, touched = _touching(starts, ends, other_starts, other_ends)
        same = touched.copy()
        same[touched] = (other_starts[place[touched]] == starts[touched]) & (other_ends[place[touched]] == ends[touched])  # fmt: skip
        correct = same.copy()
        correct[same] = kinds[predicted.rows[place[same], 1]] == gold.rows[same, 1]
        return Matches(correct, same, touched, ~_touching(other_starts, other_ends, starts, ends)[1])

    def _bounds(self, table: SpanTable) -> tuple[np.ndarray, np.ndarray]:
        """First word and one past the last of each span, counted over all sentences."""
        before = self.gold.starts[table.rows[:, 0]]
        return before + table.rows[:, 2], before + table.rows[:, 3]


@dataclass(frozen=True, eq=False)
class Matches:
    """For each gold span whether it is predicted, with its type (`correct`) or any (`same_words`), and whether a predicted
    span shares a word with it (`touched`); for each predicted span whether it shares a word with no gold span (`spurious`)."""

    correct: np.ndarray
    same_words: np.ndarray
    touched: np.ndarray
    spurious: np.ndarray


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
