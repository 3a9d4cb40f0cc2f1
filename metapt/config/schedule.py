"""The learning rate of an update."""

from __future__ import annotations

import math

from metapt.config.pretraining import TrainConfig


def learning_rate(train: TrainConfig, step: int) -> float:
    """Learning rate of an update: linear warm-up, then cosine decay to min_lr_ratio * lr, or constant.

    The decay ends at schedule_steps updates, after which the learning rate stays.

    Args:
        step: number of updates before it.
    """
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    if train.schedule == "constant":
        return train.lr
    end = train.schedule_steps or train.max_steps
    progress = min(1.0, (step - train.warmup_steps) / max(1, end - train.warmup_steps))
    decay = 0.5 * (1 + math.cos(math.pi * progress))
    return train.lr * (train.min_lr_ratio + (1 - train.min_lr_ratio) * decay)
