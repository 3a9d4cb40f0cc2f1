"""What a model and a step cost, in closed form: parameters, tokens, floating point operations. Imports no torch."""

from __future__ import annotations

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
    """Tokens that a step reads, over all ranks."""
    train, meta = config.train, config.meta
    if is_episode:
        return meta.tasks_per_step * meta.n_way * (meta.k_shot + meta.q_query) * meta.window
    return train.micro_batch * train.accumulation * train.seq_len


def flops_of_step(config: PretrainConfig, is_episode: bool) -> int:
    """Floating point operations of a step, over all ranks; the episode head is left out as negligible."""
    meta = config.meta
    if not is_episode:
        cost = Cost.of(config.model, config.train.seq_len)
        return (1 + BACKWARD) * (cost.blocks + cost.output_layer) * tokens_of_step(config, False)
    share_adapted = {"head": 0.0, "full": 1.0, "last_n": meta.last_n / config.model.num_layers}[meta.scope]
    inner_steps = 0 if meta.scope == "head" else meta.inner_steps
    passes_over_support = 1 + inner_steps * (1 + BACKWARD * share_adapted)
    passes = meta.k_shot * passes_over_support + meta.q_query * (1 + BACKWARD)
    tokens = meta.tasks_per_step * meta.n_way * meta.window
    return round(tokens * passes * Cost.of(config.model, meta.window).blocks)


def flops_expected(config: PretrainConfig) -> float:
    """Floating point operations of a step in the mean over the draws, of which a share rho are episodes."""
    rho = config.meta.rho
    episodes = rho * flops_of_step(config, True) if rho else 0.0
    return (1 - rho) * flops_of_step(config, False) + episodes
