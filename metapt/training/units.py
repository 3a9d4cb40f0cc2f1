"""The units of work of an update, and what they are made from: micro-batches of the corpus, and episodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metapt.config import PretrainConfig
from metapt.config.registry import TASKS
from metapt.data.batches import Batches
from metapt.data.corpus import Corpus
from metapt.data.corpus_classes import corpus_classes, corpus_token_kinds
from metapt.data.episodes import Episode, TaskSampler
from metapt.data.word_classes import WordClasses
from metapt.estimate.flops import flops_of_episode, flops_of_step
from metapt.meta.adapted_copies import adapted_copies
from metapt.meta.objectives import ObjectiveOutput, next_token_objective
from metapt.meta.terms import Term, WordGroup, active_weights, word_groups
from metapt.meta.update_plan import UpdatePlan
from metapt.meta.window_episodes import Begin, episode_objective
from metapt.meta.word_probe import WordProbe
from metapt.training.engine import Engine


@dataclass(frozen=True)
class TrainingData:
    """What updates are made from.

    Args:
        sampler: of episodes on windows; None in a run without.
        classes: word classes of the corpus; None in a run without.
        token_kinds: `corpus_words.TokenKind` of each token id, for runs with word classes.
    """

    batches: Batches
    sampler: TaskSampler | None
    classes: WordClasses | None
    token_kinds: np.ndarray

    @classmethod
    def load(cls, config: PretrainConfig, corpus: Corpus) -> TrainingData:
        """The data of a run; indexes and classes that do not exist yet are made."""
        meta, classes, kinds = config.meta, None, np.empty(0, np.uint8)
        sampler = TASKS[meta.task].load().of(config, corpus) if meta.rho > 0 else None
        if config.classes.sizes:
            classes, kinds = corpus_classes(corpus, config.classes), corpus_token_kinds(corpus)
        return cls(Batches(corpus.train, config.train.seq_len, config.train.seed), sampler, classes, kinds)

    def word_probe(self, eval_rows: np.ndarray, chunk: int) -> WordProbe | None:
        """Held-out words of held-out sequences [n, T + 1]; None in a run without word classes."""
        return WordProbe(eval_rows, self.token_kinds, self.classes, chunk) if self.classes else None


class UpdateUnits:
    """Processes this rank's units of updates.

    The units of an update do not depend on the number of ranks. Rank r of W processes the micro-batches r, r + W, ... of the plan,
    and the episodes likewise. A rank for which none is left in a round repeats the last one with weight 0, so that all ranks make
    the same calls in the same order. At ZeRO stage 3, ranks work on the rows of each episode together unless only the head is
    adapted (metapt/training/zero3.py).

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

    def accumulate_gradient(self, step: int, plan: UpdatePlan) -> dict[str, Any]:
        """Accumulate the gradient of update number `step`.

        Returns: metrics as Python values, averaged over units and ranks; `flops` of all of them.
        """
        sums, shared = MetricSums(), self.engine.shares_episodes(self.config.meta)
        if shared:
            self._shared_episodes(step, plan, sums)
        own = [] if shared else self._rounds(plan.episodes, self._episode, plan.divisors[1])
        own += self._rounds(plan.micro_batches, self._next_token, plan.divisors[0])
        for work in own:
            self.check_stop()
            output = work.make(step, work.unit)
            loss = output.loss / (work.divisor / self.engine.world_size)
            self.engine.backward(loss if work.is_own else loss * 0, last=work is own[-1])
            output.ratios |= {name: observe() for name, observe in output.after_backward.items()}
            sums.add(output, work.is_own)
        values = sums.reduce(self.engine)
        micro_batches = len(plan.micro_batches) / self.config.train.micro_batches_per_update
        flops = values.pop("flops", 0.0) * len(plan.episodes)
        of_text = flops_of_step(self.config, False, active_weights(self.config, step))
        values["flops"] = round(flops + micro_batches * of_text)
        return values

    def _rounds(
        self, units: Sequence[int], make: Callable[[int, int], ObjectiveOutput], divisor: float
    ) -> list[UnitOfWork]:
        """What this rank does so that all ranks together process these units."""
        rank, size, found = self.engine.rank, self.engine.world_size, []
        for start in range(0, len(units), size):
            unit = units[min(start + rank, len(units) - 1)]
            found.append(UnitOfWork(make, unit, divisor, is_own=start + rank < len(units)))
        return found

    def identify(self, step: int, plan: UpdatePlan) -> dict[str, Any]:
        """What identifies the data of an update: its episodes, and its sequences and their rows in the corpus."""
        train = self.config.train
        identity: dict[str, Any] = {}
        if plan.episodes:
            identity |= {"seed": train.seed, "step": step, "tasks": list(plan.episodes)}
        if plan.micro_batches:
            numbers = [self._first_sequence(step, unit) for unit in plan.micro_batches]
            rows = [
                row for first in numbers for row in self.data.batches.rows(first, train.micro_batch).tolist()
            ]
            identity |= {"first_sequence": numbers[0], "rows": rows}
        return identity

    def _first_sequence(self, step: int, unit: int) -> int:
        train = self.config.train
        return (step * train.micro_batches_per_update + unit) * train.micro_batch

    def _next_token(self, step: int, unit: int) -> ObjectiveOutput:
        train, data = self.config.train, self.data
        sequences = data.batches.sequences(self._first_sequence(step, unit), train.micro_batch)
        groups: list[WordGroup] = []
        terms = {
            name: (weight, self.terms[name]) for name, weight in active_weights(self.config, step).items()
        }
        if terms and data.classes is not None:
            size, first_in_update = self.config.meta.batch_sequences, unit * train.micro_batch
            groups = word_groups(sequences[:, :-1], data.token_kinds, data.classes, size, first_in_update)
        tokens = torch.from_numpy(sequences).to(self.engine.device)
        return next_token_objective(self.engine.meta_lm, tokens, terms, groups, step)

    def _episode(self, step: int, unit: int, begin: Begin = adapted_copies) -> ObjectiveOutput:
        assert self.data.sampler is not None
        task, seed = self.data.sampler.episode(step, unit), self.config.train.seed
        output = episode_objective(
            self.engine.meta_lm, task, self.config.meta, seed, step, unit, self.check_stop, begin
        )
        output.metrics["flops"] = self._episode_flops(task)
        return output

    def _shared_episodes(self, step: int, plan: UpdatePlan, sums: MetricSums) -> None:
        """Process the episodes of an update, on each of which all ranks work together; every rank has their metrics."""
        begin = self.engine.begin_episode(self.config.meta, weight=1 / plan.divisors[1])
        for unit in plan.episodes:
            self.check_stop()
            sums.add(self._episode(step, unit, begin))

    def _episode_flops(self, task: Episode) -> Tensor:
        lengths = ((examples.positions + 1).tolist() for examples in (task.support, task.query))
        return torch.tensor(flops_of_episode(self.config, *lengths), dtype=torch.float64)


