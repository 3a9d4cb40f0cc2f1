"""How sure a micro-F1, or a difference of two, is: bootstrap, randomisation test, smallest detectable difference.

Everything acts on span counts by sentence, so 10,000 resamples are a matrix product: a resample gives every sentence
a weight, and its totals are weights times counts. All draws are functions of (seed, name of the set), so systems that
were scored on the same sentences are compared on the same draws. numpy only: the analysis uses it too.
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
CHUNK = 500  # part of what sentences are drawn from: another one draws others
SWAPPED = 512  # resamples that are swapped at a time, whole bytes of bits
TIE = 1e-12  # differences that are equal but for rounding


def micro_f1(counts: np.ndarray) -> np.ndarray:
    """F1 = 2 correct / (predicted + gold) over the last axis [..., 3]; 0 where there is no span at all, as in seqeval."""
    counts = np.asarray(counts, dtype=np.float64)
    total = counts[..., 1] + counts[..., 2]
    return np.divide(2 * counts[..., 0], total, out=np.zeros_like(total), where=total > 0)


def sentence_weights(sentences: int, name: str, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """How often each sentence is drawn in each bootstrap resample: unsigned integers [sentences, resamples].

    Sentences are drawn with replacement, as many as there are (Efron 1979; Koehn 2004, "Statistical significance
    tests for machine translation evaluation"): how often each is drawn is one multinomial draw, a function of
    (seed, name of the set) and of nothing else.
    """
    parts = []
    for start in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - start)
        drawn = generator(seed, f"bootstrap/{name}", start).integers(0, sentences, (size, sentences))
        flat = (drawn + np.arange(size)[:, None] * sentences).ravel()
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
    """Micro-F1 of several systems in each bootstrap resample of the sentences (`sentence_weights`).

    In fp32; the matrix product is exact, span counts of a set being far below 2^24.

    Args:
        counts: integers [systems, sentences, (correct, predicted, gold)].
        weights: those of (name, resamples, seed), if they are at hand.
    Returns: [systems, resamples]; NaN throughout for sentences without a gold span.
    """
    systems, sentences, _ = counts.shape
    if not counts[..., 2].any():
        return np.full((systems, resamples), np.nan, dtype=np.float32)
    if weights is None:
        weights = sentence_weights(sentences, name, resamples, seed)
    chosen = counts.any(axis=(0, 2))  # the other sentences add nothing
    rows, weights = _rows(counts[:, chosen]), weights[chosen]
    found = np.empty((systems, resamples), dtype=np.float32)
    for start in range(0, resamples, CHUNK):
        part = weights[:, start : start + CHUNK].astype(np.float32)
        found[:, start : start + CHUNK] = 2 * _half_f1((rows @ part).reshape(2, systems, -1), np.float32)
    return found


def _rows(counts: np.ndarray) -> np.ndarray:
    """Correct spans, and predicted and gold ones together: [systems, sentences, 3] to [2 * systems, sentences] in fp32."""
    correct, total = counts[..., 0], counts[..., 1] + counts[..., 2]
    return np.concatenate([correct, total]).astype(np.float32)


def _half_f1(counts: np.ndarray, precision: type[np.floating]) -> np.ndarray:
    """Half of `micro_f1`, of [correct, predicted and gold together]; where there is no span, none is correct."""
    np.maximum(counts[1], 1, out=counts[1])
    correct, total = counts.astype(precision, copy=False)
    return np.divide(correct, total, out=correct)


@lru_cache(maxsize=64)
def seed_weights(seeds: int, name: str, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """The weight of each training seed in each resample. [seeds, resamples] in fp32, columns sum to 1.

    Seeds are crossed with sentences (each seed is scored on all of them) and drawn independently of them: the pigeonhole
    bootstrap (Owen 2007, Annals of Applied Statistics 1). Of n seeds n - 1 are drawn, so that the variance of a mean
    over few is unbiased (Rao and Wu 1988, JASA 83). A seed alone has weight 1: nothing is known of its spread.
    The array is shared, and cannot be written to.
    """
    found = np.ones((1, resamples), dtype=np.float32)
    if seeds > 1:
        shares = np.full(seeds, 1 / seeds)
        draw = generator(seed, f"bootstrap over seeds/{name}", seeds)
        found = (draw.multinomial(seeds - 1, shares, resamples).T / (seeds - 1)).astype(np.float32)
    found.setflags(write=False)
    return found


def percentile_interval(samples: np.ndarray) -> tuple[float, float]:
    """The percentile interval at LEVEL of a figure's samples [resamples]; (NaN, NaN) if one is undefined."""
    ordered = np.sort(samples)  # whole: of fp32 faster than np.quantile, and NaN stands last
    if np.isnan(ordered[-1]):
        return (np.nan, np.nan)
    places = (len(ordered) - 1) * np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    below = places.astype(int)
    steps = ordered[np.minimum(below + 1, len(ordered) - 1)] - ordered[below]
    low, high = ordered[below] + (places - below) * steps
    return (float(low), float(high))


def swaps(sentences: int, name: str, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """Which sentences are swapped: bits packed by `numpy.packbits`, [sentences, resamples / 8].

    A function of (seed, name of the set) and of nothing else.
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
    """Differences in micro-F1 of two systems whose outputs are swapped on random sentences (approximate randomisation).

    Each resample swaps each sentence with probability 1/2 (Noreen 1989; Yeh 2000, "More accurate tests for the
    statistical significance of result differences"). Several pairs (seeds of both systems, say) are swapped on the
    same sentences, so that what their outputs for a sentence have in common stays together.

    Args:
        first, second: integers [pairs, sentences, (correct, predicted, gold)], with the same gold.
        name: of the set.
        bits: `swaps` of (name, resamples, seed), if they are at hand.
    Returns: first minus second, [pairs, resamples] in fp64: with a thousand spans different arrangements come as near as 1e-9.
    """
    pairs, sentences, _ = first.shape
    if bits is None:
        bits = swaps(sentences, name, resamples, seed)
    change = second - first
    differing = change.any(axis=(0, 2))  # swapping the others changes nothing
    rows, bits = _rows(change[:, differing]), bits[differing]
    one, other = (_rows(counts.sum(axis=1, keepdims=True)).reshape(2, pairs, 1) for counts in (first, second))
    found = np.empty((pairs, resamples))
    for start in range(0, resamples, SWAPPED):
        size = min(SWAPPED, resamples - start)
        swapped = np.unpackbits(bits[:, start // 8 : (start + SWAPPED) // 8], axis=1, count=size).astype(np.float32)  # fmt: skip
        moved = (rows @ swapped).reshape(2, pairs, size)  # exact, as in f1_samples
        gap = _half_f1(one + moved, np.float64) - _half_f1(other - moved, np.float64)
        found[:, start : start + size] = 2 * gap
    return found


def p_value(observed: float, samples: np.ndarray) -> float:
    """Two-sided p of a difference, given those of random swaps [resamples]: (1 + as large ones) / (1 + resamples).

    The one added is the arrangement that was observed: p is never 0 (Phipson and Smyth 2010).
    """
    as_large = np.count_nonzero(np.abs(samples) >= abs(observed) - TIE)
    return (1 + as_large) / (1 + len(samples))


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979) of the p of a family: each below `a` there keeps the family-wise error below `a`."""
    corrected, largest = list(values), 0.0
    for rank, place in enumerate(sorted(range(len(corrected)), key=corrected.__getitem__)):
        largest = max(largest, min(1.0, (len(corrected) - rank) * values[place]))
        corrected[place] = largest
    return corrected


def detectable_difference(samples: np.ndarray) -> float:
    """The smallest true difference that a test at level 1 - LEVEL (two-sided) would find with probability POWER.

    (z(1 - alpha / 2) + z(POWER)) standard errors, 2.80 of them here (Bloom 1995, "Minimum detectable effects");
    the standard error is the deviation of the bootstrapped differences.

    Args:
        samples: of the difference, [resamples].
    Returns: NaN where the samples do not vary (two systems that find nothing, say) or one is undefined.
    """
    error = float(np.std(samples))
    normal = NormalDist()
    return (normal.inv_cdf((1 + LEVEL) / 2) + normal.inv_cdf(POWER)) * error if error > 0 else float("nan")
