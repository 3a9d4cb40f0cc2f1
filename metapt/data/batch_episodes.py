"""Episodes whose examples are words of the next-token batch: which of its hidden states are support, query, and of which class.

An episode takes one partition of the corpus' words into classes (metapt/data/word_classes.py). A random permutation halves the
sequences, and a coin for each word type says on which side it may stand, so that support and query share neither sequences nor word
types. A class is eligible with two types on each side; `n_way` of the eligible classes are sampled, and their labels are a random
permutation.

An episode is a function of (seed, update, group of sequences, task) alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metapt import randomness
from metapt.data.word_classes import WordClasses, WordExamples

TYPES_PER_SIDE = 2  # distinct word types of a class, on each side


@dataclass(frozen=True)
class LabelledStates:
    """Hidden states with labels, padded to a fixed capacity.

    positions: int64 [n], index into the group's states, flattened to [rows * length]; labels: int64 [n];
    weights: float32 [n], 0 for padding.
    """

    positions: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class BatchEpisode:
    """Support and query of one episode.

    ways: number of classes N, 0 for an episode without a loss (fewer than two classes are eligible);
    eligible: number of classes that could have been sampled; partition: number of the partition;
    classes: int64 [N], the class of each label in its partition.
    """

    support: LabelledStates
    query: LabelledStates
    ways: int
    eligible: int
    partition: int
    classes: np.ndarray


class BatchEpisodeSampler:
    """Samples episodes from groups of sequences.

    Args:
        classes: of the corpus.
        n_way: number of classes of an episode, fewer where fewer are eligible.
        capacity: number of examples of a side; more are dropped at random, fewer are padded.
        balance: exponent of the class sizes in the weights of examples: 0 weights examples alike, 1 classes alike, 0.5 between.
        seed: of the run.
        held_out: sample held-out word types in the held-out partition instead (for probes).
    """

    def __init__(
        self,
        classes: WordClasses,
        n_way: int,
        capacity: int,
        balance: float,
        seed: int,
        held_out: bool = False,
    ):
        self.classes, self.n_way, self.capacity = classes, n_way, capacity
        self.balance, self.seed = balance, seed
        last = len(classes.partitions) - 1
        self.partitions = [last] if held_out else list(range(last))
        self.is_allowed = classes.is_held_out if held_out else ~classes.is_held_out

    def episode(
        self, examples: WordExamples, shape: tuple[int, int], update: int, group: int, task: int
    ) -> BatchEpisode:
        """Episode number `task` of a group.

        Args:
            examples: labelled words of the group's sequences.
            shape: number of the group's sequences, and their length.
        """
        draw = randomness.generator(self.seed, "batch episode", update, group, task)
        chosen_partition = int(draw.choice(self.partitions))
        partition = self.classes.partitions[chosen_partition]
        labels = partition[examples.types].astype(np.int64)
        sides = self._sides(examples, shape[0], draw)
        eligible = _eligible(examples.types, labels, sides, int(partition.max()) + 1)
        chosen = draw.permutation(eligible)[: self.n_way]
        if len(chosen) < 2:
            chosen = chosen[:0]
        number = np.full(int(partition.max()) + 1, -1, dtype=np.int64)
        number[chosen] = np.arange(len(chosen))
        positions = examples.rows * shape[1] + examples.positions
        support, query = (
            self._labelled(positions[rows], number[labels[rows]], draw)
            for rows in (np.flatnonzero((sides == side) & (number[labels] >= 0)) for side in (0, 1))
        )
        return BatchEpisode(support, query, len(chosen), len(eligible), chosen_partition, chosen)

    def _sides(self, examples: WordExamples, rows: int, draw: np.random.Generator) -> np.ndarray:
        """0: the example is support, 1: query, -1: neither, its sequence and its word type being on different sides. int64 [n]."""
        side_of_row = np.zeros(rows, dtype=np.int64)
        side_of_row[draw.permutation(rows)[rows // 2 :]] = 1
        side_of_type = draw.integers(0, 2, len(self.classes.keys))
        sides = side_of_row[examples.rows]
        agree = (sides == side_of_type[examples.types]) & self.is_allowed[examples.types]
        return np.where(agree, sides, -1)

    def _labelled(
        self, positions: np.ndarray, labels: np.ndarray, draw: np.random.Generator
    ) -> LabelledStates:
        if len(positions) > self.capacity:
            kept = np.sort(draw.choice(len(positions), self.capacity, replace=False))
            positions, labels = positions[kept], labels[kept]
        counts = np.bincount(labels, minlength=1)
        weights = (counts[labels] ** -float(self.balance)).astype(np.float32)
        padding = (0, self.capacity - len(positions))
        return LabelledStates(*(np.pad(array, padding) for array in (positions, labels, weights)))


def _eligible(types: np.ndarray, labels: np.ndarray, sides: np.ndarray, size: int) -> np.ndarray:
    """Classes with at least TYPES_PER_SIDE distinct word types on both sides. int64, ascending."""
    distinct = [
        np.bincount(labels[first], minlength=size)
        for first in (_first_of_each(types, sides == side) for side in (0, 1))
    ]
    return np.flatnonzero(np.minimum(*distinct) >= TYPES_PER_SIDE)


def _first_of_each(types: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Index of the first of the chosen examples of each word type."""
    places = np.flatnonzero(chosen)
    _, first = np.unique(types[places], return_index=True)
    return places[first]
