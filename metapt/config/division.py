"""How the work of an update is divided among the ranks."""

from __future__ import annotations

from metapt.config.deepspeed import zero_stage
from metapt.config.pretraining import PretrainConfig


def ranks_share_episodes(config: PretrainConfig) -> bool:
    """Whether all ranks work on each episode together (metapt/training/zero3.py) instead of on different episodes."""
    return zero_stage(config.ds) == 3 and config.meta.scope != "head"
