"""What pretraining changes before any fine-tuning, as means over training seeds: perplexity, and accuracy on held-out words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from metapt.evaluation.seed_inference import SeedMean

from ..load.collect import Collection
from ..load.distinction import pretraining_settings
from ..load.records import PretrainRun
from .budgets import NEXT_TOKEN, eval_losses, pretraining_contrasts, pretraining_pairs

Pair = tuple[PretrainRun, PretrainRun]


@dataclass(frozen=True)
class PretrainingPairs:
    """The pairs (first, second) of the pretraining runs of a contrast that have a size and a variant in common."""

    contrast: str
    scale: str
    variant: str
    pairs: tuple[Pair, ...]

    @property
    def log_perplexity(self) -> SeedMean:
        """ln(perplexity of the first / of the second) at the largest number of next-token tokens that both reached.

        Without measurements the value is NaN. All pairs are measured on the same held-out text, whose choice is not part of the
        uncertainty.
        """
        found = [losses_at_common_budget(*pair, NEXT_TOKEN) for pair in self.pairs if _are_measured(pair)]
        differences = [first - second for _, (first, second) in found]
        return SeedMean.of_seeds(differences)

    @property
    def accuracies(self) -> tuple[float, float]:
        """Mean class-balanced accuracy of prototypes on held-out words, of the first and of the second arm; NaN without."""
        values = self._accuracies()
        return (float(values[:, 0].mean()), float(values[:, 1].mean())) if values.size else (np.nan, np.nan)

    @property
    def accuracy_gain(self) -> SeedMean:
        """The difference of `accuracies`. The episodes are the same for all seeds; they are its units."""
        values = self._accuracies()
        if not values.size:
            return SeedMean.of_seeds([])
        return mean_gain(values)

    @property
    def chance(self) -> float:
        """The accuracy of guessing in these episodes."""
        chances = (
            run.dynamics[-1].held_out_words_chance for pair in self.pairs for run in pair if run.dynamics
        )
        return next((chance for chance in chances if chance is not None), math.nan)

    def _accuracies(self) -> np.ndarray:
        """fp64 [pairs, 2, episodes]: of the last measurements, for pairs with the same episodes as the first that is measured."""
        if len({_partition_settings(run) for pair in self.pairs for run in pair}) > 1:
            return np.array([])
        found = [
            [run.dynamics[-1].held_out_words_prototype_accuracy or () if run.dynamics else () for run in pair]
            for pair in self.pairs
        ]
        episodes = next((len(first) for first, second in found if first and second), 0)
        same = [of_pair for of_pair in found if all(len(of_run) == episodes for of_run in of_pair)]
        return np.array(same if episodes > 1 else [], float)


def mean_gain(accuracies: np.ndarray) -> SeedMean:
    """The mean difference of accuracies in the same episodes, which are the units.

    Args:
        accuracies: fp64 [seeds, (first, second), episodes], at least two episodes.
    """
    differences = accuracies[:, 0] - accuracies[:, 1]
    variance = float(differences.mean(axis=0).var(ddof=1)) / differences.shape[1]
    return SeedMean(differences.mean(axis=1), variance, variance)


def pretraining_means(collection: Collection) -> Iterator[PretrainingPairs]:
    """The pairs of pretraining runs of every contrast, by size and variant."""
    for contrast in pretraining_contrasts(collection):
        grouped: dict[tuple[str, str], list[Pair]] = {}
        for pair in pretraining_pairs(collection, contrast):
            grouped.setdefault((pair[0].scale, pair[0].variant), []).append(pair)
        for (scale, variant), pairs in grouped.items():
            yield PretrainingPairs(str(contrast), scale, variant, tuple(pairs))


def losses_at_common_budget(
    first: PretrainRun, second: PretrainRun, budget: str
) -> tuple[float, tuple[float, float]]:
    """The largest value of a budget that both runs reached, and their losses in nats at it, interpolated linearly."""
    curves = [(spent[budget], losses) for spent, losses in (eval_losses(first), eval_losses(second))]
    value = min(float(spent[-1]) for spent, _ in curves)
    first_loss, second_loss = (float(np.interp(value, *curve)) for curve in curves)
    return value, (first_loss, second_loss)


def _partition_settings(run: PretrainRun) -> str:
    """The settings that decide the held-out partition and its words: shuffling changes the other partitions alone."""
    settings = pretraining_settings(run).items()
    return str(
        sorted(
            (key, value)
            for key, value in settings
            if (key.startswith("classes.") and key != "classes.shuffle_band") or key == "train.seq_len"
        )
    )


def _are_measured(pair: Iterable[PretrainRun]) -> bool:
    return all(len(run.eval["step"]) for run in pair)
