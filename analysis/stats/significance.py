"""Figures with their resamples: what one run scores on one set, means over seeds, and differences of two systems.

The statistics are in metapt/evaluation/bootstrap.py; here runs are brought to them. The same draws serve every system on the
same sentences, so a difference of two systems is paired; different sets are drawn independently of one another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np

from metapt.evaluation.bootstrap import (
    LEVEL,
    POWER,
    RESAMPLES,
    SEED,
    detectable_difference,
    f1_samples,
    p_value,
    percentile_interval,
    seed_weights,
    sentence_weights,
    swapped_differences,
    swaps,
)

from ..load.records import FinetuneRun, GoldSet

BLOCK = 400  # runs whose resamples are made together: some 30 MB

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


class Told(NamedTuple):
    """What is told of a figure: its value, its interval, and the smallest difference that could have been shown."""

    value: float
    interval: tuple[float, float]
    detectable: float

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside of the interval; False where there is none."""
        low, high = self.interval
        return low > 0 or high < 0


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


def average(estimates: Iterable[Estimate]) -> Estimate:
    """The unweighted mean of one or more estimates."""
    parts = list(estimates)
    value = fmean(part.value for part in parts)
    return Estimate(value, np.mean([part.samples for part in parts], axis=0))


def over_seeds(estimates: Iterable[Estimate], name: str, seed: int = SEED) -> Estimate:
    """The mean over training seeds, one estimate each, whose resamples draw the seeds too (`seed_weights`).

    Args:
        name: of the model; settings that share its seeds get the same draws of them.
    """
    parts = list(estimates)
    samples = np.stack([part.samples for part in parts])
    weights = seed_weights(len(parts), name, samples.shape[1], seed)
    return Estimate(fmean(part.value for part in parts), np.einsum("sr,sr->r", weights, samples))


@dataclass(frozen=True, eq=False)
class Difference:
    """Two systems and what tells them apart. `swapped` is [resamples]: their difference after random swaps."""

    first: Estimate
    second: Estimate
    swapped: np.ndarray

    @property
    def estimate(self) -> Estimate:
        """First minus second, worked out at each call: of thousands of differences the samples are not kept."""
        return self.first - self.second

    @cached_property
    def told(self) -> Told:
        """What is told of first minus second."""
        gap = self.estimate
        return Told(gap.value, gap.interval, detectable_difference(gap.samples))

    @cached_property
    def p(self) -> float:
        return p_value(self.first.value - self.second.value, self.swapped)


def average_difference(differences: Iterable[Difference]) -> Difference:
    """The unweighted mean of one or more differences."""
    parts = list(differences)
    return Difference(
        average(part.first for part in parts),
        average(part.second for part in parts),
        np.mean([part.swapped for part in parts], axis=0),
    )


Pairs = Sequence[tuple[FinetuneRun, FinetuneRun]]
"""runs that are compared one to one, and differ in the seed only"""
Key = tuple[Path | str, ...]
"""a set and the folders of runs"""


