"""Entity spans in strict IOB2, and what is counted of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Span = tuple[str, int, int]
"""(type, first word, one past the last word)"""


def spans(tags: Sequence[str]) -> tuple[Span, ...]:
    """The spans of a sentence as seqeval's strict mode finds them: only B-X starts one, only I-X continues it."""
    found: list[Span] = []
    kind, start = "", 0
    for index, tag in enumerate([*tags, "O"]):
        if kind and tag == f"I-{kind}":
            continue
        if kind:
            found.append((kind, start, index))
        kind, start = (tag[2:], index) if tag.startswith("B-") else ("", index)
    return tuple(found)


def count(predicted: Sequence[Sequence[Span]], gold: Sequence[Sequence[Span]]) -> np.ndarray:
    """Spans of every sentence that are correct, predicted and gold: an integer array [sentences, 3]."""
    pairs = zip(predicted, gold, strict=True)
    rows = [(len(set(found) & set(true)), len(found), len(true)) for found, true in pairs]
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def micro_f1(counts: np.ndarray) -> np.ndarray:
    """F1 = 2 correct / (predicted + gold) over the last axis [..., 3]; 0 where there is no span at all, as in seqeval."""
    counts = np.asarray(counts, dtype=np.float64)
    total = counts[..., 1] + counts[..., 2]
    return np.divide(2 * counts[..., 0], total, out=np.zeros_like(total), where=total > 0)
