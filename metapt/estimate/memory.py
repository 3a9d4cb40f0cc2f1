"""Estimate of the peak memory of a pretraining update on one rank. Imports no torch.

An update has a few phases in which memory may peak. `memory_by_phase` sums the tensors that are alive in each, and the
largest sum is the peak. The sums follow the code: metapt/meta, metapt/models/losses.py, DeepSpeed 0.19.8
(stage_1_and_2.py), and the tensors that autograd saves for a LLaMA block (tests/test_memory.py counts them).
benchmarks/memory.md compares the estimates with measured peaks.

Not counted: the process with its libraries, the context of an accelerator, fragmentation of the allocator, and tensors
of a few megabytes. All sizes are in bytes unless stated.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import pairwise

from metapt.config import ModelConfig, PretrainConfig, deepspeed_settings
from metapt.estimate.flops import (
    CHUNK_TOKENS,
    LABELLED_FRACTION,
    TILE_TOKENS,
    block_matrices,
    episode_fraction,
    episodes_of_update,
    lm_fraction,
    parameter_count,
)

FP32 = 4
BUCKET = 500_000_000  # elements of DeepSpeed's default reduce bucket, which cannot be set without ZeRO
KINDS = ("lm", "episode")


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank, by purpose.

    Attributes:
        optimizer: master copy of the parameters, and the two AdamW moments.
        gradients: gradients, and the buffers in which they are reduced.
        adapted: adapted copies of the parameters in an episode, and for Meta-SGD the sum of their gradients.
        activations: tensors saved for the backward pass, and the weights cast to bf16.
        temporaries: temporary tensors of the loss, of a backward node, or of AdamW.
        host: memory of the host that offloading uses beside that of the accelerator.
    """

    parameters: int = 0
    optimizer: int = 0
    gradients: int = 0
    adapted: int = 0
    activations: int = 0
    temporaries: int = 0
    host: int = 0

    @property
    def total(self) -> int:
        """Everything except the host's memory."""
        return sum(getattr(self, item.name) for item in fields(self)) - self.host


@dataclass(frozen=True)
class Ranks:
    """The number of ranks, and the kind of their devices (cpu or cuda)."""

    count: int
    device: str


def peak(config: PretrainConfig, kind: str, ranks: Ranks) -> tuple[str, Memory]:
    """The phase in which an update of this kind needs the most memory on a rank, and that memory."""
    phases = memory_by_phase(config, kind, ranks)
    return max(phases.items(), key=lambda item: item[1].total)


def update_kinds(config: PretrainConfig) -> list[str]:
    """The kinds of update that the run has, of KINDS."""
    fractions = {"lm": lm_fraction(config), "episode": episode_fraction(config)}
    return [kind for kind in KINDS if fractions[kind] > 0]


def largest_peak(config: PretrainConfig, ranks: Ranks) -> int:
    """Peak memory of the run on a rank, bytes."""
    return max(peak(config, kind, ranks)[1].total for kind in update_kinds(config))


