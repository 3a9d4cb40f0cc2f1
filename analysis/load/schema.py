"""What the analysis asks of result.json and of a measurement of dynamics: a run whose files lack it is broken.

Entries that are not asked for may be anything. null stands for a number that is not finite.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import msgspec
import numpy as np

Form = TypeVar("Form")
Numbers = list[float | None]


def checked(values: Any, form: type[Form]) -> Form:
    """The values of JSON as one of the forms of this module.

    Raises:
        msgspec.ValidationError: an entry is absent, or of another type; the message names it.
    """
    return msgspec.convert(values, form)


@dataclass(frozen=True)
class Origin:
    """Of a tuned decoder: how it was pretrained, as far as it is known."""

    model: str
    objective: str = "other"
    variant: str = ""
    seed: int | None = None
    step: int | None = None
    parameters: int | None = None
    corpus_fingerprint: str = ""


@dataclass(frozen=True)
class PretrainOrigin:
    model: str
    objective: str
    variant: str
    seed: int
    parameters: int
    corpus_fingerprint: str


@dataclass(frozen=True)
class PretrainResult:
    origin: PretrainOrigin
    data: str
    steps: int
    tokens_total: int
    flops_total: float
    seconds_total: float
    eval_perplexity: float | None
    generated_data: bool = False


@dataclass(frozen=True)
class TypeResult:
    f1: float


@dataclass(frozen=True)
class SetResult:
    f1: float
    per_type: dict[str, TypeResult]


@dataclass(frozen=True, kw_only=True)
class _Result:
    origin: Origin
    source: str
    tuning: str
    seed: int
    sets: dict[str, SetResult]
    train_sentences: int
    seconds_total: float
    train_sentences_cut: int | None = None
    source_sets: list[str] | None = None
    generated_data: bool = False
    ner_head: str | None = None
    epochs: int | None = None

    @property
    def sources(self) -> list[str]:
        """The sets that it was tuned on."""
        return self.source.split("+") if self.source_sets is None else self.source_sets


@dataclass(frozen=True, kw_only=True)
class TunedResult(_Result):
    steps: int
    best_step: int
    dev_f1: float


@dataclass(frozen=True, kw_only=True)
class BaselineResult(_Result):
    steps: int | None = None
    dev_f1: float | None = None


@dataclass(frozen=True)
class EffectiveRanks:
    """Of each block, by kind of matrix."""

    q: Numbers
    k: Numbers
    v: Numbers
    o: Numbers
    gate: Numbers
    up: Numbers
    down: Numbers


@dataclass(frozen=True)
class Dynamics:
    """A measurement of learning dynamics. The probe's figures are of each inner step."""

    step: int
    effective_rank: EffectiveRanks
    attention_entropy_ratio: list[Numbers]
    probe_support_accuracy: Numbers | None = None
    probe_query_accuracy: Numbers | None = None

    def rank(self, kinds: Iterable[str]) -> float:
        """Mean over these kinds of matrix and over blocks."""
        return _mean(chain.from_iterable(getattr(self.effective_rank, kind) for kind in kinds))

    @property
    def entropy(self) -> float:
        """Mean over blocks and heads."""
        return _mean(chain.from_iterable(self.attention_entropy_ratio))

    def adapted(self, side: str) -> float | None:
        """Accuracy of the probe on its support or its query, after the inner loop; None without a probe."""
        found: Numbers | None = getattr(self, f"probe_{side}_accuracy")
        return found[-1] if found else None


def _mean(numbers: Iterable[float | None]) -> float:
    """NaN where one is not finite, or there is none."""
    found = np.array(list(numbers), dtype=np.float64)
    return float(found.mean()) if len(found) else float("nan")
