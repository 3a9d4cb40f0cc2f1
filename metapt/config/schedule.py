"""The learning rate of an update."""

from __future__ import annotations

import math

from metapt.config.pretraining import TrainConfig


def learning_rate(train: TrainConfig, step: int) -> float:
    """Learning rate of an update: linear warm-up, then cosine decay to min_lr_ratio * lr, or constant.

    Args:
        step: number of updates before it.
    """
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    if train.schedule == "constant":
        return train.lr
    progress = (step - train.warmup_steps) / max(1, train.max_steps - train.warmup_steps)
    decay = 0.5 * (1 + math.cos(math.pi * progress))
    return train.lr * (train.min_lr_ratio + (1 - train.min_lr_ratio) * decay)
