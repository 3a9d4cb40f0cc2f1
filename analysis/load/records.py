"""What is kept of a run folder: a few arrays and names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from metapt.data.documents import resampling_unit, resampling_units
from metapt.evaluation.span_f1 import Span

from ..run_refs import RunRef
from .schema import BaselineResult, Dynamics, FinetuneResult, PretrainResult

TARGETS = ("tl", "ceb")
"""the languages that averages and verdicts are about, unless a grid or the command line names others"""
BASELINE = "baseline"
"""the objective in the record of a baseline"""
Columns = Mapping[str, np.ndarray]
"""field of metrics.jsonl to its values [lines], or [lines, inner steps]"""


def is_target(set_name: str, targets: Sequence[str]) -> bool:
    """Whether a set is one of the targets, or in one of the languages: `tl` means `tl_trg` and `tl_ugnayan`."""
    return not {set_name, *set_name.split("_")}.isdisjoint(targets)


class Setting(msgspec.Struct, frozen=True):
    """What the two runs of a pair have in common beside seeds and data."""

    scale: str
    variant: str
    step: int | None
    tuning: str
    source: str


class GoldSet:
    """The labelled sentences of an evaluation set. `gold_set` makes one object for equal contents.

    Attributes:
        ids, words, spans: of each sentence.
        documents: the text of each sentence; empty if the set marks no texts.
    """

    def __init__(
        self,
        name: str,
        ids: tuple[str, ...],
        words: tuple[tuple[str, ...], ...],
        spans: tuple[tuple[Span, ...], ...],
        documents: tuple[str, ...] = (),
    ) -> None:
        self.name, self.ids, self.words, self.spans, self.documents = name, ids, words, spans, documents

    def __reduce__(self) -> Any:
        """Unpickle to the one object of the process that has this content."""
        return gold_set, self.content

    @property
    def content(self) -> tuple[Any, ...]:
        """The arguments of `gold_set`."""
        return (self.name, self.ids, self.words, self.spans, self.documents)

    @cached_property
    def gold_spans(self) -> int:
        return sum(map(len, self.spans))

    @property
    def unit(self) -> str:
        """What is resampled and swapped as a whole: "document" if the set marks texts, else "sentence"."""
        return resampling_unit(self._documents)

    @cached_property
    def units(self) -> np.ndarray:
        """The index of each sentence's resampling unit, int64 [sentences]; units are numbered in order of appearance."""
        return resampling_units(self._documents)

    @property
    def _documents(self) -> Sequence[str | None]:
        return self.documents or [None] * len(self.ids)

    @cached_property
    def unit_count(self) -> int:
        """The number of resampling units."""
        return len(np.unique(self.units))

    @cached_property
    def starts(self) -> np.ndarray:
        """The position of each sentence's first word among all words of the set, and the number of words: [sentences + 1]."""
        return np.concatenate([[0], np.cumsum([len(words) for words in self.words], dtype=np.int64)])

    @cached_property
    def in_span(self) -> np.ndarray:
        """Whether each word is in a gold span, [words]."""
        inside = np.zeros(self.starts[-1], dtype=bool)
        for start, spans in zip(self.starts, self.spans, strict=False):
            for _, first, end in spans:
                inside[start + first : start + end] = True
        return inside


@cache
def gold_set(
    name: str,
    ids: tuple[str, ...],
    words: tuple[tuple[str, ...], ...],
    spans: tuple[tuple[Span, ...], ...],
    documents: tuple[str, ...] = (),
) -> GoldSet:
    """Return the gold set with this content, always the same object: gold sets are compared by identity."""
    return GoldSet(name, ids, words, spans, documents)


class Evaluation(msgspec.Struct, frozen=True, eq=False):
    """What one run predicted on one set.

    Attributes:
        outcomes: the index in OUTCOMES (span_matching.py) of each gold span, [gold spans].
        tally: number of spans by length and outcome, the spurious predicted ones last, [LENGTHS, OUTCOMES + 1].
        counts: spans of each sentence, [sentences, (correct, predicted, gold)].
        totals: the sums of `counts`.
        f1: strict micro-F1, 0 if there is no span.
        conlleval_f1: micro-F1 as the conlleval script counts spans.
        per_type: F1 of each entity type.
        logprobs: natural logarithm of the probability of each word's gold tag, [words of all sentences]; empty for a set
            in no target language and for a tagger without probabilities.
        type_counts: spans of each sentence by entity type, as `counts`; empty for a set in no target language.
    """

    gold: GoldSet
    outcomes: np.ndarray
    tally: np.ndarray
    counts: np.ndarray
    totals: tuple[int, ...]
    f1: float
    conlleval_f1: float
    per_type: Mapping[str, float]
    logprobs: np.ndarray
    type_counts: Mapping[str, np.ndarray]


class RunProvenance(NamedTuple):
    """The code that trained a run, when it first started and where it ran: start of the commit, and names with versions."""

    commit: str
    started: str
    nodes: str
    gpus: str
    versions: str


class PretrainRun(msgspec.Struct, frozen=True, eq=False, tag=True):
    """A pretraining run.

    Attributes:
        updates: totals after each update, skipped ones too, and its `next_token_tokens`: those that next-token prediction was trained on.
        lm, episodes, skipped, eval: the lines of these kinds in metrics.jsonl, by step; a line of kind mixed is one of lm and of episodes.
        gradient_cosines: by term beside the next-token loss, the cosine between the gradients of the two, [updates with one].
    """

    path: Path
    scale: str
    variant: str
    objective: str
    seed: int
    parameters: int
    corpus: str
    n_way: int
    provenance: RunProvenance
    result: PretrainResult
    updates: Columns
    lm: Columns
    episodes: Columns
    skipped: Columns
    eval: Columns
    dynamics: Sequence[Dynamics]
    gradient_cosines: Mapping[str, np.ndarray]

    @property
    def ref(self) -> RunRef:
        return RunRef(self.path, self.objective, self.seed, self.result.generated_data)


class FinetuneRun(msgspec.Struct, frozen=True, eq=False, tag=True):
    """A fine-tuned model or a baseline.

    Attributes:
        seeds: (pretraining, fine-tuning).
        losses: training loss of every step in nats per word, [steps].
        sets: what was predicted, by evaluation set.
    """

    path: Path
    objective: str
    setting: Setting
    seeds: tuple[int | None, int]
    parameters: int | None
    corpus: str
    provenance: RunProvenance
    result: FinetuneResult | BaselineResult
    losses: np.ndarray
    sets: Mapping[str, Evaluation]

    def with_sets(self, sets: Mapping[str, Evaluation]) -> FinetuneRun:
        """Return the run with further evaluations."""
        return msgspec.structs.replace(self, sets={**self.sets, **sets})

    @property
    def is_continued(self) -> bool:
        """Whether this run trained the tagger of another run further."""
        return bool(self.result.earlier_tunings)

    @property
    def is_baseline(self) -> bool:
        """Whether this is a baseline: its scale is then the baseline's name, and it may have no source."""
        return self.objective == BASELINE

    @property
    def ref(self) -> RunRef:
        """The seed of a model is that of its pretraining, or of its fine-tuning if it was not pretrained here."""
        pretraining, finetuning = self.seeds
        seed = finetuning if pretraining is None else pretraining
        return RunRef(
            self.path, self.objective, None if self.is_baseline else seed, self.result.generated_data
        )


class ExcludedRun(msgspec.Struct, frozen=True, tag=True):
    """A run folder that is in no table, and the reason."""

    path: Path
    state: str
    reason: str


Record = PretrainRun | FinetuneRun | ExcludedRun
