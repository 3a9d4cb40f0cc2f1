"""What is kept of a run folder: a few arrays and names, small enough that ten thousand of them fit into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metapt.evaluation.bootstrap import micro_f1
from metapt.evaluation.span_f1 import Span

from .schema import BaselineResult, Dynamics, PretrainResult, TunedResult
from .span_matching import Matches

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
    variant: str
    step: int | None
    tuning: str
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
    def in_span(self) -> np.ndarray:
        """Whether a word belongs to a gold span, [words]."""
        inside = np.zeros(self.starts[-1], dtype=bool)
        for start, found in zip(self.starts, self.spans, strict=False):
            for _, first, end in found:
                inside[start + first : start + end] = True
        return inside


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one run predicted on one set.

    `fates` has the fate of each gold span, its place in FATES, and `tally` how many spans of each length have one
    (matching.py). `counts` is [sentences, (correct, predicted, gold)], `totals` its sums; `f1` is strict micro-F1, 0 without any span.
    `per_type` is the F1 of each type. `logprobs` is [words], the natural logarithm of the probability of each word's gold
    tag, over all sentences in turn; empty for sets that are no target and taggers without probabilities.
    """

    gold: GoldSet
    fates: np.ndarray
    tally: np.ndarray
    counts: np.ndarray
    totals: tuple[int, ...]
    f1: float
    conlleval_f1: float
    per_type: Mapping[str, float]
    logprobs: np.ndarray

    @classmethod
    def of(
        cls,
        gold: GoldSet,
        found: Matches,
        per_type: Mapping[str, float],
        conlleval_f1: float | None = None,
        logprobs: Sequence[float] = (),
    ) -> Evaluation:
        """Of what was found of the gold spans.

        Args:
            conlleval_f1: absent where conlleval finds the same spans.
        """
        totals = found.counts.sum(axis=0)
        f1 = float(micro_f1(totals))
        return cls(
            gold,
            found.fates,
            found.tally,
            found.counts,
            tuple(totals.tolist()),
            f1,
            f1 if conlleval_f1 is None else conlleval_f1,
            per_type,
            np.array(logprobs, dtype=np.float32),
        )


class Made(NamedTuple):
    """By which code a run was made, when and where: the beginning of the commit, and names with versions."""

    commit: str
    started: str
    host: str
    versions: str


@dataclass(frozen=True, eq=False)
class PretrainRun:
    """`lm`, `episodes`, `skipped` and `eval` hold the lines of these kinds by step."""

    path: Path
    scale: str
    variant: str
    objective: str
    seed: int
    parameters: int
    corpus: str
    n_way: int
    made: Made
    result: PretrainResult
    lm: Columns
    episodes: Columns
    skipped: Columns
    eval: Columns
    dynamics: Sequence[Dynamics]


@dataclass(frozen=True, eq=False)
class FinetuneRun:
    """A tuned model, or a baseline. `losses` is [steps], nats per word; `seeds` is (pretraining, fine-tuning)."""

    path: Path
    objective: str
    setting: Setting
    seeds: tuple[int | None, int]
    parameters: int | None
    corpus: str
    made: Made
    result: TunedResult | BaselineResult
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