@dataclass(frozen=True)
class UnitOfWork:
    """A micro-batch or an episode on this rank; not its own if it only accompanies another rank's."""

    make: Callable[[int, int], ObjectiveOutput]
    unit: int
    divisor: float
    is_own: bool


class MetricSums:
    """Sums and counts of the metrics of an update, by name. All ranks add the same names."""

    def __init__(self) -> None:
        self._parts: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def add(self, output: ObjectiveOutput, is_own: bool = True) -> None:
        """Add the metrics of one unit of work, or as many zeros if it is not this rank's own."""
        one = torch.ones((), dtype=torch.float64)
        found = {name: (value, one) for name, value in output.metrics.items()} | output.ratios
        for name, pair in found.items():
            # Zeros and not a product with 0, which is not finite if the value is not.
            part = [value.double() if is_own else torch.zeros_like(value).double() for value in pair]
            self._parts.setdefault(name, []).append((part[0], part[1]))

    def reduce(self, engine: Engine) -> dict[str, Any]:
        """The means over the units of all ranks, by one reduction; a metric without an observation is absent."""
        parts = {
            name: [torch.stack(column).sum(dim=0) for column in zip(*found, strict=True)]
            for name, found in self._parts.items()
        }
        if not parts:
            return {}
        flat = torch.cat([part.flatten().cpu() for pair in parts.values() for part in pair])
        sizes = [part.numel() for pair in parts.values() for part in pair]
        reduced = iter((engine.mean(flat) * engine.world_size).split(sizes))
        values: dict[str, Any] = {}
        for name, (total, _) in parts.items():
            summed, number = next(reduced).view(total.shape), next(reduced).view(())
            if number > 0:
                values[name] = (summed / number).tolist()
        return values
