"""How the work of an update is divided among the ranks."""

from __future__ import annotations

from metapt.config.deepspeed import zero_stage
from metapt.config.pretraining import PretrainConfig


def uneven_units(config: PretrainConfig, ranks: int) -> list[str]:
    """Units of work of an update that cannot be divided evenly among the ranks, each as `key=value`."""
    meta, units = config.meta, {"train.micro_batches_per_update": config.train.micro_batches_per_update}
    if meta.rho > 0 and ranks_share_episodes(config):
        units["meta.n_way * meta.k_shot"] = meta.n_way * meta.k_shot
        units["meta.n_way * meta.q_query"] = meta.n_way * meta.q_query
    return [f"{name}={value}" for name, value in units.items() if value % ranks]


def ranks_share_episodes(config: PretrainConfig) -> bool:
    """Whether all ranks work on each episode together (metapt/training/zero3.py) instead of on different episodes."""
    return zero_stage(config.ds) == 3 and config.meta.scope != "head"
