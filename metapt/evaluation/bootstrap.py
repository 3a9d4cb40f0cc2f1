"""Resampling of micro-F1: bootstrap, randomization test, Holm's correction.

All statistics are computed from span counts per unit, a sentence or a document (`by_unit`). A resample gives every unit
a weight, and its totals are weights times counts, so 10,000 resamples are one matrix product. All resamples are
functions of (seed, name of the set), so that systems scored on the same sentences are compared on the same resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metapt.randomness import generator

RESAMPLES = 10_000
SEED = 0
LEVEL = 0.95
"""of every confidence interval"""
CHUNK = 500  # resamples per random stream: another value gives other resamples
SWAP_CHUNK = 512  # resamples swapped at a time; a multiple of 8, because swaps are packed bits
TIE = 1e-12  # differences below this are rounding


def micro_f1(counts: np.ndarray) -> np.ndarray:
    """Compute F1 = 2 correct / (predicted + gold) from counts [..., 3]; 0 if there is no span at all, as in seqeval."""
    counts = np.asarray(counts, dtype=np.float64)
    total = counts[..., 1] + counts[..., 2]
    return np.divide(2 * counts[..., 0], total, out=np.zeros_like(total), where=total > 0)


def by_unit(counts: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Sum the span counts of the sentences of each unit.

    Args:
        counts: integers [..., sentences, 3].
        units: the unit of each sentence, numbered from 0 in order of appearance, [sentences].
    Returns: [..., units, 3].
    """
    sentences = counts.shape[-2]
    if not sentences or units[-1] == sentences - 1:
        return counts
    summed = np.zeros((*counts.shape[:-2], units.max() + 1, 3), dtype=np.int64)
    np.add.at(np.moveaxis(summed, -2, 0), units, np.moveaxis(counts, -2, 0))
    return summed


def unit_weights(units: int, name: str, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """Sample the bootstrap resamples: how often each unit occurs in each of them.

    A resample has as many units as the set, sampled with replacement (Efron 1979; Koehn 2004, "Statistical
    significance tests for machine translation evaluation"). It is a function of (seed, name of the set) alone.

    Returns: unsigned integers [units, resamples].
    """
    parts = []
    for start in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - start)
        sampled = generator(seed, f"bootstrap/{name}", start).integers(0, units, (size, units))
        flat = (sampled + np.arange(size)[:, None] * units).ravel()
        weights = np.bincount(flat, minlength=size * units).reshape(size, units)
        parts.append(weights.astype(np.uint8 if weights.max(initial=0) < 256 else np.uint16))
    return np.ascontiguousarray(np.concatenate(parts).T)


def f1_samples(
    counts: np.ndarray,
    name: str,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Compute the micro-F1 of several systems in each bootstrap resample of the units.

    In fp32; the matrix product is exact, because the span counts of a set are far below 2^24.

    Args:
        counts: integers [systems, units, (correct, predicted, gold)].
        weights: `unit_weights` of (name, resamples, seed), if already computed.
    Returns: [systems, resamples]; all NaN if the units have no gold span.
    """
    systems, units, _ = counts.shape
    if not counts[..., 2].any():
        return np.full((systems, resamples), np.nan, dtype=np.float32)
    if weights is None:
        weights = unit_weights(units, name, resamples, seed)
    nonzero = counts.any(axis=(0, 2))  # units without any span contribute nothing
    rows, weights = _rows(counts[:, nonzero]), weights[nonzero]
    samples = np.empty((systems, resamples), dtype=np.float32)
    for start in range(0, resamples, CHUNK):
        part = weights[:, start : start + CHUNK].astype(np.float32)
        samples[:, start : start + CHUNK] = 2 * _half_f1((rows @ part).reshape(2, systems, -1), np.float32)
    return samples


def _rows(counts: np.ndarray) -> np.ndarray:
    """Stack correct, and predicted plus gold: [systems, units, 3] to fp32 [2 * systems, sentences]."""
    correct, total = counts[..., 0], counts[..., 1] + counts[..., 2]
    return np.concatenate([correct, total]).astype(np.float32)


def _half_f1(counts: np.ndarray, precision: type[np.floating]) -> np.ndarray:
    """Compute half of `micro_f1` from [correct, predicted plus gold]; 0 without any span. Changes its argument."""
    np.maximum(counts[1], 1, out=counts[1])
    correct, total = counts.astype(precision, copy=False)
    return np.divide(correct, total, out=correct)


def swap_bits(units: int, name: str, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """Sample which units are swapped in each resample, as a function of (seed, name of the set) alone.

    Returns: bits packed as in `numpy.packbits`, uint8 [units, resamples / 8].
    """
    return generator(seed, f"swaps/{name}").integers(0, 256, (units, -(-resamples // 8)), dtype=np.uint8)


def swapped_differences(
    first: np.ndarray,
    second: np.ndarray,
    name: str,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    bits: np.ndarray | None = None,
) -> np.ndarray:
    """Compute differences in micro-F1 after swapping the outputs of two systems on random units.

    This is approximate randomization: each resample swaps each unit with probability 1/2 (Noreen 1989; Yeh 2000,
    "More accurate tests for the statistical significance of result differences"). Several pairs (for example, one per
    seed) are swapped on the same units, which preserves the correlation of their outputs on a unit.

    Args:
        first, second: integers [pairs, units, (correct, predicted, gold)], with the same gold.
        name: of the set.
        bits: `swap_bits` of (name, resamples, seed), if already computed.
    Returns: first minus second, fp64 [pairs, resamples]. With a thousand spans, distinct differences can be 1e-9 apart,
        too close for fp32.
    """
    pairs, units, _ = first.shape
    if bits is None:
        bits = swap_bits(units, name, resamples, seed)
    change = second - first
    differing = change.any(axis=(0, 2))  # swapping the other units changes nothing
    rows, bits = _rows(change[:, differing]), bits[differing]
    one, other = (_rows(counts.sum(axis=1, keepdims=True)).reshape(2, pairs, 1) for counts in (first, second))
    samples = np.empty((pairs, resamples))
    for start in range(0, resamples, SWAP_CHUNK):
        size = min(SWAP_CHUNK, resamples - start)
        packed = bits[:, start // 8 : (start + SWAP_CHUNK) // 8]
        swapped = np.unpackbits(packed, axis=1, count=size).astype(np.float32)
        moved = (rows @ swapped).reshape(2, pairs, size)  # exact, as in f1_samples
        gap = _half_f1(one + moved, np.float64) - _half_f1(other - moved, np.float64)
        samples[:, start : start + size] = 2 * gap
    return samples


def p_value(observed: float, samples: np.ndarray) -> float:
    """Compute the two-sided p-value of a difference from the differences after random swaps [resamples].

    p = (1 + number of samples at least as large) / (1 + resamples). The added 1 is the observed arrangement, so that p
    is never 0 (Phipson and Smyth 2010).
    """
    as_large = np.count_nonzero(np.abs(samples) >= abs(observed) - TIE)
    return (1 + as_large) / (1 + len(samples))


def holm(values: Sequence[float]) -> list[float]:
    """Correct the p-values of a family of tests (Holm 1979).

    Rejecting every hypothesis whose corrected p-value is below a keeps the family-wise error rate below a. A NaN is a
    hypothesis that is not tested: it stays NaN and does not count, since it cannot be rejected.
    """
    corrected, largest = list(values), 0.0
    tested = sorted((index for index, value in enumerate(values) if value == value), key=values.__getitem__)
    for rank, index in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * values[index]))
        corrected[index] = largest
    return corrected
