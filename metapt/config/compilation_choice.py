"""Whether a pretraining run is compiled."""

from __future__ import annotations

from metapt.config.deepspeed import zero_stage
from metapt.config.pretraining import PretrainConfig


def is_compiled(config: PretrainConfig, device: str) -> bool:
    """Whether a run on `cpu` or `cuda` is compiled where the compiler works.

    ZeRO stage 3 gathers parameters module by module, which cannot be compiled.
    """
    setting = config.train.compile
    return zero_stage(config.ds) < 3 and (setting == "true" or (setting == "auto" and device == "cuda"))
