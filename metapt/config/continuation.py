"""Which run a folder must hold for a pretraining configuration to go on in it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from metapt.config.keys import identity
from metapt.config.pretraining import PretrainConfig, TrainConfig
from metapt.config.schedule import learning_rate
from metapt.runs import Run


def identity_in(config: PretrainConfig, run: Run) -> dict[str, Any]:
    """The identity that the recorded run must have, if there is one.

    It is that of the configuration, but without train.max_steps where the run can be made longer: if all updates so
    far had the learning rates of the longer run, it ends as if it had had that length from the start.
    """
    wanted = identity(config)
    if not run.config_file.exists():
        return wanted
    known = {item.name for item in fields(TrainConfig)}
    recorded = {name: value for name, value in run.config().get("train", {}).items() if name in known}
    before, now = TrainConfig(**recorded), config.train
    updates_done = max((step for step, _ in run.checkpoints()), default=0)
    if before.max_steps < now.max_steps and all(
        learning_rate(before, step) == learning_rate(now, step) for step in range(updates_done)
    ):
        del wanted["train"]["max_steps"]
    return wanted