def memory_by_phase(config: PretrainConfig, kind: str, ranks: Ranks) -> dict[str, Memory]:
    """Memory in each phase of an update in which it may peak, for the last micro-batch or task of the update.

    Windows of an episode are counted at full length; how many of their tokens are processed depends on the text.

    Args:
        kind: one of KINDS.
    """
    sharding = _Sharding.of(config, ranks)
    if kind == "episode":
        units = -(-episodes_of_update(config) // ranks.count)
        passes, saved = _episode(config, sharding)
    else:
        units = -(-config.train.micro_batches_per_update // ranks.count)
        passes, saved = _next_token(config, ranks)
    accumulated = sharding.accumulated_gradients(units)
    persistent = sharding.persistent()
    output = FP32 * config.model.vocab_size * config.model.hidden_size
    # The gradient of the output layer comes first (zeros in an episode), beside its copy in the bucket or in the loss.
    copies = 1 if kind == "episode" and sharding.stage == 0 else 2
    first = Memory(
        gradients=sharding.gradients_at_start(accumulated), activations=saved, temporaries=copies * output
    )
    last = Memory(gradients=sharding.gradients_at_end(accumulated), temporaries=FP32 * _largest(config.model))
    step = Memory(gradients=sharding.gradients_in_step(), temporaries=sharding.step_temporaries)
    return {
        **{name: _sum(persistent, Memory(gradients=accumulated), memory) for name, memory in passes.items()},
        "start of backward": _sum(persistent, first),
        "end of backward": _sum(persistent, last),
        "optimizer step": _sum(persistent, step),
    }


def all_parameters(config: PretrainConfig) -> int:
    """Number of parameters of the decoder, the episode head and the persistent heads, and of inner learning rates of Meta-SGD."""
    rates = adapted_parameters(config) if config.meta.rho and config.meta.algorithm == "meta_sgd" else 0
    persistent = (config.multitask.weight > 0) + (
        config.episodes.weight > 0 and config.episodes.initial_head == "persistent"
    )
    rows = persistent * sum(config.classes.partitions[:-1])
    return (
        parameter_count(config.model)
        + _head_parameters(config)
        + rows * (config.model.hidden_size + 1)
        + rates
    )


def adapted_parameters(config: PretrainConfig) -> int:
    """Number of parameters that the inner loop adapts, by scope (metapt/meta/window_episodes.py)."""
    model, meta = config.model, config.meta
    head = _head_parameters(config)
    if meta.scope == "head":
        return head
    if meta.scope == "full":
        output = 0 if model.tied_embeddings else model.vocab_size * model.hidden_size
        return head + parameter_count(model) - output
    block = block_matrices(model) + 2 * model.hidden_size
    return head + meta.last_n * block + model.hidden_size


def saved_activations(
    model: ModelConfig, windows: int, length: int, precision: str, device: str = "cpu"
) -> int:
    """Bytes that autograd saves for the backward pass of the decoder without its output layer.

    For each block and token: the inputs and root mean squares of both norms, the normalised inputs of the matrix
    products (in bf16 a cast for each product), queries, keys, values, output and log-sum-exp of the attention, and four
    tensors of the feed-forward layer. In bf16 also a cast of each matrix. On a GPU, fp32 has a fused attention only for
    keys and values that are repeated for all query heads (metapt/models/attention.py).

    Args:
        windows: number of sequences.
        length: tokens per sequence.
        precision: `bf16` or `fp32`.
        device: `cpu` or `cuda`.
    """
    d, f, kv = model.hidden_size, model.intermediate_size, _kv_width(model)
    if device == "cuda" and precision == "fp32":
        kv = d
    size = FP32 if precision == "fp32" else 2
    norm = 2 * FP32 * d + FP32
    casts = 2 * FP32 * d if precision == "fp32" else 5 * size * d
    attention = size * (2 * d + 2 * kv) + FP32 * model.num_heads
    block = 2 * norm + casts + attention + 4 * size * f
    rotary = 2 * FP32 * length * (d // model.num_heads)
    tokens = windows * length
    return tokens * (model.num_layers * block + norm + 8) + rotary + _cast_weights(model, precision)


def _next_token(config: PretrainConfig, ranks: Ranks) -> tuple[dict[str, Memory], int]:
    """Memory by phase of a next-token forward pass, and bytes saved for the backward pass."""
    model, train = config.model, config.train
    saved = saved_activations(model, train.micro_batch, train.seq_len, train.precision, ranks.device)
    tokens = train.micro_batch * train.seq_len
    size = FP32 if train.precision == "fp32" else 2
    output = model.vocab_size * model.hidden_size
    chunk = min(tokens, CHUNK_TOKENS[ranks.device])
    # Output layer: its gradient; in bf16 its cast, the gradient of one chunk, and on the CPU that gradient in fp32.
    # One chunk: the logits, overwritten by their gradient; in bf16 a few rows of them in fp32.
    layer, logits = output * FP32, chunk * model.vocab_size * size
    if size < FP32:
        layer += output * (2 * size + (FP32 if ranks.device == "cpu" else 0))
        logits += min(chunk, TILE_TOKENS[ranks.device]) * model.vocab_size * FP32
    states = tokens * model.hidden_size * 2 * FP32
    passes = {"loss": Memory(activations=saved, temporaries=layer + logits + states)}
    saved += states
    if config.multitask.weight > 0:
        # Logits of all classes of the labelled words, beside the gradient of the output layer; their logarithms are saved.
        term = round(LABELLED_FRACTION * tokens) * sum(config.classes.partitions[:-1]) * FP32
        saved += term
        passes["word classes"] = Memory(activations=saved, temporaries=output * FP32 + term)
    return passes, saved


def _episode(config: PretrainConfig, sharding: _Sharding) -> tuple[dict[str, Memory], int]:
    """Memory by phase of an episode's inner loop and query pass, and bytes saved for the backward pass."""
    model, meta, precision = config.model, config.meta, config.train.precision
    support, query = (
        saved_activations(model, meta.n_way * shots, meta.window, precision, sharding.ranks.device)
        for shots in (meta.k_shot, meta.q_query)
    )
    copy = FP32 * adapted_parameters(config)
    gradient_sum = copy if meta.algorithm == "meta_sgd" else 0  # over the inner steps
    if meta.scope == "head":
        tokens = meta.n_way * meta.k_shot * meta.window
        forward = _cast_weights(model, precision) + _block_temporaries(model, tokens)
        return {
            "support": Memory(temporaries=forward),
            "query": Memory(adapted=copy, activations=query),
        }, query
    if (
        sharding.stage == 3
    ):  # a rank has its rows of each task, and the shard of the gradients of earlier tasks
        count = sharding.ranks.count
        support, query, adapted = support // count, query // count, (copy + gradient_sum) // count
        inner_end = Memory(adapted=adapted, gradients=sharding.bucket, temporaries=FP32 * _largest(model))
        in_query = adapted
    else:
        adapted = copy + gradient_sum
        inner_end = Memory(adapted=adapted, temporaries=FP32 * _largest(model))
        in_query = adapted + gradient_sum
    phases = {
        "start of inner step": Memory(adapted=adapted, activations=support),
        "end of inner step": inner_end,
        "query": Memory(adapted=in_query, activations=query),
    }
    return phases, query


def _block_temporaries(model: ModelConfig, tokens: int) -> int:
    """Bytes of temporaries in the forward pass of one block without gradients: residual stream and feed-forward layer."""
    return tokens * FP32 * (2 * model.hidden_size + 2 * model.intermediate_size)


@dataclass(frozen=True)
class _Sharding:
    """The memory of DeepSpeed on a rank, by ZeRO stage.

    Attributes:
        offload: whether the optimizer state is in host memory.
        parameters: bytes of all parameters in fp32.
        gathered: bytes of gathered parameters that stage 3 keeps at most.
        shard: bytes of the partition of a rank.
        bucket: bytes of the reduce buckets.
        largest: bytes of the largest parameter.
        step_temporaries: bytes of temporaries of an optimizer step.
    """

    ranks: Ranks
    stage: int
    offload: bool
    parameters: int
    gathered: int
    shard: int
    bucket: int
    largest: int
    step_temporaries: int

    @classmethod
    def of(cls, config: PretrainConfig, ranks: Ranks) -> _Sharding:
        """The sizes that follow from the DeepSpeed configuration of a run."""
        zero = deepspeed_settings(config.ds).get("zero_optimization", {})
        stage, offload = zero.get("stage", 0), "offload_optimizer" in zero
        parameters, largest = FP32 * all_parameters(config), FP32 * _largest(config.model)
        bucket = FP32 * (int(zero.get("reduce_bucket_size", BUCKET)) if stage else BUCKET)
        if not stage or ranks.device == "cpu":  # on a CPU, only the filled part of a bucket takes memory
            bucket = min(bucket, parameters)
        return cls(
            ranks,
            stage,
            offload,
            parameters,
            gathered=min(parameters, max(largest, FP32 * int(zero.get("stage3_max_live_parameters", 1e9)))),
            shard=-(-parameters // ranks.count),
            bucket=2 * bucket if zero.get("overlap_comm", stage == 3) else bucket,
            largest=largest,
            step_temporaries=_step_temporaries(config, ranks, stage),
        )

    def persistent(self) -> Memory:
        """Memory that is in use throughout training, without gradients."""
        parameters = self.shard + self.gathered if self.stage == 3 else self.parameters
        if self.stage == 0:
            return Memory(parameters=parameters, optimizer=2 * self.parameters)
        if not self.offload:
            return Memory(parameters=parameters, optimizer=3 * self.shard)
        # Host: master copy, two moments, gradient, and a buffer for the way back; the largest parameter on both sides.
        offloaded = 5 * self.shard + self.largest
        memory = Memory(parameters=parameters, gradients=self.largest)
        if self.ranks.device == "cuda":
            return replace(memory, host=offloaded)
        return replace(memory, optimizer=offloaded)

    def accumulated_gradients(self, units: int) -> int:
        """Bytes of gradients on the device after all but the last of a rank's micro-batches or tasks of an update."""
        if self.offload and self.stage >= 2:
            return 0
        if self.stage == 3:
            return self.shard  # a buffer that is never freed
        if units == 1:
            return 0
        return self.shard if self.stage == 2 else self.parameters

    def gradients_at_start(self, accumulated: int) -> int:
        """Bytes of gradients and buffers at the start of the last backward pass. A CPU allocates pages when written."""
        if self.stage == 0 or self.ranks.device == "cpu":
            return accumulated
        return accumulated + self.bucket if self.stage == 1 else self.gradients_at_end(accumulated)

    def gradients_at_end(self, accumulated: int) -> int:
        """Bytes of gradients and buffers at the end of the last backward pass."""
        if self.stage < 2:
            return self.parameters + self.bucket + (self.shard if self.stage == 1 else 0)
        return accumulated + self.bucket + (self.shard if self.stage == 2 and not self.offload else 0)

    def gradients_in_step(self) -> int:
        """Bytes of gradients during the optimizer step."""
        if self.stage == 0:
            return self.parameters
        return 0 if self.offload else self.shard


def _step_temporaries(config: PretrainConfig, ranks: Ranks, stage: int) -> int:
    """Bytes of temporaries of an optimizer step.

    AdamW: two tensors of a parameter group on a CPU, none when fused. ZeRO: the flat gradient of a group, and a copy of a
    gradient in fp64 for its norm.
    """
    largest, block = (FP32 * size for size in (_largest(config.model), block_matrices(config.model)))
    if stage == 0:
        return 2 * largest if ranks.device == "cpu" else 0
    group = FP32 * all_parameters(config) if stage == 3 else block
    return max(2 * largest, (3 if ranks.device == "cpu" else 1) * group // ranks.count)


def _sum(*parts: Memory) -> Memory:
    return Memory(**{item.name: sum(getattr(part, item.name) for part in parts) for item in fields(Memory)})


def _kv_width(model: ModelConfig) -> int:
    return model.hidden_size // model.num_heads * model.num_kv_heads


def _cast_weights(model: ModelConfig, precision: str) -> int:
    return 0 if precision == "fp32" else 2 * model.num_layers * block_matrices(model)


def _largest(model: ModelConfig) -> int:
    """Number of elements of the largest parameter, normally the embedding."""
    return model.hidden_size * max(model.vocab_size, model.intermediate_size)


def _head_parameters(config: PretrainConfig) -> int:
    meta = config.meta
    if not meta.rho or meta.makes_head_anew:
        return 0
    hidden = [meta.head_hidden] * (meta.head_layers - 1)
    widths = [config.model.hidden_size, *hidden, config.episode_head_outputs]
    return sum((into + 1) * out for into, out in pairwise(widths))
