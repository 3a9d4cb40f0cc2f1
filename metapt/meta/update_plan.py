"""What an update consists of: how many micro-batches and episodes, and with which weights.

    alternate        one Bernoulli sample for each update: all micro-batches, or all episodes (the paper)
    per_micro_batch  one for each micro-batch: some next-token micro-batches, some episodes; the mean over both (the authors' code)
    sum              all micro-batches, and in a fraction of the updates the episodes beside them, with a weight

A plan is a function of (seed, update) alone, the same on all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from metapt import randomness
from metapt.config import PretrainConfig


@dataclass(frozen=True)
class UpdatePlan:
    """The units of work of an update, over all ranks.

    micro_batches: numbers of the next-token micro-batches; episodes: numbers of the episodes on windows;
    divisors: by which the losses of the micro-batches and of the episodes are divided before they are added up.
    """

    micro_batches: tuple[int, ...]
    episodes: tuple[int, ...]
    divisors: tuple[float, float]

    @property
    def kind(self) -> str:
        """Of its line in metrics.jsonl: lm, episode or mixed."""
        if not self.episodes:
            return "lm"
        return "mixed" if self.micro_batches else "episode"


def plan_update(config: PretrainConfig, step: int) -> UpdatePlan:
    """The plan of update number `step`, from 0."""
    meta, count = config.meta, config.train.micro_batches_per_update
    micro_batches, tasks = tuple(range(count)), tuple(range(meta.tasks_per_step))
    if meta.mixing == "per_micro_batch":
        episodes = tuple(unit for unit in micro_batches if _has_episodes(config, step, unit))
        others = tuple(unit for unit in micro_batches if unit not in episodes)
        return UpdatePlan(others, episodes, (count, count))
    if not _has_episodes(config, step):
        return UpdatePlan(micro_batches, (), (count, 1.0))
    if meta.mixing == "sum":
        return UpdatePlan(micro_batches, tasks, (count, len(tasks) / meta.weight))
    return UpdatePlan((), tasks, (1.0, len(tasks)))


def _has_episodes(config: PretrainConfig, *place: int) -> bool:
    """A Bernoulli sample with probability rho for an update, or for a micro-batch of it; never before meta.start_step."""
    meta, seed = config.meta, config.train.seed
    return place[0] >= meta.start_step and bool(
        randomness.generator(seed, "branch", *place).random() < meta.rho
    )
