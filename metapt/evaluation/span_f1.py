"""Precision, recall and F1 of entity spans. Imports no torch, so that the analysis can use it.

The main score is strict IOB2 as in seqeval's strict mode: only a B-X starts a span. The second score is that of the
conlleval script of the CoNLL shared tasks (seqeval's default mode), in which an I-X that does not continue an X also
starts a span. The two differ only on tags that are not valid IOB2, which a softmax head can predict and a CRF cannot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from metapt.data.documents import resampling_unit, resampling_units
from metapt.data.iob2 import Sentence, entity_types, spans, to_iob2
from metapt.evaluation.f1_interval import f1_interval

Span = tuple[str, int, int]
"""(type, first word, one past the last word)."""


def conlleval_spans(tags: Sequence[str]) -> list[Span]:
    """Find entity spans as conlleval does: an I-X after O, or after another type, starts a span."""
    return spans(to_iob2(tags))


def span_counts(predicted: Sequence[Sequence[Span]], gold: Sequence[Sequence[Span]]) -> np.ndarray:
    """Count the correct, predicted and gold spans of each sentence. int64 [sentences, 3]."""
    pairs = zip(predicted, gold, strict=True)
    rows = [(len(set(found) & set(true)), len(found), len(true)) for found, true in pairs]
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def span_scores(
    gold: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    find_spans: Callable[[Sequence[str]], Sequence[Span]] = spans,
) -> dict[str, Any]:
    """Compute span counts, precision, recall and F1 over all types (micro average) and per type.

    A predicted span is correct if sentence, type, start and end match a gold span. A score whose denominator is zero
    is 0.

    Args:
        gold, predicted: tags of each sentence; both have the same number of tags.
        find_spans: converts tags to spans: `spans` (strict IOB2) or `conlleval_spans`.
    Returns: gold_spans, predicted_spans, correct_spans, precision, recall, f1; and per_type, which maps
        each type of a gold or predicted span (`entity_types`) to the same six values.
    """
    num_gold: Counter[str] = Counter()
    num_predicted: Counter[str] = Counter()
    num_correct: Counter[str] = Counter()
    for gold_tags, predicted_tags in zip(gold, predicted, strict=True):
        if len(gold_tags) != len(predicted_tags):
            raise ValueError(f"{len(gold_tags)} gold tags, but {len(predicted_tags)} predicted tags")
        gold_spans, found = set(find_spans(gold_tags)), set(find_spans(predicted_tags))
        num_gold.update(kind for kind, _, _ in gold_spans)
        num_predicted.update(kind for kind, _, _ in found)
        num_correct.update(kind for kind, _, _ in gold_spans & found)
    kinds = entity_types(num_gold | num_predicted)
    per_type = {kind: _scores(num_gold[kind], num_predicted[kind], num_correct[kind]) for kind in kinds}
    return {**_scores(num_gold.total(), num_predicted.total(), num_correct.total()), "per_type": per_type}


def _scores(gold: int, predicted: int, correct: int) -> dict[str, float]:
    return {
        "gold_spans": gold,
        "predicted_spans": predicted,
        "correct_spans": correct,
        "precision": correct / predicted if predicted else 0.0,
        "recall": correct / gold if gold else 0.0,
        "f1": 2 * correct / (gold + predicted) if gold + predicted else 0.0,
    }


def set_scores(
    split: str, sentences: Sequence[Sentence], predicted: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Compute the entry of a set in result.json: span scores, the interval of F1, and the conlleval scores.

    The units of the interval are documents where the set marks them, otherwise sentences.

    Args:
        predicted: tags of each sentence.
    """
    gold = [sentence.tags for sentence in sentences]
    counts = span_counts([spans(tags) for tags in predicted], [spans(tags) for tags in gold])
    conlleval = span_scores(gold, predicted, conlleval_spans)
    del conlleval["per_type"]
    documents = [sentence.document for sentence in sentences]
    units = resampling_units(documents)
    return {
        "split": split,
        "sentences": len(sentences),
        "unit": resampling_unit(documents),
        "units": len(np.unique(units)),
        "words": sum(len(tags) for tags in gold),
        **span_scores(gold, predicted),
        "f1_interval": f1_interval(counts, units),
        "conlleval": conlleval,
    }
