"""Accuracy on word classes of held-out text: on words and partitions of the training episodes, and on those that no training sees.

The same episodes are scored at every measurement and in every run of a corpus, with or without meta-pretraining, by classifiers
that learn nothing from one measurement to the next: class prototypes, and zeros after ten inner steps. Accuracy on held-out word types in
the held-out partition says whether word classes were learned, and not memorised word by word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from metapt.config import EpisodesConfig
from metapt.data.batch_episodes import BatchEpisode, BatchEpisodeSampler
from metapt.data.word_classes import WordClasses, label_words
from metapt.meta.initial_heads import HeadShape, InitialHead, PrototypeHead, ZeroHead
from metapt.meta.state_episodes import StateExamples, number_of_ways
from metapt.meta.terms import adapt_and_score
from metapt.models.meta_lm import MetaLM

EPISODES = 16
"""Number of episodes of each kind of words that pretraining runs measure."""
TOKENS = 32_768
"""Number of held-out tokens whose words these episodes have."""
SETTINGS = EpisodesConfig(weight=1.0, n_way=16, inner_steps=10, balance=0.5, max_examples=512)
SEED = 0


KINDS = {"known_words": False, "held_out_words": True}
"""Prefixes of the results, and whether their words and partition are held out of training."""


class WordProbe:
    """The episodes of a corpus' held-out text.

    Args:
        sequences: tokens [n, T + 1] of the held-out split.
        kinds: `corpus_words.token_kinds` of the vocabulary.
        chunk: number of sequences that the decoder processes at a time.
        episodes: number of episodes of each kind of words.
        tokens: number of held-out tokens whose words are used.
    """

    def __init__(
        self,
        sequences: np.ndarray,
        kinds: np.ndarray,
        classes: WordClasses,
        chunk: int,
        episodes: int = EPISODES,
        tokens: int = TOKENS,
    ):
        self.inputs = sequences[: max(1, tokens // (sequences.shape[1] - 1)), :-1]
        self.chunk = chunk
        words, shape = label_words(self.inputs, kinds, classes), self.inputs.shape
        self.episodes = {}
        for name, held_out in KINDS.items():
            sampler = BatchEpisodeSampler(
                classes, SETTINGS.n_way, SETTINGS.max_examples, SETTINGS.balance, SEED, held_out=held_out
            )
            found = (sampler.episode(words, (shape[0], shape[1]), 0, 0, task) for task in range(episodes))
            self.episodes[name] = [episode for episode in found if episode.ways >= 2]

    @torch.no_grad()
    def measure(self, meta_lm: MetaLM) -> dict[str, float | list[float]]:
        """Class-balanced query accuracies, and what chance gives; nothing of a kind of words of which the text has too few.

        Returns: for known_words and held_out_words: NAME_prototype_accuracy, [episodes]; NAME_adapted_accuracy by inner step
            0..T, the mean over episodes; NAME_chance, the mean of 1 / N.
        """
        states = self._states(meta_lm)
        found: dict[str, float | list[float]] = {}
        for name, episodes in self.episodes.items():
            if episodes:
                scores = _scores(states, episodes)
                found |= {f"{name}_{score}": value for score, value in scores.items()}
        return found

    def _states(self, meta_lm: MetaLM) -> Tensor:
        """Hidden states of all positions, [n * T, d]."""
        device = next(meta_lm.parameters()).device
        return torch.cat(
            [
                meta_lm.hidden_states(
                    torch.from_numpy(self.inputs[start : start + self.chunk]).to(device)
                ).flatten(0, 1)
                for start in range(0, len(self.inputs), self.chunk)
            ]
        )


def _scores(states: Tensor, episodes: Sequence[BatchEpisode]) -> dict[str, float | list[float]]:
    """The results of `WordProbe.measure` on episodes of one kind of words, without the name of that kind."""
    support, query = (
        StateExamples.gather(states, [getattr(each, side) for each in episodes], [0] * len(episodes))
        for side in ("support", "query")
    )
    ways = number_of_ways(episodes, states.device)
    any_classes = torch.zeros(len(ways), SETTINGS.n_way, dtype=torch.int64, device=states.device)

    def query_accuracy(head: type[InitialHead], steps: int) -> Tensor:
        initial_head = head(HeadShape(states.shape[1], SETTINGS.n_way, 1)).to(states.device)
        settings = replace(SETTINGS, inner_steps=steps)
        return adapt_and_score(initial_head, support, query, ways, any_classes, settings)[1]["query_accuracy"]

    return {
        "prototype_accuracy": query_accuracy(PrototypeHead, 0)[:, 0].tolist(),
        "adapted_accuracy": query_accuracy(ZeroHead, SETTINGS.inner_steps).mean(dim=0).tolist(),
        "chance": float((1 / ways).mean()),
    }
