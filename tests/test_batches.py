"""The order of training sequences, and the held-out sequences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metapt.data.batches import Batches, eval_sequences
from metapt.data.shards import evenly_spread
from metapt.errors import UserError


class CountingStream:
    """A stream whose token at position i is i."""

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        assert (starts >= 0).all()
        assert (starts + length <= self.size).all()
        return starts[:, None] + np.arange(length)


@given(st.integers(2, 400), st.integers(1, 20), st.integers(0, 3), st.data())
@settings(max_examples=60, deadline=None)
def test_slices_of_the_training_order_are_consistent(size: int, seq_len: int, seed: int, data: st.DataObject):
    if size <= seq_len:
        return
    batches = Batches(CountingStream(size), seq_len, seed)
    total = 3 * batches.num_rows
    whole = batches.rows(0, total)
    first = data.draw(st.integers(0, total))
    count = data.draw(st.integers(0, total - first))
    assert (batches.rows(first, count) == whole[first : first + count]).all()


def test_every_token_is_a_target_once_per_epoch():
    batches = Batches(CountingStream(1001), 10, 0)
    for epoch in range(2):
        targets = batches.sequences(epoch * batches.num_rows, batches.num_rows)[:, 1:]
        assert sorted(targets.ravel().tolist()) == list(range(1, 1001))


def test_epochs_and_seeds_differ_in_order():
    rows = [
        Batches(CountingStream(5001), 10, seed).rows(first, 500).tolist()
        for seed, first in ((0, 0), (0, 500), (1, 0))
    ]
    assert len({tuple(order) for order in rows}) == 3


def test_too_short_corpus():
    with pytest.raises(UserError, match=r"5 training tokens.*train.seq_len=8"):
        Batches(CountingStream(5), 8, 0)
    with pytest.raises(UserError, match="held-out"):
        eval_sequences(CountingStream(1), 8, 4)


def test_eval_sequences():
    assert eval_sequences(CountingStream(1000), 10, 4).shape == (4, 11)
    assert eval_sequences(CountingStream(1000), 10, 400).shape == (99, 11)
    assert eval_sequences(CountingStream(6), 10, 4).tolist() == [[0, 1, 2, 3, 4, 5]]


@given(st.integers(1, 50), st.integers(1, 2000))
def test_evenly_spread_numbers(count: int, total: int):
    numbers = evenly_spread(count, total)
    assert len(numbers) == min(count, total)
    ends = np.array([numbers[0], total - 1 - numbers[-1]])
    distance = total / len(numbers)
    assert (np.abs(ends + 0.5 - distance / 2) <= 0.5).all()
    assert (np.abs(np.diff(numbers) - distance) < 1).all()


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_held_out_sequences_represent_every_file_of_a_corpus(files: int, per_file: int, seed: int):
    """Each file has as many of the evaluated tokens, to one sequence, as it has of the held-out tokens."""
    seq_len = 10
    rows = np.random.default_rng(seed).integers(20, 60, files)
    owner = np.repeat(np.arange(files), rows * seq_len)
    count = files * per_file
    starts = eval_sequences(CountingStream(len(owner) + 1), seq_len, count)[:, 0]
    evaluated = np.bincount(owner[starts], minlength=files)
    assert np.abs(evaluated - count * rows / rows.sum()).max() <= 1
