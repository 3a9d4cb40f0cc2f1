"""Random numbers are functions of their arguments alone."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metapt import randomness


@given(st.integers(1, 3000), st.integers(0, 10), st.integers(0, 10))
@settings(max_examples=60, deadline=None)
def test_permuted_is_a_bijection(size: int, seed: int, epoch: int):
    values = randomness.permuted(np.arange(size), size, seed, "test", epoch)
    assert sorted(values.tolist()) == list(range(size))


def test_permuted_on_a_subset():
    whole = randomness.permuted(np.arange(10_007), 10_007, 3, "test")
    subset = np.array([5, 9_999, 0, 777])
    assert (randomness.permuted(subset, 10_007, 3, "test") == whole[subset]).all()


def test_permuted_beyond_32_bits():
    size = 2**33 + 5
    values = randomness.permuted(np.array([0, 1, size - 1]), size, 0, "test")
    assert ((values >= 0) & (values < size)).all()
    assert len(set(values.tolist())) == 3


def test_permutation_is_shuffled_and_differs_by_epoch():
    first, second = (randomness.permuted(np.arange(5000), 5000, 0, "test", epoch) for epoch in (0, 1))
    assert (first == second).mean() < 0.01
    assert abs(np.corrcoef(np.arange(5000), first)[0, 1]) < 0.05


def test_generators_are_distinct():
    samples = {
        randomness.generator(*arguments).integers(2**60)
        for arguments in [
            (0, "a"),
            (1, "a"),
            (0, "b"),
            (0, "a", 0),
            (0, "a", 1),
            (0, "a", 0, 1),
            (0, "a", 1, 0),
        ]
    }
    assert len(samples) == 7


def test_torch_seed_restores_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with randomness.torch_seed(1, "test"):
        inside = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with randomness.torch_seed(1, "test"):
        assert torch.equal(torch.rand(3), inside)
