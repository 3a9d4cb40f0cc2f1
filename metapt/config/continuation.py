"""Which run a folder must hold for a pretraining configuration to go on in it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from metapt.config.keys import identity
from metapt.config.pretraining import MetaConfig, PretrainConfig, TrainConfig, split_identity
from metapt.config.schedule import learning_rate
from metapt.runs import Run

LENGTH_KEYS = ("max_steps", "schedule_steps")
T = TypeVar("T", TrainConfig, MetaConfig)


def identity_in(config: PretrainConfig, run: Run) -> dict[str, Any]:
    """The identity that the recorded run must have, if there is one, in terms of keys.

    It is that of the configuration without what may change: the length of the run, if it grows and all updates so far
    had the learning rates of the longer run, so that it ends as if it had had that length from the start; and the split
    of an update into micro-batches, if the sequences stay the same.
    """
    wanted = identity(config)
    if not run.config_file.exists():
        return wanted
    recorded = run.config()
    before, now = _known(TrainConfig, recorded.get("train", {})), config.train
    for name in split_identity(now, config.meta):
        wanted["train"].pop(name)
    if split_identity(before, _known(MetaConfig, recorded.get("meta", {}))) != split_identity(
        now, config.meta
    ):
        wanted["train"] |= {name: getattr(now, name) for name in ("micro_batch", "micro_batches_per_update")}
    updates_done = max((step for step, _ in run.checkpoints()), default=0)
    if before.max_steps < now.max_steps and all(
        learning_rate(before, step) == learning_rate(now, step) for step in range(updates_done)
    ):
        for name in LENGTH_KEYS:
            del wanted["train"][name]
    return wanted


def _known(section: type[T], recorded: dict[str, Any]) -> T:
    """A section of a recorded configuration; keys that no longer exist are left out."""
    names = {item.name for item in fields(section)}
    return section(**{name: value for name, value in recorded.items() if name in names})
