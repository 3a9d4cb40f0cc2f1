"""Tags scored by their entity spans. Imports no torch: the analysis uses it too.

The score is strict IOB2 as seqeval counts it: only a B-X starts a span. Beside it stands the score of the conlleval
script of the CoNLL shared tasks (seqeval's default mode), in which an I-X that does not continue an X starts one
too. The two differ only on tags that are no valid IOB2, which a softmax head can predict and the CRF cannot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from metapt.data.iob2 import OWN_TYPES, TYPES, Sentence, repaired, spans
from metapt.evaluation.bootstrap import f1_samples, percentile_interval

Span = tuple[str, int, int]
"""(type, first word, one past the last word)"""


def conlleval_spans(tags: Sequence[str]) -> list[Span]:
    """Entity spans as conlleval finds them: an I-X after O, or after another type, starts one."""
    return spans(repaired(tags, OWN_TYPES))


def count(predicted: Sequence[Sequence[Span]], gold: Sequence[Sequence[Span]]) -> np.ndarray:
    """Spans of every sentence that are correct, predicted and gold: an integer array [sentences, 3]."""
    pairs = zip(predicted, gold, strict=True)
    rows = [(len(set(found) & set(true)), len(found), len(true)) for found, true in pairs]
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def span_scores(
    gold: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    find: Callable[[Sequence[str]], Sequence[Span]] = spans,
) -> dict[str, Any]:
    """Span counts, precision, recall and F1 over all types (micro) and by type.

    A predicted span is correct if sentence, type, start and end are those of a gold span. A share whose
    denominator is zero is 0.

    Args:
        gold, predicted: tags of each sentence, equally many.
        find: what makes spans of tags: `spans` (strict IOB2) or `conlleval_spans`.
    Returns: gold_spans, predicted_spans, correct_spans, precision, recall, f1, and per_type: type to the same six.
    """
    golden: Counter[str] = Counter()
    guessed: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    for true_tags, tags in zip(gold, predicted, strict=True):
        if len(true_tags) != len(tags):
            raise ValueError(f"{len(true_tags)} gold tags, but {len(tags)} predicted ones")
        true_spans, found = set(find(true_tags)), set(find(tags))
        golden.update(kind for kind, _, _ in true_spans)
        guessed.update(kind for kind, _, _ in found)
        correct.update(kind for kind, _, _ in true_spans & found)
    per_type = {kind: _figures(golden[kind], guessed[kind], correct[kind]) for kind in TYPES}
    return {**_figures(golden.total(), guessed.total(), correct.total()), "per_type": per_type}


def _figures(gold: int, predicted: int, correct: int) -> dict[str, float]:
    return {
        "gold_spans": gold,
        "predicted_spans": predicted,
        "correct_spans": correct,
        "precision": correct / predicted if predicted else 0.0,
        "recall": correct / gold if gold else 0.0,
        "f1": 2 * correct / (gold + predicted) if gold + predicted else 0.0,
    }


def scored(
    name: str, split: str, sentences: Sequence[Sentence], predicted: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """A set's entry in result.json (docs/design.md): figures, the interval of F1, and the conlleval score.

    Args:
        name: of the set, of which the bootstrap's draws are a function.
        predicted: tags of each sentence.
    """
    gold = [sentence.tags for sentence in sentences]
    counts = count([spans(tags) for tags in predicted], [spans(tags) for tags in gold])
    conlleval = span_scores(gold, predicted, conlleval_spans)
    del conlleval["per_type"]
    return {
        "split": split,
        "sentences": len(sentences),
        "words": sum(len(tags) for tags in gold),
        **span_scores(gold, predicted),
        "f1_interval": percentile_interval(f1_samples(counts[None], name)[0]),
        "conlleval": conlleval,
    }
