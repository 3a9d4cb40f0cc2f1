"""Keys of the loss terms beside next-token prediction, and of the word classes that they use."""

from __future__ import annotations

from dataclasses import dataclass

from metapt.config.keys import key
from metapt.config.registry import INITIAL_HEADS, choices


@dataclass
class ClassesConfig:
    """Word classes: clusters of the corpus' frequent words, made without labels (metapt prepare)."""

    sizes: list[int] = key(
        [],
        "number of classes of each partition of the words; the last partition is never trained on. Empty: no word classes",
    )
    repeats: int = key(
        1, "number of times that the sizes of partitions to train on, all but the last, are repeated", low=1
    )
    tokens: int = key(50_000_000, "number of corpus tokens counted, in evenly spread stretches", low=1)
    words: int = key(20_000, "number of most frequent word types that get classes", low=1)
    contexts: int = key(2_000, "number of most frequent units that describe a word", low=1)
    dimensions: int = key(50, "number of dimensions of the clustered word representations", low=1)
    scale_low: float = key(
        0.5,
        "relative lower bound of the random factors of dimensions, from the second partition of a size on",
        low=0,
    )
    scale_high: float = key(1.5, "relative upper bound of the random factors of dimensions", above=0)
    shuffle_band: int = key(
        0,
        "number of words of like frequency that exchange their classes at random, in all partitions that are trained on: the "
        "control for what classes mean; 0: classes stay as they are",
        low=0,
    )

    @property
    def partitions(self) -> list[int]:
        """Number of classes of each partition; the last one is never trained on."""
        return [*self.sizes[:-1] * self.repeats, *self.sizes[-1:]]


@dataclass
class TermConfig:
    """A loss term beside next-token prediction, with its weight over updates."""

    weight: float = key(
        0.0, "weight of this term relative to next-token prediction; 0 turns the term off", low=0
    )
    start_step: int = key(0, "number of updates at the start without this term", low=0)
    ramp_steps: int = key(0, "number of updates over which the weight rises linearly to its value", low=0)


@dataclass
class EpisodesConfig(TermConfig):
    """Mean query loss of episodes on the words of the next-token batch: a classifier is adapted on support words and scored on query words."""

    initial_head: str = key(
        "prototypes",
        "classifier at the start of the inner loop",
        choices=choices(INITIAL_HEADS),
    )
    inner_steps: int = key(10, "number of gradient steps of the inner loop (T); 0: no adaptation", low=0)
    rate_scale: float = key(
        6.0, "factor c in the inner learning rate c N / (T d) for N classes and states of width d", above=0
    )
    per_group: int = key(4, "number of episodes for each group of sequences", low=1)
    n_way: int = key(32, "number of classes of an episode (N), fewer where fewer are eligible", low=2)
    max_examples: int = key(1024, "largest number of support, and of query words of an episode", low=4)
    balance: float = key(
        0.5,
        "exponent (a fraction) of class sizes in the weights of words: 0 weights words alike, 1 classes alike",
        low=0,
        high=1,
    )
    normalize: bool = key(
        True, "centre hidden states on the mean support state and scale them to equal length"
    )


@dataclass
class MultitaskConfig(TermConfig):
    """Mean loss over words and partitions of persistent classifiers over all word classes, without an inner loop."""
