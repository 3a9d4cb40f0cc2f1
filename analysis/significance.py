"""Figures with their resamples: what one run scores on one set, means over seeds, and differences of two systems.

The statistics are in metapt/ner/resampling.py; here runs are brought to them. The same draws serve every system on the
same sentences, so a difference of two systems is paired; different sets are drawn independently of one another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from analysis.records import FinetuneRun, GoldSet
from metapt.ner.resampling import (
    LEVEL,
    POWER,
    RESAMPLES,
    SEED,
    detectable_difference,
    f1_samples,
    micro_f1,
    p_value,
    percentile_interval,
    seed_weights,
    sentence_weights,
    swapped_differences,
    swaps,
)

BLOCK, BLOCKS = 50, 32  # runs whose resamples are made together, and so many times of them kept: 64 MB

DEFINITION = (
    f"Intervals: {LEVEL:.0%} percentile bootstrap over sentences (Efron 1979; Koehn 2004), {RESAMPLES:,} resamples, seed {SEED}. "
    "The sentences of a set are drawn with replacement and micro-F1 is computed from their summed span counts; a resample "
    "without any span has F1 0. Two systems are scored on the same draws (paired); sets are drawn independently. Where there are "
    "several training seeds, these are drawn too, independently of the sentences (the pigeonhole bootstrap, Owen 2007), n - 1 of n so that the "
    "variance over few is unbiased (Rao and Wu 1988), the same for both systems of a pair and for all settings of a scale; with two or three seeds the "
    "interval is still too narrow. With one seed, an interval tells only how much a figure depends on which sentences are in the set. "
    "p: approximate randomisation test (Noreen 1989; Yeh 2000), two-sided: the outputs of the two systems are swapped on each sentence with probability "
    f"1/2, for all seeds together, {RESAMPLES:,} times; p is (1 + the number of differences at least as large) / (1 + {RESAMPLES:,}). It takes "
    "the trained models as given, and asks whether sentences tell them apart. "
    f"Detectable: the smallest true difference that a two-sided test at level {1 - LEVEL:.2f} would find with probability {POWER:.0%}, "
    "(1.96 + 0.84) standard errors of the bootstrapped difference (Bloom 1995); a smaller one would mostly be missed on this set by these systems. "
    "No correction is made for the number of comparisons: of differences that are truly zero, about one interval in "
    "twenty leaves out 0, and more where a set is tiny. A set without gold spans has no F1."
)


@dataclass(frozen=True, eq=False)
class Estimate:
    """A figure and its value in each resample [resamples]. Arithmetic acts on both."""

    value: float
    samples: np.ndarray

    def __sub__(self, other: Estimate) -> Estimate:
        return Estimate(self.value - other.value, self.samples - other.samples)

    def relative_to(self, other: Estimate) -> Estimate:
        """self / other - 1; NaN where `other` is 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            samples = np.where(other.samples > 0, self.samples / other.samples - 1, np.nan)
        return Estimate(self.value / other.value - 1 if other.value > 0 else np.nan, samples)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The percentile interval at LEVEL; (NaN, NaN) if the figure is undefined, be it in one resample."""
        return (np.nan, np.nan) if np.isnan(self.value) else percentile_interval(self.samples)

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside of the interval; False where there is none."""
        low, high = self.interval
        return low > 0 or high < 0


def average(estimates: Iterable[Estimate]) -> Estimate:
    """The unweighted mean of one or more estimates."""
    parts = list(estimates)
    value = float(np.mean([part.value for part in parts]))
    return Estimate(value, np.mean([part.samples for part in parts], axis=0))


def over_seeds(estimates: Iterable[Estimate], name: str, seed: int = SEED) -> Estimate:
    """The mean over training seeds, one estimate each, whose resamples draw the seeds too (`seed_weights`).

    Args:
        name: of the model; settings that share its seeds get the same draws of them.
    """
    parts = list(estimates)
    samples = np.stack([part.samples for part in parts])
    weights = seed_weights(len(parts), name, samples.shape[1], seed)
    return Estimate(float(np.mean([part.value for part in parts])), (weights * samples).sum(axis=0))


@dataclass(frozen=True, eq=False)
class Difference:
    """Two systems and what tells them apart. `swapped` is [resamples]: their difference after random swaps."""

    first: Estimate
    second: Estimate
    swapped: np.ndarray

    @cached_property
    def estimate(self) -> Estimate:
        """First minus second."""
        return self.first - self.second

    @cached_property
    def p(self) -> float:
        return p_value(self.estimate.value, self.swapped)

    @cached_property
    def detectable(self) -> float:
        """The smallest true difference that could have been shown; NaN if unknown."""
        return detectable_difference(self.estimate.samples)


