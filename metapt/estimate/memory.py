"""Memory of a pretraining step on one rank, told in advance. Imports no torch.

A step has a few moments at which memory peaks; of each, `moments` lists what lives, and the largest counts. What
lives is read off the code that runs: metapt/meta, metapt/models/losses.py, DeepSpeed 0.19.8 (stage_1_and_2.py) and the
tensors that autograd saves for a LLaMA block (tests/test_memory.py counts them). benchmarks/memory.md compares with
peaks that were measured.

Left out: the process itself with its libraries, an accelerator's context, what an allocator loses to fragments, and
tensors of a few megabytes. Units are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import pairwise

from metapt.config import ModelConfig, PretrainConfig, deepspeed_settings
from metapt.estimate.flops import CHUNK_TOKENS, TILE_TOKENS, block_matrices, parameter_count

FP32 = 4
BUCKET = 500_000_000  # elements that DeepSpeed reduces at once by default; without ZeRO it is not a setting
KINDS = ("lm", "episode")


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank, by what they are for. `host` is what offloading keeps beside an accelerator's memory."""

    parameters: int = 0
    optimizer: int = 0  # master copy of the parameters and two moments
    gradients: int = 0  # with the buffers in which they are reduced
    adapted: int = 0  # adapted copies of an episode, and the sum of their gradients for Meta-SGD
    activations: int = 0  # saved for the backward pass, with the weights cast to bf16
    working: int = 0  # temporaries of the loss, of a backward node, of AdamW
    host: int = 0

    @property
    def total(self) -> int:
        """All of it but the host's."""
        return sum(getattr(self, item.name) for item in fields(self)) - self.host


@dataclass(frozen=True)
class Ranks:
    """How many ranks share the work, and on which kind of device (cpu or cuda)."""

    count: int
    device: str


def peak(config: PretrainConfig, kind: str, ranks: Ranks) -> tuple[str, Memory]:
    """The moment at which an update of this kind needs the most memory on a rank, and what lives then."""
    listed = moments(config, kind, ranks)
    return max(listed.items(), key=lambda item: item[1].total)


def moments(config: PretrainConfig, kind: str, ranks: Ranks) -> dict[str, Memory]:
    """What lives at each moment of an update's last micro-batch or task at which memory may peak.

    An episode's windows count as whole: how far they are read depends on the text.

    Args:
        kind: one of KINDS.
    """
    sharding = _Sharding.of(config, ranks)
    if kind == "episode":
        units = config.meta.tasks_per_step // ranks.count
        passes, saved = _episode(config, sharding)
    else:
        units = config.train.micro_batches_per_update // ranks.count
        passes, saved = _autoregressive(config, ranks)
    held = sharding.accumulated(units)
    at_rest = sharding.at_rest()
    output = FP32 * config.model.vocab_size * config.model.hidden_size
    # The output layer's gradient comes first (of an episode: zeros), beside its copy in the bucket or that of the loss.
    copies = 1 if kind == "episode" and sharding.stage == 0 else 2
    first = Memory(gradients=sharding.begun(held), activations=saved, working=copies * output)
    last = Memory(gradients=sharding.reduced(held), working=FP32 * _largest(config.model))
    return {
        **{name: _sum(at_rest, Memory(gradients=held), what) for name, what in passes.items()},
        "backward begins": _sum(at_rest, first),
        "backward ends": _sum(at_rest, last),
        "step": _sum(at_rest, Memory(gradients=sharding.stepped(), working=sharding.stepping)),
    }


def all_parameters(config: PretrainConfig) -> int:
    """Parameters of the decoder, of the episode head, and the inner rates of Meta-SGD."""
    rates = adapted_parameters(config) if config.meta.rho and config.meta.algorithm == "meta_sgd" else 0
    return parameter_count(config.model) + _head_parameters(config) + rates


