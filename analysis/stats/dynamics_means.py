"""Learning dynamics at the end of pretraining, as means over training seeds and differences of two arms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from metapt.evaluation.seed_inference import SeedMean

from ..load.collect import Collection
from ..load.records import PretrainRun
from ..load.schema import ATTENTION, FEED_FORWARD, Dynamics
from .budgets import start_and_end
from .pretraining_means import PretrainingPairs, pretraining_means

MEASURES: Mapping[str, Callable[[Dynamics], float | None]] = {
    "effective rank, attention": lambda item: item.rank(ATTENTION),
    "effective rank, feed-forward": lambda item: item.rank(FEED_FORWARD),
    "attention entropy": lambda item: item.entropy,
    "probe accuracy": lambda item: item.adapted("query"),
}
"""name of what is measured to its value"""
COSINE = "gradient cosine, {}"
"""name of the cosine between the gradients of the next-token loss and of a term"""


@dataclass(frozen=True)
class DynamicsMean:
    """One measure of the pairs of a contrast, over the seeds whose runs have it; None for an arm without it.

    Attributes:
        difference: first minus second; None unless both arms have it.
    """

    pairs: PretrainingPairs
    name: str
    first: SeedMean | None
    second: SeedMean | None
    difference: SeedMean | None


def at_the_end(run: PretrainRun) -> dict[str, float]:
    """What a run measured last, by name, and the mean cosines of gradients over the last tenth of the updates with one."""
    measured = {name: measure(run.dynamics[-1]) for name, measure in MEASURES.items() if run.dynamics}
    values = {name: value for name, value in measured.items() if value is not None}
    for term, cosines in run.gradient_cosines.items():
        values[COSINE.format(term)] = float(np.mean(cosines[start_and_end(len(cosines))["end"]]))
    return {name: value for name, value in values.items() if np.isfinite(value)}


def dynamics_means(collection: Collection) -> Iterator[DynamicsMean]:
    """Every measure of every contrast of which an arm has it, by size and variant."""
    for group in pretraining_means(collection):
        values = [[at_the_end(run) for run in pair] for pair in group.pairs]
        names = dict.fromkeys(name for pair in values for of_run in pair for name in of_run)
        for name in names:
            first, second = ([pair[side][name] for pair in values if name in pair[side]] for side in (0, 1))
            gains = [one[name] - other[name] for one, other in values if name in one and name in other]
            means = (SeedMean.of_seeds(values) if values else None for values in (first, second, gains))
            yield DynamicsMean(group, name, *means)
