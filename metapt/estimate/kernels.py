"""Kernels and memory traffic of a unit of training, in closed form. Imports no torch.

A kernel is one operation that a GPU is asked to do. Its traffic is the bytes that it reads and writes; that of matrix
products and attention is not counted, since their time follows from their FLOPs. The coefficients were counted:
benchmarks/kernel_counts.py counts the operations that PyTorch dispatches on fake tensors, and those that its compiler leaves
of a block; tests/test_kernels.py compares them with this module.
"""

from __future__ import annotations

from dataclasses import dataclass

from metapt.config import ModelConfig, PretrainConfig
from metapt.estimate.flops import (
    CHUNK_TOKENS,
    TILE_TOKENS,
    block_matrices,
    flops_of_episode,
    flops_of_step,
    parameter_count,
)
from metapt.estimate.memory import FP32

WINDOW_GROUPS, GROUP_WINDOWS = 8, 8  # of packed windows (metapt/models/packed_windows.py)
ACCUMULATIONS = 9  # parameters of a block, whose gradients are added up


@dataclass(frozen=True)
class Work:
    """What a GPU has to do.

    Attributes:
        kernels: number of kernels that are launched.
        bytes: memory traffic of the kernels that are no matrix products.
        flops: of matrix products.
    """

    kernels: float = 0
    bytes: float = 0
    flops: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.kernels + other.kernels, self.bytes + other.bytes, self.flops + other.flops)

    def __mul__(self, factor: float) -> Work:
        return Work(self.kernels * factor, self.bytes * factor, self.flops * factor)


@dataclass(frozen=True)
class BlockTraffic:
    """Kernels of a decoder block and the coefficients of its traffic.

    Attributes:
        kernels: with matrix products and attention.
        hidden, inner, kv, heads, token: bytes per token, times hidden size, width of the feed-forward layer, width of keys,
            number of heads, and 1.
        weight: bytes per weight of a matrix.
        gain: bytes per dimension of the hidden size.
        rotary: bytes per position of a sequence and dimension of a head.
    """

    kernels: int
    hidden: int
    inner: int
    kv: int
    heads: int
    token: int
    weight: int
    gain: int
    rotary: int

    def of(self, model: ModelConfig, sequences: int, length: int) -> Work:
        """A block on sequences of equal length."""
        head_dim = model.hidden_size // model.num_heads
        per_token = (
            self.hidden * model.hidden_size
            + self.inner * model.intermediate_size
            + self.kv * head_dim * model.num_kv_heads
            + self.heads * model.num_heads
            + self.token
        )
        fixed = self.weight * block_matrices(model) + self.gain * model.hidden_size
        return Work(self.kernels, sequences * length * per_token + fixed + self.rotary * length * head_dim)


FORWARD = {  # without gradients
    "bf16": BlockTraffic(48, 142, 10, 36, 0, 48, 6, 8, 16),
    "fp32": BlockTraffic(34, 120, 20, 40, 0, 48, 0, 8, 16),
}
TRAINING = {  # forward and backward pass, and the addition to gradients of earlier micro-batches
    "bf16": BlockTraffic(144, 486, 28, 94, 0, 128, 24, 48, 32),
    "fp32": BlockTraffic(110, 428, 56, 104, 0, 128, 12, 48, 32),
}
COMPILED = {  # the same, compiled
    "bf16": BlockTraffic(56 + ACCUMULATIONS, 104, 16, 14, 8, 24, 24, 48, 32),
    "fp32": BlockTraffic(40 + ACCUMULATIONS, 140, 32, 28, 8, 24, 12, 48, 32),
}


def micro_batch_work(config: PretrainConfig, compiled: bool) -> Work:
    """Forward and backward pass of a next-token micro-batch that is not the first of its update."""
    model, train = config.model, config.train
    blocks = (COMPILED if compiled else TRAINING)[train.precision]
    tokens = train.micro_batch * train.seq_len
    work = blocks.of(model, train.micro_batch, train.seq_len) * model.num_layers
    flops = flops_of_step(config, False) / train.micro_batches_per_update
    return work + _ends(model, tokens) + _loss(model, tokens, train.precision, compiled) + Work(flops=flops)


def _ends(model: ModelConfig, tokens: int) -> Work:
    """Embedding, rotary angles and final norm, forward and backward; the gradient of the embedding is added up."""
    vocabulary = model.vocab_size * model.hidden_size
    return Work(33, tokens * (132 * model.hidden_size + 100) + (4 + 12) * vocabulary)


def _loss(model: ModelConfig, tokens: int, precision: str, compiled: bool) -> Work:
    """Output layer and loss, with gradients (metapt/models/losses.py)."""
    is_bf16 = precision == "bf16"
    chunks = -(-tokens // CHUNK_TOKENS["cuda"])
    per_logit = 8 if compiled and is_bf16 else 16 if compiled or not is_bf16 else 28
    tile_kernels = 0 if compiled else 13 if is_bf16 else 11
    chunk_kernels = (4 if is_bf16 else 3) + (4 if compiled else 0)
    tiles = chunks * (min(tokens, CHUNK_TOKENS["cuda"]) // TILE_TOKENS["cuda"] or 1)
    per_weight = 4 + 8 + 12 + (6 + 10 * chunks if is_bf16 else 0)
    per_state = 8 + (12 if is_bf16 else 0)
    return Work(
        (12 if is_bf16 else 9) + chunk_kernels * chunks + tile_kernels * tiles,
        per_logit * tokens * model.vocab_size
        + per_weight * model.vocab_size * model.hidden_size
        + per_state * tokens * model.hidden_size,
    )


def episode_work(config: PretrainConfig, compiled: bool) -> Work:
    """An episode, with whole windows: an upper bound. Its blocks are never compiled, its inner steps of scope head are CUDA graphs."""
    model, meta, precision = config.model, config.meta, config.train.precision
    support, query = meta.n_way * meta.k_shot, meta.n_way * meta.q_query
    forward = _on_windows(FORWARD[precision], model, support, meta.window, 3) * model.num_layers
    outer = _on_windows(TRAINING[precision], model, query, meta.window, 6) * model.num_layers
    work = forward + outer + _ends(model, query * meta.window) + Work(110)
    if meta.scope == "head":
        work += Work(1 if compiled else 50) * meta.inner_steps
    else:
        adapted = model.num_layers if meta.scope == "full" else meta.last_n
        step = _on_windows(TRAINING[precision], model, support, meta.window, 6) * adapted
        step += _on_windows(FORWARD[precision], model, support, meta.window, 3) * (model.num_layers - adapted)
        work += (step + Work(86)) * meta.inner_steps + Work(9) * adapted
    lengths = ([meta.window] * support, [meta.window] * query)
    return work + Work(flops=flops_of_episode(config, *lengths))


def _on_windows(block: BlockTraffic, model: ModelConfig, windows: int, length: int, per_group: int) -> Work:
    """A block on packed windows, whose attention runs group by group.

    Args:
        per_group: further kernels of a group.
    """
    groups = max(1, min(WINDOW_GROUPS, windows // GROUP_WINDOWS))
    return block.of(model, windows, length) + Work(per_group * groups)


def step_work(config: PretrainConfig) -> Work:
    """Norm, clipping and fused AdamW of all parameters, which read gradient, weight and moments and write the last three."""
    parameters = parameter_count(config.model)
    return Work(60, (4 + 8 + 4 * FP32 + 3 * FP32) * parameters)