class Scores:
    """The F1 of every run (by its folder) on every set, as estimates that can be subtracted and averaged.

    Values are worked out at once, resamples when they are asked for: those of many runs in one matrix product. Means over seeds
    and differences are kept (in fp32), since the comparisons under each term ask for the same ones; samples of single runs are not.
    """

    def __init__(self, runs: Sequence[FinetuneRun], resamples: int = RESAMPLES, seed: int = SEED):
        self._resamples, self._seed = resamples, seed
        self._values: dict[tuple[Path, str], float] = {}
        self._means: dict[Key, Estimate] = {}
        self._differences: dict[Key, Difference] = {}
        for run in runs:
            for name, found in run.sets.items():
                self._values[run.path, name] = found.f1 if found.gold.gold_spans else np.nan  # fmt: skip
        self._weights = cache(lambda gold: sentence_weights(len(gold.ids), gold.name, resamples, seed))
        self._swaps = cache(lambda gold: swaps(len(gold.ids), gold.name, resamples, seed))

    def value(self, run: FinetuneRun, set_name: str) -> float:
        return self._values[run.path, set_name]

    def means(self, wanted: Sequence[tuple[Sequence[FinetuneRun], str]]) -> list[Estimate]:
        """The mean over the runs, which differ in the seed only, on the set, of each (runs, set)."""
        keys: list[Key] = [(name, *(run.path for run in runs)) for runs, name in wanted]
        missing = {key: runs for key, (runs, _) in zip(keys, wanted, strict=True) if key not in self._means}
        for name, part in _blocks(missing):
            samples = iter(self._samples([run for key in part for run in missing[key]], name))
            for key in part:
                found = [Estimate(self.value(run, name), next(samples)) for run in missing[key]]
                self._means[key] = over_seeds(found, model_name(missing[key][0]), self._seed)
        return [self._means[key] for key in keys]

    def _samples(self, runs: Sequence[FinetuneRun], set_name: str) -> np.ndarray:
        """[runs, resamples]"""

        def made(gold: GoldSet, places: Sequence[int]) -> np.ndarray:
            counts = np.stack([runs[place].sets[set_name].counts for place in places])
            return f1_samples(counts, set_name, self._resamples, self._seed, self._weights(gold))

        return _of_versions(runs, set_name, made)

    def differences(self, wanted: Sequence[tuple[Pairs, str]]) -> list[Difference]:
        """The first of each pair minus the second, mean over the pairs, on the set, of each (pairs, set).

        Args:
            wanted: one or more pairs each, as `comparable` gives them.
        """
        keys: list[Key] = [(name, *(run.path for pair in pairs for run in pair)) for pairs, name in wanted]
        missing = {key: pairs for key, (pairs, _) in zip(keys, wanted, strict=True) if key not in self._differences}  # fmt: skip
        sides = [(runs, str(key[0])) for key, pairs in missing.items() for runs in zip(*pairs, strict=True)]
        means = iter(self.means(sides))
        both = {key: (next(means), next(means)) for key in missing}
        for name, part in _blocks(missing):
            swapped = self._swapped([pair for key in part for pair in missing[key]], name)
            ends = np.cumsum([len(missing[key]) for key in part])[:-1]
            for key, rows in zip(part, np.split(swapped, ends), strict=True):
                self._differences[key] = Difference(*both[key], rows.mean(axis=0).astype(np.float32))
        return [self._differences[key] for key in keys]

    def _swapped(self, pairs: Pairs, set_name: str) -> np.ndarray:
        """[pairs, resamples]"""

        def made(gold: GoldSet, places: Sequence[int]) -> np.ndarray:
            sides = zip(*(pairs[place] for place in places), strict=True)
            one, other = (np.stack([run.sets[set_name].counts for run in side]) for side in sides)
            return swapped_differences(one, other, set_name, self._resamples, self._seed, self._swaps(gold))

        return _of_versions([first for first, _ in pairs], set_name, made)


def _of_versions(runs: Sequence[FinetuneRun], set_name: str, made: Callable[[GoldSet, Sequence[int]], np.ndarray]) -> np.ndarray:  # fmt: skip
    """[runs, resamples], made of the runs on each version of the set together, given their places."""
    versions = _by_gold(runs, set_name)
    parts = [made(gold, places) for gold, places in versions.items()]
    if len(parts) == 1:  # as nearly always; what is as large is not copied
        return parts[0]
    return np.concatenate(parts)[np.argsort(np.concatenate(list(versions.values())))]


def _by_gold(runs: Sequence[FinetuneRun], set_name: str) -> dict[GoldSet, list[int]]:
    """The places of the runs by the version of the set that they were scored on: one, unless the data changed."""
    found: dict[GoldSet, list[int]] = {}
    for place, run in enumerate(runs):
        found.setdefault(run.sets[set_name].gold, []).append(place)
    return found


def _blocks(lists: Mapping[Key, Sequence[object]]) -> Iterator[tuple[str, list[Key]]]:
    """(set, keys) of lists on one set that have some BLOCK members together."""
    for name, keys in groupby(sorted(lists, key=_set_name), key=_set_name):
        part: list[Key] = []
        size = 0
        for key in keys:
            part.append(key)
            size += len(lists[key])
            if size >= BLOCK:
                yield name, part
                part, size = [], 0
        if part:
            yield name, part


def _set_name(key: Key) -> str:
    return str(key[0])


def comparable(pairs: Pairs, set_name: str) -> list[tuple[FinetuneRun, FinetuneRun]]:
    """The pairs of which both runs were scored on the same sentences of a set, if these hold a span."""
    found = []
    for pair in pairs:
        first, second = (run.sets.get(set_name) for run in pair)
        if first is not None and second is not None and first.gold is second.gold and first.gold.gold_spans:
            found.append(pair)
    return found


def model_name(run: FinetuneRun) -> str:
    """Scale and variant: what is pretrained anew for each seed, whatever is then tuned."""
    return f"{run.setting.scale}/{run.setting.variant}"
