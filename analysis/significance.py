"""Figures with their resamples: what one run scores on one set, means over seeds, and differences of two systems.

The statistics are in metapt/ner/resampling.py; here runs are brought to them. The same draws serve every system on the
same sentences, so a difference of two systems is paired; different sets are drawn independently of one another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
    swapped_differences,
)

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

    @property
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

    @property
    def estimate(self) -> Estimate:
        """First minus second."""
        return self.first - self.second

    @property
    def p(self) -> float:
        return p_value(self.estimate.value, self.swapped)

    @property
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
    """The F1 of every run (by its folder) on every set, as estimates that can be subtracted and averaged."""

    def __init__(self, runs: Sequence[FinetuneRun], resamples: int = RESAMPLES, seed: int = SEED):
        self._resamples, self._seed = resamples, seed
        self._differences: dict[tuple[Path | str, ...], Difference] = {}
        self._estimates: dict[tuple[Path, str], Estimate] = {}
        for gold in {id(found.gold): found.gold for run in runs for found in run.sets.values()}.values():
            self._score(gold, [run for run in runs if _has(run, gold)])

    def _score(self, gold: GoldSet, runs: Sequence[FinetuneRun]) -> None:
        counts = np.stack([run.sets[gold.name].counts for run in runs])
        samples = f1_samples(counts, gold.name, self._resamples, self._seed).astype(np.float32)
        values = micro_f1(counts.sum(axis=1))
        for run, value, row in zip(runs, values, samples, strict=True):
            self._estimates[run.path, gold.name] = Estimate(float(value) if gold.gold_spans else np.nan, row)

    def __call__(self, run: FinetuneRun, set_name: str) -> Estimate:
        return self._estimates[run.path, set_name]

    def mean(self, runs: Sequence[FinetuneRun], set_name: str) -> Estimate:
        """The mean over runs that differ in the seed only."""
        return over_seeds((self(run, set_name) for run in runs), model_name(runs[0]), self._seed)

    def difference(self, pairs: Sequence[tuple[FinetuneRun, FinetuneRun]], set_name: str) -> Difference:
        """The first of each pair minus the second, mean over pairs, which differ in the seed only.

        Args:
            pairs: one or more of those that `comparable` gives.
        """
        key: tuple[Path | str, ...] = (set_name, *(run.path for pair in pairs for run in pair))
        if key not in self._differences:
            self._differences[key] = self._difference(pairs, set_name)
        return self._differences[key]

    def _difference(self, pairs: Sequence[tuple[FinetuneRun, FinetuneRun]], set_name: str) -> Difference:
        first, second = zip(*pairs, strict=True)
        one, other = (np.stack([run.sets[set_name].counts for run in runs]) for runs in (first, second))
        swapped = swapped_differences(one, other, set_name, self._resamples, self._seed).mean(axis=0)
        return Difference(self.mean(first, set_name), self.mean(second, set_name), swapped.astype(np.float32))


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


def _has(run: FinetuneRun, gold: GoldSet) -> bool:
    return gold.name in run.sets and run.sets[gold.name].gold is gold
