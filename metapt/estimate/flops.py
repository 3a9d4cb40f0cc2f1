"""What a model and a step cost, in closed form: parameters, tokens, floating point operations. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from metapt.config import ModelConfig, PretrainConfig

CHUNK_TOKENS = {"cpu": 256, "cuda": 4096}  # of the output layer and the loss (metapt/models/losses.py)
TILE_TOKENS = {"cpu": 32, "cuda": 1024}  # of a chunk, in fp32 at once
BACKWARD = 2  # a backward pass costs twice a forward pass (Kaplan et al. 2020, section 2.1)


def block_matrices(model: ModelConfig) -> int:
    """Weights in the matrices of one block: attention and the SwiGLU feed-forward layer."""
    d, head = model.hidden_size, model.hidden_size // model.num_heads
    return 2 * d * d + 2 * d * head * model.num_kv_heads + 3 * d * model.intermediate_size


def parameter_count(model: ModelConfig) -> int:
    """Exact number of parameters of the decoder."""
    d = model.hidden_size
    return 2 * model.vocab_size * d + model.num_layers * (block_matrices(model) + 2 * d) + d


@dataclass(frozen=True)
class Cost:
    """Floating point operations of one forward pass over one token: 2 per multiply-add in matrix products.

    The usual count (Kaplan et al. 2020, section 2.1; PaLM, appendix B): embeddings look-ups, norms and
    activations are left out; attention scores are counted for the causal half of the window.
    """

    blocks: int
    output_layer: int

    @classmethod
    def of(cls, model: ModelConfig, length: int) -> Cost:
        """Cost per token in a sequence of `length` tokens."""
        d = model.hidden_size
        scores = 2 * d * (length + 1) // 2
        blocks = 2 * model.num_layers * (block_matrices(model) + scores)
        return cls(blocks=blocks, output_layer=2 * d * model.vocab_size)


def tokens_of_step(config: PretrainConfig, is_episode: bool) -> int:
    """Tokens of the sequences or windows that a step draws, over all ranks."""
    train, meta = config.train, config.meta
    if is_episode:
        return meta.tasks_per_step * meta.n_way * (meta.k_shot + meta.q_query) * meta.window
    return train.micro_batch * train.micro_batches_per_update * train.seq_len


def flops_of_step(config: PretrainConfig, is_episode: bool) -> int:
    """Floating point operations of a step, over all ranks: of an episode step an upper bound, the windows read whole."""
    meta = config.meta
    if not is_episode:
        cost = Cost.of(config.model, config.train.seq_len)
        return (1 + BACKWARD) * (cost.blocks + cost.output_layer) * tokens_of_step(config, False)
    support, query = ([meta.window] * (meta.n_way * shots) for shots in (meta.k_shot, meta.q_query))
    return meta.tasks_per_step * flops_of_episode(config, support, query)


def flops_of_episode(config: PretrainConfig, support: Iterable[int], query: Iterable[int]) -> int:
    """Floating point operations of one episode, from the lengths to which its windows are read.

    What a window is read to depends on the text. The episode head is left out as negligible, and so are the few
    tokens by which windows of a group are longer than they need be (metapt/models/packed_windows.py).
    """
    meta = config.meta
    adapted_fraction = {"head": 0.0, "full": 1.0, "last_n": meta.last_n / config.model.num_layers}[meta.scope]
    inner_steps = 0 if meta.scope == "head" else meta.inner_steps
    passes_over_support = 1 + inner_steps * (1 + BACKWARD * adapted_fraction)
    once = [
        sum(
            count * length * Cost.of(config.model, length).blocks
            for length, count in Counter(lengths).items()
        )
        for lengths in (support, query)
    ]
    return round(passes_over_support * once[0] + (1 + BACKWARD) * once[1])


def flops_expected(config: PretrainConfig) -> float:
    """Floating point operations of a step in the mean over the run's draws."""
    share = episode_fraction(config)
    episodes = share * flops_of_step(config, True) if share else 0.0
    return (1 - share) * flops_of_step(config, False) + episodes


def episode_fraction(config: PretrainConfig) -> float:
    """The share of a run's updates that are expected to be episodes: rho of those from meta.start_step on."""
    meta, steps = config.meta, config.train.max_steps
    return meta.rho * (1 - min(meta.start_step, steps) / steps)