def adapted_parameters(config: PretrainConfig) -> int:
    """Parameters that the inner loop copies, by scope (metapt/meta/objectives.py)."""
    model, meta = config.model, config.meta
    head = _head_parameters(config)
    if meta.scope == "head":
        return head
    if meta.scope == "full":
        return head + parameter_count(model) - model.vocab_size * model.hidden_size
    block = block_matrices(model) + 2 * model.hidden_size
    return head + meta.last_n * block + model.hidden_size


def saved_activations(model: ModelConfig, windows: int, length: int, precision: str) -> int:
    """Bytes that autograd keeps for the backward pass of the decoder, its output layer left out.

    Of each block, for every token: the inputs of both norms and what they divide by, the normed inputs of the matrix
    products (bf16: a cast for each product), queries, keys, values, the attention's output and log-sum-exp, and four
    tensors of the feed-forward layer. In bf16 also each matrix once, cast.
    """
    d, f, kv = model.hidden_size, model.intermediate_size, _kv_width(model)
    size = FP32 if precision == "fp32" else 2
    norm = 2 * FP32 * d + FP32
    casts = 2 * FP32 * d if precision == "fp32" else 5 * size * d
    attention = size * (2 * d + 2 * kv) + FP32 * model.num_heads
    block = 2 * norm + casts + attention + 4 * size * f
    rotary = 2 * FP32 * length * (d // model.num_heads)
    tokens = windows * length
    return tokens * (model.num_layers * block + norm + 8) + rotary + _cast_weights(model, precision)


def _autoregressive(config: PretrainConfig, ranks: Ranks) -> tuple[dict[str, Memory], int]:
    """The moments of the forward pass, and what is saved until the backward pass."""
    model, train = config.model, config.train
    saved = saved_activations(model, train.micro_batch, train.seq_len, train.precision)
    tokens = train.micro_batch * train.seq_len
    size = FP32 if train.precision == "fp32" else 2
    output = model.vocab_size * model.hidden_size
    chunk = min(tokens, CHUNK_TOKENS[ranks.device])
    # Of the layer its gradient; in bf16 its cast, a chunk's share of the gradient, and on the CPU that share in fp32.
    # Of a chunk the logits, which become their gradient; in bf16 a few rows of them in fp32.
    layer, logits = output * FP32, chunk * model.vocab_size * size
    if size < FP32:
        layer += output * (2 * size + (FP32 if ranks.device == "cpu" else 0))
        logits += min(chunk, TILE_TOKENS[ranks.device]) * model.vocab_size * FP32
    states = tokens * model.hidden_size * 2 * FP32
    return {"loss": Memory(activations=saved, working=layer + logits + states)}, saved + states


def _episode(config: PretrainConfig, sharding: _Sharding) -> tuple[dict[str, Memory], int]:
    model, meta, precision = config.model, config.meta, config.train.precision
    support, query = (
        saved_activations(model, meta.n_way * shots, meta.window, precision)
        for shots in (meta.k_shot, meta.q_query)
    )
    copy = FP32 * adapted_parameters(config)
    gradients = copy if meta.algorithm == "meta_sgd" else 0  # their sum over the inner steps
    if meta.scope == "head":
        once = _cast_weights(model, precision) + _block_working(model, meta.n_way * meta.k_shot * meta.window)
        passes = {"support": Memory(working=once), "query": Memory(adapted=copy, activations=query)}
    elif sharding.stage == 3:  # of each task a rank's rows; the shard of the gradient of the tasks before
        shards = (2 if meta.algorithm == "meta_sgd" else 1) * copy // sharding.ranks.count
        support, query = (saved // sharding.ranks.count for saved in (support, query))
        inner = Memory(adapted=shards, gradients=sharding.bucket, working=FP32 * _largest(model))
        passes = {
            "inner step begins": Memory(adapted=shards, activations=support),
            "inner step ends": inner,
            "query": Memory(adapted=shards, activations=query),
        }
    else:
        passes = {
            "inner step begins": Memory(adapted=copy + gradients, activations=support),
            "inner step ends": Memory(adapted=copy + gradients, working=FP32 * _largest(model)),
            "query": Memory(adapted=copy + 2 * gradients, activations=query),
        }
    return passes, query


def _block_working(model: ModelConfig, tokens: int) -> int:
    """Temporaries of one block without gradients: the residual stream and the feed-forward layer."""
    return tokens * FP32 * (2 * model.hidden_size + 2 * model.intermediate_size)


@dataclass(frozen=True)
class _Sharding:
    """What DeepSpeed keeps on a rank, by stage."""

    ranks: Ranks
    stage: int
    offload: bool
    parameters: int  # bytes of all, fp32
    gathered: int  # that stage 3 may hold at once
    shard: int  # of a rank's partition
    bucket: int
    largest: int  # of the largest parameter
    stepping: int  # temporaries of a step

    @classmethod
    def of(cls, config: PretrainConfig, ranks: Ranks) -> _Sharding:
        """What the DeepSpeed file of a run means in bytes on a rank."""
        zero = deepspeed_settings(config.ds).get("zero_optimization", {})
        stage, offload = zero.get("stage", 0), "offload_optimizer" in zero
        parameters, largest = FP32 * all_parameters(config), FP32 * _largest(config.model)
        bucket = FP32 * (int(zero.get("reduce_bucket_size", BUCKET)) if stage else BUCKET)
        if not stage or ranks.device == "cpu":  # of a bucket only what is filled counts there
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
            stepping=_stepping(config, ranks, stage),
        )

    def at_rest(self) -> Memory:
        """What lives all the time, gradients left out."""
        parameters = self.shard + self.gathered if self.stage == 3 else self.parameters
        if self.stage == 0:
            return Memory(parameters=parameters, optimizer=2 * self.parameters)
        if not self.offload:
            return Memory(parameters=parameters, optimizer=3 * self.shard)
        # Master copy, two moments, gradient and a buffer on the way back; the largest parameter on either side.
        kept = 5 * self.shard + self.largest
        rest = Memory(parameters=parameters, gradients=self.largest)
        return replace(rest, host=kept) if self.ranks.device == "cuda" else replace(rest, optimizer=kept)

    def accumulated(self, units: int) -> int:
        """Gradients that the earlier ones of a rank's units of an update leave on the device."""
        if self.offload and self.stage >= 2:
            return 0
        if self.stage == 3:
            return self.shard  # a buffer that always stands
        if units == 1:
            return 0
        return self.shard if self.stage == 2 else self.parameters

    def begun(self, held: int) -> int:
        """Gradients and buffers as the last backward pass begins. The CPU's pages come only as they are written."""
        if self.stage == 0 or self.ranks.device == "cpu":
            return held
        return held + self.bucket if self.stage == 1 else self.reduced(held)

    def reduced(self, held: int) -> int:
        """Gradients and buffers as it ends."""
        if self.stage < 2:
            return self.parameters + self.bucket + (self.shard if self.stage == 1 else 0)
        return held + self.bucket + (self.shard if self.stage == 2 and not self.offload else 0)

    def stepped(self) -> int:
        """Gradients at the time of the step."""
        if self.stage == 0:
            return self.parameters
        return 0 if self.offload else self.shard


def _stepping(config: PretrainConfig, ranks: Ranks, stage: int) -> int:
    """Temporaries of a step: AdamW's two of a group on the CPU (fused, it has none), the flat gradient of a group,
    the norm's copy of a gradient in fp64 with ZeRO."""
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
    """Elements of the largest parameter: the embedding, as a rule."""
    return model.hidden_size * max(model.vocab_size, model.intermediate_size)


def _head_parameters(config: PretrainConfig) -> int:
    meta = config.meta
    if not meta.rho:
        return 0
    widths = [config.model.hidden_size, *[meta.head_hidden] * (meta.head_layers - 1), meta.n_way]
    return sum((into + 1) * out for into, out in pairwise(widths))