def average_difference(differences: Iterable[Difference]) -> Difference:
    """The unweighted mean of one or more differences."""
    parts = list(differences)
    return Difference(
        average(part.first for part in parts),
        average(part.second for part in parts),
        np.mean([part.swapped for part in parts], axis=0),
    )


class Scores:
    """The F1 of every run (by its folder) on every set, as estimates that can be subtracted and averaged.

    Values are worked out at once. Resamples take 10,000 numbers for each run and set, so they are made when they are
    asked for, for a block of runs together (one matrix product), and only the blocks used last are kept.
    """

    def __init__(self, runs: Sequence[FinetuneRun], resamples: int = RESAMPLES, seed: int = SEED):
        self._resamples, self._seed = resamples, seed
        self._differences: dict[tuple[Path | str, ...], Difference] = {}
        self._values: dict[tuple[Path, str], float] = {}
        self._blocks: dict[tuple[Path, str], tuple[FinetuneRun, ...]] = {}
        by_gold: dict[GoldSet, list[FinetuneRun]] = {}
        for run in runs:
            for evaluation in run.sets.values():
                by_gold.setdefault(evaluation.gold, []).append(run)
        for gold, scored in by_gold.items():
            for start in range(0, len(scored), BLOCK):
                self._add(gold, tuple(scored[start : start + BLOCK]))
        self._weights = lru_cache(maxsize=None)(lambda gold: sentence_weights(len(gold.ids), gold.name, resamples, seed))  # fmt: skip
        self._swaps = lru_cache(maxsize=None)(lambda gold: swaps(len(gold.ids), gold.name, resamples, seed))
        self._samples = lru_cache(maxsize=BLOCKS)(self._samples_of_block)

    def _add(self, gold: GoldSet, runs: tuple[FinetuneRun, ...]) -> None:
        totals = np.stack([run.sets[gold.name].counts.sum(axis=0) for run in runs])
        for run, value in zip(runs, micro_f1(totals).tolist(), strict=True):
            self._values[run.path, gold.name] = value if gold.gold_spans else np.nan
            self._blocks[run.path, gold.name] = runs

    def _samples_of_block(self, runs: tuple[FinetuneRun, ...], set_name: str) -> dict[Path, np.ndarray]:  # fmt: skip
        evaluations = [run.sets[set_name] for run in runs]
        weights = self._weights(evaluations[0].gold)
        counts = np.stack([evaluation.counts for evaluation in evaluations])
        samples = f1_samples(counts, set_name, self._resamples, self._seed, weights).astype(np.float32)
        return {run.path: row for run, row in zip(runs, samples, strict=True)}

    def value(self, run: FinetuneRun, set_name: str) -> float:
        return self._values[run.path, set_name]

    def __call__(self, run: FinetuneRun, set_name: str) -> Estimate:
        samples = self._samples(self._blocks[run.path, set_name], set_name)[run.path]
        return Estimate(self.value(run, set_name), samples)

    def mean(self, runs: Sequence[FinetuneRun], set_name: str) -> Estimate:
        """The mean over runs that differ in the seed only."""
        return over_seeds((self(run, set_name) for run in runs), model_name(runs[0]), self._seed)

    def difference(self, pairs: Sequence[tuple[FinetuneRun, FinetuneRun]], set_name: str) -> Difference:
        """The first of each pair minus the second, mean over pairs, which differ in the seed only.

        Args:
            pairs: one or more of those that `comparable` gives.
        """
        first, second = zip(*pairs, strict=True)
        one, other = (np.stack([run.sets[set_name].counts for run in runs]) for runs in (first, second))
        bits = self._swaps(first[0].sets[set_name].gold)
        swapped = swapped_differences(one, other, set_name, self._resamples, self._seed, bits).mean(axis=0)
        return Difference(self.mean(first, set_name), self.mean(second, set_name), swapped.astype(np.float32))

    def kept_difference(self, pairs: Sequence[tuple[FinetuneRun, FinetuneRun]], set_name: str) -> Difference:
        """The same, worked out once: the comparisons under each term ask for it, and their resamples are averaged later."""
        key: tuple[Path | str, ...] = (set_name, *(run.path for pair in pairs for run in pair))
        if key not in self._differences:
            self._differences[key] = self.difference(pairs, set_name)
        return self._differences[key]


def comparable(
    pairs: Iterable[tuple[FinetuneRun, FinetuneRun]], set_name: str
) -> list[tuple[FinetuneRun, FinetuneRun]]:
    """The pairs of which both runs were scored on the same sentences of a set, if these hold a span."""
    found = []
    for pair in pairs:
        first, second = (run.sets.get(set_name) for run in pair)
        if first is not None and second is not None and first.gold is second.gold and first.gold.gold_spans:
            found.append(pair)
    return found


def model_name(run: FinetuneRun) -> str:
    """Scale and variant: what is pretrained anew for each seed, whatever is then tuned."""
    return f"{run.setting.scale}/{run.setting.label}"
