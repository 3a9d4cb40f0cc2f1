"""Span counts of random systems, for tests of resampling."""

from __future__ import annotations

import numpy as np

from metapt.randomness import generator


def random_counts(systems: int, sentences: int) -> np.ndarray:
    draw = generator(3, "test counts", systems, sentences)
    gold = draw.integers(0, 3, sentences)
    predicted = draw.integers(0, 3, (systems, sentences))
    correct = np.minimum(predicted, draw.integers(0, 3, (systems, sentences)))
    correct = np.minimum(correct, gold)
    return np.stack([correct, predicted, np.broadcast_to(gold, predicted.shape)], axis=-1)


def binary(hits: np.ndarray) -> np.ndarray:
    """Return counts with one gold and one predicted span per sentence, correct where `hits` [..., sentences] is 1."""
    counts = np.ones((*hits.shape, 3), dtype=int)
    counts[..., 0] = hits
    return counts
