"""Weighted terms beside next-token prediction, on the hidden states of the next-token batch.

    L = L_next-token + sum over terms of weight(update) L_term

`episodes` adapts a classifier of sampled word classes on support states and scores it on query states; `multitask` classifies all
labelled words by rows that stay from update to update, without an inner loop: the control. Both see the same states, which cost no second
pass of the decoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from metapt.config import EpisodesConfig, MultitaskConfig, PretrainConfig, TermConfig
from metapt.config.registry import INITIAL_HEADS
from metapt.data.batch_episodes import BatchEpisode, BatchEpisodeSampler
from metapt.data.word_classes import WordClasses, WordExamples, label_words
from metapt.meta.initial_heads import HeadShape, InitialHead, PersistentHeads
from metapt.meta.state_episodes import (
    StateExamples,
    auto_rate,
    balanced_accuracy,
    first_order,
    inner_steps,
    logits_of,
    normalized,
    number_of_ways,
    scale_derivative,
    weighted_loss,
)
from metapt.models.meta_lm import WINDOWS, MetaLM


@dataclass(frozen=True)
class WordGroup:
    """Consecutive sequences of an update whose words episodes are sampled from.

    examples: their labelled words; shape: number of sequences, and their length; index: number of the group in its update.
    """

    examples: WordExamples
    shape: tuple[int, int]
    index: int


@dataclass
class TermOutput:
    """A term's loss in nats, and what is logged of it: each metric as its sum over episodes or words, and their number."""

    loss: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def word_groups(
    sequences: np.ndarray, kinds: np.ndarray, classes: WordClasses, size: int, first: int
) -> list[WordGroup]:
    """The words of consecutive sequences in groups of `size`.

    Args:
        sequences: token ids [n, T], n a multiple of `size`.
        kinds: `corpus_words.token_kinds` of the vocabulary.
        first: number of the first sequence in its update, a multiple of `size`.
    """
    return [
        WordGroup(label_words(rows, kinds, classes), (size, sequences.shape[1]), (first + start) // size)
        for start in range(0, len(sequences), size)
        for rows in [sequences[start : start + size]]
    ]


def weight_at(term: TermConfig, update: int) -> float:
    """The weight of a term in an update (counted from 0): 0 before `start_step`, then a linear ramp, then constant."""
    if update < term.start_step:
        return 0.0
    return term.weight * min(1.0, (update - term.start_step + 1) / max(1, term.ramp_steps))


def active_weights(config: PretrainConfig, update: int) -> dict[str, float]:
    """The weight of each term in an update, by name; only terms with a weight greater than 0."""
    weights = {name: weight_at(term, update) for name, term in config.terms.items()}
    return {name: weight for name, weight in weights.items() if weight > 0}


class Term(Protocol):
    """A loss on the hidden states of the next-token batch; `parameters` is the module that holds what it learns."""

    @property
    def parameters(self) -> nn.Module: ...

    def __call__(self, states: Tensor, groups: Sequence[WordGroup], update: int) -> TermOutput: ...


class EpisodeTerm:
    """Episodes on the batch: the mean query loss of `episodes.per_group` episodes for each group.

    Args:
        classes: word classes of the corpus.
        width: of a hidden state.
        seed: of the run.
    """

    def __init__(self, term: EpisodesConfig, classes: WordClasses, width: int, seed: int):
        self.term, self.classes = term, classes
        shape = HeadShape(width, term.n_way, sum(classes.sizes[:-1]))
        self.initial_head: InitialHead = INITIAL_HEADS[term.initial_head].load()(shape)
        self.parameters = self.initial_head
        self.sampler = BatchEpisodeSampler(classes, term.n_way, term.max_examples, term.balance, seed)

    def __call__(self, states: Tensor, groups: Sequence[WordGroup], update: int) -> TermOutput:
        """The loss on hidden states [M, d], those of all groups' positions in order."""
        episodes, offsets, offset = [], [], 0
        for group in groups:
            for task in range(self.term.per_group):
                episodes.append(self.sampler.episode(group.examples, group.shape, update, group.index, task))
                offsets.append(offset)
            offset += group.shape[0] * group.shape[1]
        support, query = (
            StateExamples.gather(states, [getattr(episode, side) for episode in episodes], offsets)
            for side in ("support", "query")
        )
        ways = number_of_ways(episodes, states.device)
        classes = self._classes(episodes).to(states.device)
        losses, curves = adapt_and_score(self.initial_head, support, query, ways, classes, self.term)
        valid = torch.tensor([float(episode.ways >= 2) for episode in episodes], device=states.device)
        in_group = valid.view(len(groups), -1)
        loss = ((losses.view_as(in_group) * in_group).sum(dim=1) / in_group.sum(dim=1).clamp(min=1)).mean()
        left_out = torch.tensor([episode.eligible - episode.ways for episode in episodes], device=ways.device)
        counted = {"ways": ways.float(), "classes_left_out": left_out.float()}
        metrics = {
            name: ((values * valid[:, *[None] * (values.ndim - 1)]).sum(dim=0), valid.sum())
            for name, values in (curves | counted).items()
        }
        return TermOutput(loss, metrics | {"episodes": (valid.sum(), torch.ones_like(valid.sum()))})

    def _classes(self, episodes: Sequence[BatchEpisode]) -> Tensor:
        """The class of each label, counted over all partitions. int64 [K, N]; 0 where an episode has no such label."""
        found = np.zeros((len(episodes), self.term.n_way), dtype=np.int64)
        for row, episode in zip(found, episodes, strict=True):
            row[: episode.ways] = sum(self.classes.sizes[: episode.partition]) + episode.classes
        return torch.from_numpy(found)


def adapt_and_score(
    initial_head: InitialHead,
    support: StateExamples,
    query: StateExamples,
    ways: Tensor,
    classes: Tensor,
    term: EpisodesConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Runs the inner loop of K episodes and scores the adapted classifiers.

    Args:
        ways: int64 [K], number of classes of each episode; classes: as in `InitialHead.start`.
    Returns: the query loss of each episode in nats, [K], with the first-order outer gradient; and what is logged of each:
        losses and class-balanced accuracies over inner steps, [K, T + 1], and scalars [K].
    """
    width, spread = support.states.shape[2], support.states.new_zeros(len(ways))
    if term.normalize:
        support_states, query_states, spread = normalized(support.states, query.states, support.weights)
        support = StateExamples(support_states, support.labels, support.weights)
        query = StateExamples(query_states, query.labels, query.weights)
    initial = initial_head.start(support, classes)
    rate = auto_rate(ways, term.inner_steps, width, term.rate_scale)
    heads = inner_steps(initial, support, ways, term.inner_steps, rate)
    logits = logits_of(first_order(initial, heads[-1]), query.states, ways)
    losses = weighted_loss(logits, query.labels, query.weights)
    curves: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for head in heads:
            for name, side in (("support", support), ("query", query)):
                of_step = logits_of(head, side.states, ways)
                curves.setdefault(f"{name}_loss_nats", []).append(
                    weighted_loss(of_step, side.labels, side.weights)
                )
                curves.setdefault(f"{name}_accuracy", []).append(
                    balanced_accuracy(of_step, side.labels, side.weights)
                )
    logged = {name: torch.stack(values, dim=1) for name, values in curves.items()}
    logged["majority_accuracy"] = majority_accuracy(support, query, term.n_way)
    logged["state_spread"] = spread
    logged["log_scale_derivative"] = scale_derivative(logits.detach(), query.labels, query.weights)
    return losses, logged


def majority_accuracy(support: StateExamples, query: StateExamples, n_way: int) -> Tensor:
    """Accuracy of always answering the class with the most support examples, [K]; unbalanced."""
    counted = [(side.weights > 0).float() for side in (support, query)]
    sizes = (torch.nn.functional.one_hot(support.labels, n_way) * counted[0][..., None]).sum(dim=1)
    hits = (query.labels == sizes.argmax(dim=1, keepdim=True)).float() * counted[1]
    return hits.sum(dim=1) / counted[1].sum(dim=1).clamp(min=1)


class PersistentTerm:
    """The control without an inner loop: every labelled word, in every training partition, over all classes.

    Held-out word types are left out, as in the episodes.
    """

    def __init__(self, term: MultitaskConfig, classes: WordClasses, width: int):
        self.term, self.classes = term, classes
        self.parameters = PersistentHeads(width, sum(classes.sizes[:-1]))

    def __call__(self, states: Tensor, groups: Sequence[WordGroup], update: int) -> TermOutput:
        """The loss on hidden states [M, d]: the mean over groups of the mean over words and partitions."""
        positions, types, weights = (
            np.concatenate(parts) for parts in zip(*self._words(groups), strict=True)
        )
        labels = torch.from_numpy(self.classes.partitions[:-1, types].astype(np.int64)).to(states.device)
        chosen, weight = (torch.from_numpy(array).to(states.device) for array in (positions, weights))
        logits = self.parameters(states.index_select(0, chosen).float()).split(
            self.classes.sizes[:-1], dim=-1
        )
        losses = torch.stack(
            [cross_entropy(each, label, reduction="none") for each, label in zip(logits, labels, strict=True)]
        )
        correct = torch.stack(
            [
                (each.detach().argmax(dim=-1) == label).float()
                for each, label in zip(logits, labels, strict=True)
            ]
        )
        count = torch.tensor(float(labels.numel()), device=states.device)
        metrics = {"loss_nats": (losses.detach().sum(), count), "accuracy": (correct.sum(), count)}
        return TermOutput((losses.mean(dim=0) * weight).sum(), metrics)

    def _words(self, groups: Sequence[WordGroup]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Positions, word types and weights of the words of each group; the weights of all groups sum to 1."""
        offset = 0
        for group in groups:
            allowed = ~self.classes.is_held_out[group.examples.types]
            number, length = group.shape
            positions = offset + (group.examples.rows * length + group.examples.positions)[allowed]
            weight = 1 / max(1, len(positions)) / len(groups)
            yield positions, group.examples.types[allowed], np.full(len(positions), weight, dtype=np.float32)
            offset += number * length


def add_terms(meta_lm: MetaLM, config: PretrainConfig, classes: WordClasses | None) -> dict[str, Term]:
    """The terms of a configuration whose weight is not 0, by name.

    What they learn becomes part of the model, and so does the initial head that episodes on windows make their classifier with.
    """
    width, terms, meta = config.model.hidden_size, dict[str, Term](), config.meta
    if classes is not None and config.episodes.weight > 0:
        terms["episodes"] = EpisodeTerm(config.episodes, classes, width, config.train.seed)
    if classes is not None and config.multitask.weight > 0:
        terms["multitask"] = PersistentTerm(config.multitask, classes, width)
    meta_lm.term_heads.update({name: term.parameters for name, term in terms.items()})
    if meta_lm.episode_head is not None and meta_lm.episode_head.is_made_anew:
        shape = HeadShape(width, meta.n_way, meta.n_way)
        meta_lm.term_heads[WINDOWS] = INITIAL_HEADS[meta.initial_head].load()(shape)
    return terms
