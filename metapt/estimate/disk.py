"""Bytes that runs write. Imports no torch.

A checkpoint of pretraining has the decoder in fp32, and for the newest `train.keep_optimizer_states` (one more while a
checkpoint is written) all parameters with the two moments of AdamW. A finished fine-tuning run keeps its tagger, the
whole decoder in fp32.
"""

from __future__ import annotations

from metapt.config import PretrainConfig
from metapt.estimate.flops import parameter_count
from metapt.estimate.memory import FP32, all_parameters

TOKEN_BYTES = 2  # of a vocabulary of at most 65,536 entries


def model_bytes(config: PretrainConfig) -> int:
    """Bytes of a decoder in a model folder, and of a tagger."""
    return FP32 * parameter_count(config.model)


def state_bytes(config: PretrainConfig) -> int:
    """Bytes of the state of a trainer: all parameters and the two moments of AdamW."""
    return 3 * FP32 * all_parameters(config)


def checkpoint_count(config: PretrainConfig) -> int:
    """Number of checkpoints that a run keeps, with that before its first update."""
    train = config.train
    written = 1 + -(-train.max_steps // train.checkpoint_every)
    return min(written, train.keep_checkpoints or written)


def run_bytes(config: PretrainConfig) -> int:
    """Bytes of the checkpoints of a finished pretraining run."""
    count = checkpoint_count(config)
    states = min(count, config.train.keep_optimizer_states or count)
    return count * model_bytes(config) + states * state_bytes(config)


def largest_run_bytes(config: PretrainConfig) -> int:
    """Bytes of the checkpoints of a pretraining run while it writes its last one."""
    return run_bytes(config) + model_bytes(config) + state_bytes(config)
