"""Uncertainty of a micro-F1 or of a difference of two: bootstrap, randomization test, minimum detectable effect.

All statistics are computed from span counts per sentence. A resample gives every sentence a weight, and its totals are
weights times counts, so 10,000 resamples are one matrix product. All resamples are functions of (seed, name of the
set), so that systems scored on the same sentences are compared on the same resamples. Needs only numpy, so that the
analysis can use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from metapt.randomness import generator

RESAMPLES = 10_000
SEED = 0
LEVEL = 0.95
POWER = 0.80
CHUNK = 500  # resamples per random stream: another value gives other resamples
SWAP_CHUNK = 512  # resamples swapped at a time; a multiple of 8, because swaps are packed bits
TIE = 1e-12  # differences below this are rounding


def micro_f1(counts: np.ndarray) -> np.ndarray:
    """Compute F1 = 2 correct / (predicted + gold) from counts [..., 3]; 0 if there is no span at all, as in seqeval."""
    counts = np.asarray(counts, dtype=np.float64)
    total = counts[..., 1] + counts[..., 2]
    return np.divide(2 * counts[..., 0], total, out=np.zeros_like(total), where=total > 0)


def sentence_weights(sentences: int, name: str, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """Sample the bootstrap resamples: how often each sentence occurs in each of them.

    A resample has as many sentences as the set, sampled with replacement (Efron 1979; Koehn 2004, "Statistical
    significance tests for machine translation evaluation"). It is a function of (seed, name of the set) alone.

    Returns: unsigned integers [sentences, resamples].
    """
    parts = []
    for start in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - start)
        sampled = generator(seed, f"bootstrap/{name}", start).integers(0, sentences, (size, sentences))
        flat = (sampled + np.arange(size)[:, None] * sentences).ravel()
        weights = np.bincount(flat, minlength=size * sentences).reshape(size, sentences)
        parts.append(weights.astype(np.uint8 if weights.max(initial=0) < 256 else np.uint16))
    return np.ascontiguousarray(np.concatenate(parts).T)


def f1_samples(
    counts: np.ndarray,
    name: str,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Compute the micro-F1 of several systems in each bootstrap resample of the sentences.

    In fp32; the matrix product is exact, because the span counts of a set are far below 2^24.

    Args:
        counts: integers [systems, sentences, (correct, predicted, gold)].
        weights: `sentence_weights` of (name, resamples, seed), if already computed.
    Returns: [systems, resamples]; all NaN if the sentences have no gold span.
    """
    systems, sentences, _ = counts.shape
    if not counts[..., 2].any():
        return np.full((systems, resamples), np.nan, dtype=np.float32)
    if weights is None:
        weights = sentence_weights(sentences, name, resamples, seed)
    nonzero = counts.any(axis=(0, 2))  # sentences without any span contribute nothing
    rows, weights = _rows(counts[:, nonzero]), weights[nonzero]
    samples = np.empty((systems, resamples), dtype=np.float32)
    for start in range(0, resamples, CHUNK):
        part = weights[:, start : start + CHUNK].astype(np.float32)
        samples[:, start : start + CHUNK] = 2 * _half_f1((rows @ part).reshape(2, systems, -1), np.float32)
    return samples


def _rows(counts: np.ndarray) -> np.ndarray:
    """Stack correct, and predicted plus gold: [systems, sentences, 3] to fp32 [2 * systems, sentences]."""
    correct, total = counts[..., 0], counts[..., 1] + counts[..., 2]
    return np.concatenate([correct, total]).astype(np.float32)


def _half_f1(counts: np.ndarray, precision: type[np.floating]) -> np.ndarray:
    """Compute half of `micro_f1` from [correct, predicted plus gold]; 0 without any span. Changes its argument."""
    np.maximum(counts[1], 1, out=counts[1])
    correct, total = counts.astype(precision, copy=False)
    return np.divide(correct, total, out=correct)


@lru_cache(maxsize=64)
def seed_weights(seeds: int, name: str, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """Sample the weight of each training seed in each resample. fp32 [seeds, resamples]; columns sum to 1.

    Seeds are crossed with sentences (each seed is scored on all of them) and resampled independently of them: the
    pigeonhole bootstrap (Owen 2007, Annals of Applied Statistics 1). Of n seeds, n - 1 are sampled, so that the
    variance of a mean over few seeds is unbiased (Rao and Wu 1988, JASA 83). A single seed has weight 1, because its
    spread is unknown. The array is cached and therefore read-only.
    """
    weights = np.ones((1, resamples), dtype=np.float32)
    if seeds > 1:
        probabilities = np.full(seeds, 1 / seeds)
        rng = generator(seed, f"bootstrap over seeds/{name}", seeds)
        counts = rng.multinomial(seeds - 1, probabilities, resamples).T
        weights = (counts / (seeds - 1)).astype(np.float32)
    weights.setflags(write=False)
    return weights


def percentile_interval(samples: np.ndarray) -> tuple[float, float]:
    """Compute the percentile interval at LEVEL of samples [resamples]; (NaN, NaN) if any sample is NaN."""
    ordered = np.sort(samples)  # faster than np.quantile for fp32, and NaN sorts last
    if np.isnan(ordered[-1]):
        return (np.nan, np.nan)
    positions = (len(ordered) - 1) * np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    below = positions.astype(int)
    steps = ordered[np.minimum(below + 1, len(ordered) - 1)] - ordered[below]
    low, high = ordered[below] + (positions - below) * steps
    return (float(low), float(high))


def swap_bits(sentences: int, name: str, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """Sample which sentences are swapped in each resample, as a function of (seed, name of the set) alone.

    Returns: bits packed as in `numpy.packbits`, uint8 [sentences, resamples / 8].
    """
    return generator(seed, f"swaps/{name}").integers(0, 256, (sentences, -(-resamples // 8)), dtype=np.uint8)


def swapped_differences(
    first: np.ndarray,
    second: np.ndarray,
    name: str,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    bits: np.ndarray | None = None,
) -> np.ndarray:
    """Compute differences in micro-F1 after swapping the outputs of two systems on random sentences.

    This is approximate randomization: each resample swaps each sentence with probability 1/2 (Noreen 1989; Yeh 2000,
    "More accurate tests for the statistical significance of result differences"). Several pairs (for example, one per
    seed) are swapped on the same sentences, which preserves the correlation of their outputs on a sentence.

    Args:
        first, second: integers [pairs, sentences, (correct, predicted, gold)], with the same gold.
        name: of the set.
        bits: `swap_bits` of (name, resamples, seed), if already computed.
    Returns: first minus second, fp64 [pairs, resamples]. With a thousand spans, distinct differences can be 1e-9 apart,
        too close for fp32.
    """
    pairs, sentences, _ = first.shape
    if bits is None:
        bits = swap_bits(sentences, name, resamples, seed)
    change = second - first
    differing = change.any(axis=(0, 2))  # swapping the other sentences changes nothing
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

    Rejecting every hypothesis whose corrected p-value is below a keeps the family-wise error rate below a.
    """
    corrected, largest = list(values), 0.0
    for rank, index in enumerate(sorted(range(len(corrected)), key=corrected.__getitem__)):
        largest = max(largest, min(1.0, (len(corrected) - rank) * values[index]))
        corrected[index] = largest
    return corrected


def minimum_detectable_effect(samples: np.ndarray) -> float:
    """Compute the smallest true difference that a two-sided test at level 1 - LEVEL detects with probability POWER.

    It is (z(1 - alpha / 2) + z(POWER)) standard errors, here 2.80 (Bloom 1995, "Minimum detectable effects"). The
    standard error is the standard deviation of the bootstrap samples.

    Args:
        samples: bootstrap samples of the difference, [resamples].
    Returns: NaN if the samples do not vary (for example, if neither system finds anything) or any sample is NaN.
    """
    error = float(np.std(samples))
    normal = NormalDist()
    return (normal.inv_cdf((1 + LEVEL) / 2) + normal.inv_cdf(POWER)) * error if error > 0 else float("nan")
