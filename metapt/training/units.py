"""The units of work of an update, and what they are made from: micro-batches of the corpus, and episodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metapt.config import PretrainConfig, ranks_share_episodes
from metapt.data.batches import Batches
from metapt.data.corpus import Corpus
from metapt.data.corpus_classes import corpus_classes, corpus_token_kinds
from metapt.data.episodes import Episode, EpisodeSampler, corpus_index
from metapt.data.word_classes import WordClasses
from metapt.estimate.flops import flops_of_episode
from metapt.meta.objectives import ObjectiveOutput, episode_objective, next_token_objective
from metapt.meta.terms import Term, active_weights, word_groups
from metapt.meta.word_probe import WordProbe
from metapt.training.engine import Engine
from metapt.training.zero3 import sharded_episode

SUM, COUNT = "/sum", "/count"
"""Suffixes of the two parts of a metric that is averaged over all observations of an update."""


@dataclass(frozen=True)
class TrainingData:
    """What updates are made from.

    Args:
        sampler: of episodes on masked windows; None in a run without.
        classes: word classes of the corpus; None in a run without.
        token_kinds: `corpus_words.TokenKind` of each token id, for runs with word classes.
    """

    batches: Batches
    sampler: EpisodeSampler | None
    classes: WordClasses | None
    token_kinds: np.ndarray

    @classmethod
    def load(cls, config: PretrainConfig, corpus: Corpus) -> TrainingData:
        """The data of a run; indexes and classes that do not exist yet are made."""
        meta, seed, tokenizer = config.meta, config.train.seed, corpus.tokenizer
        sampler, classes, kinds = None, None, np.empty(0, np.uint8)
        if meta.rho > 0:
            index = corpus_index(corpus, meta)
            sampler = EpisodeSampler(corpus.train, index, meta, seed, tokenizer.mask_id, tokenizer.eos_id)
        if config.classes.sizes:
            classes, kinds = corpus_classes(corpus, config.classes), corpus_token_kinds(corpus)
        return cls(Batches(corpus.train, config.train.seq_len, seed), sampler, classes, kinds)

    def word_probe(self, eval_rows: np.ndarray, chunk: int) -> WordProbe | None:
        """Held-out words of held-out sequences [n, T + 1]; None in a run without word classes."""
        return WordProbe(eval_rows, self.token_kinds, self.classes, chunk) if self.classes else None


class UpdateUnits:
    """Processes this rank's units of updates.

    An update has a fixed number of units, whatever the number of ranks: `train.micro_batches_per_update` micro-batches or
    `meta.tasks_per_step` episodes. Rank r of W processes units r, r + W, ..., or its rows of every episode if parameters are
    partitioned (metapt/training/zero3.py).

    Args:
        terms: of the objective, beside next-token prediction.
        check_stop: called before each unit and each inner step; may raise to abort the update.
    """

    def __init__(
        self,
        config: PretrainConfig,
        data: TrainingData,
        terms: Mapping[str, Term],
        engine: Engine,
        check_stop: Callable[[], None],
    ):
        self.config, self.data, self.terms = config, data, terms
        self.engine, self.check_stop = engine, check_stop
        self.shares_episodes = ranks_share_episodes(config)

    def accumulate_gradient(self, step: int, is_episode: bool) -> dict[str, Any]:
        """Accumulate the gradient of update number `step`.

        Returns: metrics as Python values, averaged over units and ranks.
        """
        metrics = self._sharded_episodes(step) if is_episode and self.shares_episodes else []
        meta, train = self.config.meta, self.config.train
        count = meta.tasks_per_step if is_episode else train.micro_batches_per_update
        units = range(self.engine.rank, count, self.engine.world_size) if not metrics else range(0)
        for unit in units:
            self.check_stop()
            output = self._episode(step, unit) if is_episode else self._next_token(step, unit)
            self.engine.backward(output.loss / len(units), last=unit == units[-1])
            metrics.append(output.metrics)
        means = {
            name: torch.stack([unit[name].double() for unit in metrics]).mean(dim=0) for name in metrics[0]
        }
        return _divide_sums({name: self.engine.mean(mean) for name, mean in means.items()})

    def identify(self, step: int, is_episode: bool) -> dict[str, Any]:
        """What identifies the data of an update: its episodes, or its sequences and their rows in the corpus."""
        train = self.config.train
        if is_episode:
            return {"seed": train.seed, "step": step, "tasks": list(range(self.config.meta.tasks_per_step))}
        count = train.micro_batches_per_update * train.micro_batch
        rows = self.data.batches.rows(step * count, count)
        return {"first_sequence": step * count, "rows": rows.tolist()}

    def _next_token(self, step: int, unit: int) -> ObjectiveOutput:
        train, data = self.config.train, self.data
        first = (step * train.micro_batches_per_update + unit) * train.micro_batch
        sequences, groups = data.batches.sequences(first, train.micro_batch), []
        terms = {
            name: (weight, self.terms[name]) for name, weight in active_weights(self.config, step).items()
        }
        if terms and data.classes is not None:
            size, first_in_update = self.config.meta.batch_sequences, unit * train.micro_batch
            groups = word_groups(sequences[:, :-1], data.token_kinds, data.classes, size, first_in_update)
        tokens = torch.from_numpy(sequences).to(self.engine.device)
        output = next_token_objective(self.engine.meta_lm, tokens, terms, groups, step)
        for name, (total, number) in output.ratios.items():
            output.metrics |= {f"{name}{SUM}": total, f"{name}{COUNT}": number}
        return output

    def _episode(self, step: int, unit: int) -> ObjectiveOutput:
        assert self.data.sampler is not None
        meta, seed = self.config.meta, self.config.train.seed
        task = self.data.sampler.episode(step, unit)
        output = episode_objective(self.engine.meta_lm, task, meta, seed, step, unit, self.check_stop)
        output.metrics["flops"] = self._episode_flops(task)
        return output

    def _sharded_episodes(self, step: int) -> list[dict[str, Tensor]]:
        """The metrics of all episodes of an update, on each of which all ranks work together."""
        engine, meta, seed, found = self.engine, self.config.meta, self.config.train.seed, []
        assert self.data.sampler is not None
        assert engine.shards is not None
        for unit in range(meta.tasks_per_step):
            self.check_stop()
            task = self.data.sampler.episode(step, unit)
            backward = partial(engine.backward, last=False)
            metrics = sharded_episode(
                engine.shards, engine.meta_lm, backward, task, meta, seed, step, unit, self.check_stop
            )
            found.append(metrics | {"flops": self._episode_flops(task)})
        return found

    def _episode_flops(self, task: Episode) -> Tensor:
        lengths = ((examples.positions + 1).tolist() for examples in (task.support, task.query))
        return torch.tensor(flops_of_episode(self.config, *lengths), dtype=torch.float64)


def _divide_sums(means: dict[str, Tensor]) -> dict[str, Any]:
    """Metrics as Python values; a sum and its count become one value, absent if there was no observation."""
    values: dict[str, Any] = {
        name: mean.tolist() for name, mean in means.items() if not name.endswith((SUM, COUNT))
    }
    for name, total in means.items():
        count = means.get(name.removesuffix(SUM) + COUNT)
        if name.endswith(SUM) and count is not None and float(count) > 0:
            values[name.removesuffix(SUM)] = (total / count).tolist()
    return values
