"""Counter-based randomness: every random number is a function of (seed, purpose, indices) and of nothing else.

No generator is carried from one step to the next. So checkpoints need no generator state, and a sample depends
neither on the rank, nor on the world size, nor on earlier samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def key(seed: int, purpose: str, *indices: int) -> int:
    """Hash (seed, purpose, indices) to a 63-bit key. Distinct arguments give independent keys."""
    text = "/".join([str(int(seed)), purpose, *(str(int(index)) for index in indices)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """Create a numpy generator (Philox, a counter-based one) for (seed, purpose, indices)."""
    return np.random.Generator(np.random.Philox(key=key(seed, purpose, *indices)))


@contextmanager
def torch_seed(seed: int, purpose: str, *indices: int) -> Iterator[None]:
    """Seed torch's global generators (CPU and current CUDA device) inside the block, and restore them afterwards."""
    import torch

    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(key(seed, purpose, *indices))
        yield


def permuted(index: np.ndarray, size: int, seed: int, purpose: str, *indices: int) -> np.ndarray:
    """Look up positions `index` in a pseudo-random permutation of range(size).

    Takes O(len(index)) time and O(1) additional memory, so that a corpus of any size needs no shuffled list. The
    permutation is a four-round Feistel network on the next even power of two, with cycle walking (Black and Rogaway
    2002, "Ciphers with Arbitrary Finite Domains").

    Args:
        index: integers in [0, size), any shape.
        size: number of permuted elements, at least 1.
        seed, purpose, indices: select the permutation, as in `generator`.
    Returns:
        int64 array of the shape of `index`.
    """
    if size < 1:
        raise ValueError(f"cannot permute {size} elements")
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    rounds = generator(seed, purpose, *indices).integers(0, 2**63, size=4, dtype=np.uint64)

    def encrypt(value: np.ndarray) -> np.ndarray:
        left, right = value >> shift, value & mask
        for round_key in rounds:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        return (left << shift) | right

    value = encrypt(np.asarray(index, dtype=np.uint64))
    while (outside := value >= size).any():
        value = np.where(outside, encrypt(value), value)
    return value.astype(np.int64)


def _mix(value: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64: a 64-bit hash of each element."""
    with np.errstate(over="ignore"):
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))
