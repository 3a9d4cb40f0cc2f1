"""The entries of a run's files that the analysis needs, as msgspec types.

A file that lacks one of them, or has it in another type, makes the run broken. Other entries are ignored. A number that
is not finite is null in JSON and None here.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import msgspec
import numpy as np

Numbers = list[float | None]
ATTENTION = ("q", "k", "v", "o")
FEED_FORWARD = ("gate", "up", "down")
"""the kinds of matrix whose effective rank is measured"""


class Origin(msgspec.Struct, frozen=True):
    """How the decoder of a fine-tuned model was pretrained, as far as it is known."""

    model: str
    objective: str = "other"
    variant: str = ""
    seed: int | None = None
    step: int | None = None
    parameters: int | None = None
    corpus_fingerprint: str = ""
    settings: dict[str, Any] = {}


class PretrainOrigin(msgspec.Struct, frozen=True):
    """The identity of a pretraining run."""

    model: str
    objective: str
    variant: str
    seed: int
    parameters: int
    corpus_fingerprint: str
    settings: dict[str, Any] = {}


class PretrainResult(msgspec.Struct, frozen=True, tag_field="kind", tag="pretrain"):
    """result.json of a pretraining run."""

    origin: PretrainOrigin
    data: str
    steps: int
    tokens_total: int
    flops_total: float
    seconds_total: float
    eval_perplexity: float | None
    corpus_passes: float | None = None
    generated_data: bool = False


class TypeResult(msgspec.Struct, frozen=True):
    """The score of one entity type."""

    f1: float


class SetResult(msgspec.Struct, frozen=True):
    """The scores on one evaluation set."""

    f1: float
    per_type: dict[str, TypeResult]


class SharedSentences(msgspec.Struct, frozen=True):
    """What a test set shares with the train and dev splits of the sources: sentences, and the gold spans in them."""

    sentences: int
    gold_spans: int


class EarlierTuning(msgspec.Struct, frozen=True):
    """A fine-tuning that a run continued: its source sets, language and licence of those that are described, and what identifies it."""

    source_sets: list[str]
    custom_sets: dict[str, dict[str, str]] = {}
    settings: dict[str, Any] = {}
    inputs: dict[str, str] = {}


class NerResult(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """What result.json of a fine-tuned model and of a baseline have in common."""

    origin: Origin
    source: str
    tuning: str
    seed: int
    sets: dict[str, SetResult]
    train_sentences: int | None
    seconds_total: float
    train_sentences_split: int | None = None
    source_sets: list[str] | None = None
    custom_sets: dict[str, dict[str, str]] = {}
    shared_sentences: dict[str, SharedSentences] | None = {}
    earlier_tunings: list[EarlierTuning] = []
    generated_data: bool = False
    ner_head: str | None = None
    settings: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    epochs: int | None = None

    @property
    def sources(self) -> list[str]:
        """The sets that the model was fine-tuned on."""
        return self.source.split("+") if self.source_sets is None else self.source_sets


class FinetuneResult(NerResult, frozen=True, kw_only=True, tag="finetune"):
    """result.json of a fine-tuning run."""

    steps: int
    best_step: int
    dev_f1: float | None


class BaselineResult(NerResult, frozen=True, kw_only=True, tag="baseline"):
    """result.json of a baseline."""

    steps: int | None = None
    dev_f1: float | None = None


def decode_result(content: bytes) -> PretrainResult | FinetuneResult | BaselineResult:
    """Decode result.json; its entry `kind` decides the type.

    Raises:
        msgspec.MsgspecError: an entry is absent or of another type (the message names it), or the text is not JSON.
    """
    return msgspec.json.decode(content, type=PretrainResult | FinetuneResult | BaselineResult)


class EffectiveRanks(msgspec.Struct, frozen=True):
    """Proportional effective rank of each block's matrices, by kind of matrix."""

    q: Numbers
    k: Numbers
    v: Numbers
    o: Numbers
    gate: Numbers
    up: Numbers
    down: Numbers


class Dynamics(msgspec.Struct, frozen=True):
    """One measurement of learning dynamics. The accuracies of the probe are lists over the inner steps."""

    step: int
    effective_rank: EffectiveRanks
    attention_entropy_ratio: list[Numbers]
    probe_support_accuracy: Numbers | None = None
    probe_query_accuracy: Numbers | None = None
    held_out_words_prototype_accuracy: Numbers | None = None
    """of each of the fixed episodes on word classes that no training sees"""
    held_out_words_chance: float | None = None

    def rank(self, matrices: Iterable[str]) -> float:
        """Return the mean effective rank over these kinds of matrix and over blocks."""
        return _mean(chain.from_iterable(getattr(self.effective_rank, matrix) for matrix in matrices))

    @property
    def entropy(self) -> float:
        """Attention entropy as a fraction of that of uniform attention, mean over blocks and heads."""
        return _mean(chain.from_iterable(self.attention_entropy_ratio))

    def adapted(self, examples: str) -> float | None:
        """Return the probe's accuracy after the inner loop on its "support" or "query"; None without a probe."""
        accuracies: Numbers | None = getattr(self, f"probe_{examples}_accuracy")
        return accuracies[-1] if accuracies else None


def _mean(numbers: Iterable[float | None]) -> float:
    """Return the mean; NaN if one of the numbers is not finite, or if there is none."""
    values = np.array(list(numbers), dtype=np.float64)
    return float(values.mean()) if len(values) else float("nan")
