"""What is counted of entity spans (metapt.data.iob2.spans)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Span = tuple[str, int, int]
"""(type, first word, one past the last word)"""


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
