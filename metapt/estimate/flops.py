"""Parameters, tokens and FLOPs of a model and of an update, in closed form. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from metapt.config import ModelConfig, PretrainConfig

# Tokens whose logits and loss are computed at the same time (metapt/models/losses.py), and those of them in fp32.
CHUNK_TOKENS = {"cpu": 256, "cuda": 4096}
TILE_TOKENS = {"cpu": 32, "cuda": 1024}
LABELLED_FRACTION = 0.6  # of the tokens of English text begin a word that has a class (docs/log.md)
BACKWARD = 2  # FLOPs of a backward pass relative to a forward pass (Kaplan et al. 2020, section 2.1)


def block_matrices(model: ModelConfig) -> int:
    """Number of weights in the matrices of one block: attention and the SwiGLU feed-forward layer."""
    d, head = model.hidden_size, model.hidden_size // model.num_heads
    return 2 * d * d + 2 * d * head * model.num_kv_heads + 3 * d * model.intermediate_size


def parameter_count(model: ModelConfig) -> int:
    """Number of parameters of the decoder."""
    d, vocabulary_matrices = model.hidden_size, 1 if model.tied_embeddings else 2
    blocks = model.num_layers * (block_matrices(model) + 2 * d)
    return vocabulary_matrices * model.vocab_size * d + blocks + d + model.biases


@dataclass(frozen=True)
class Cost:
    """FLOPs of a forward pass per token: 2 for each multiply-add of a matrix product.

    As in Kaplan et al. 2020, section 2.1, and PaLM, appendix B: embedding look-ups, norms and activation functions are
    not counted, attention scores only for the causal half of the window.
    """

    blocks: int
    output_layer: int

    @classmethod
    def of(cls, model: ModelConfig, length: int) -> Cost:
        """FLOPs per token in a sequence of `length` tokens."""
        d = model.hidden_size
        scores = 2 * d * (length + 1) // 2
        blocks = 2 * model.num_layers * (block_matrices(model) + scores)
        return cls(blocks=blocks, output_layer=2 * d * model.vocab_size)


def tokens_of_units(config: PretrainConfig, micro_batches: int, episodes: int) -> int:
    """Tokens of the sequences of micro-batches and of the windows of episodes."""
    train, meta = config.train, config.meta
    windows = meta.n_way * (meta.k_shot + meta.q_query)
    sequences = micro_batches * train.micro_batch if micro_batches else 0
    return sequences * train.seq_len + episodes * windows * meta.window


def episodes_of_update(config: PretrainConfig) -> int:
    """Largest number of episodes of an update, over all ranks."""
    per_micro_batch = config.meta.mixing == "per_micro_batch"
    return config.train.micro_batches_per_update if per_micro_batch else config.meta.tasks_per_step


def tokens_of_step(config: PretrainConfig, is_episode: bool) -> int:
    """Tokens of all micro-batches, or of all episodes of an update, over all ranks."""
    if is_episode:
        return tokens_of_units(config, 0, episodes_of_update(config))
    return config.train.sequences * config.train.seq_len


def passes_over(config: PretrainConfig, tokens: int) -> float:
    """Expected passes of next-token prediction over a training split of this number of tokens."""
    return tokens_of_step(config, False) * config.train.max_steps * lm_fraction(config) / tokens


def flops_of_step(config: PretrainConfig, is_episode: bool, terms: Collection[str] | None = None) -> int:
    """FLOPs of all micro-batches, or of all episodes of an update, over all ranks.

    For episodes an upper bound, as if every window were used to its end.

    Args:
        terms: those that take part in the update; by default all that have a weight.
    """
    meta = config.meta
    if not is_episode:
        cost = Cost.of(config.model, config.train.seq_len)
        forward = (cost.blocks + cost.output_layer) * tokens_of_step(config, False)
        if terms is None:
            terms = [name for name, term in config.terms.items() if term.weight > 0]
        return (1 + BACKWARD) * forward + flops_of_terms(config, terms)
    support, query = ([meta.window] * (meta.n_way * shots) for shots in (meta.k_shot, meta.q_query))
    return episodes_of_update(config) * flops_of_episode(config, support, query)


def flops_of_terms(config: PretrainConfig, terms: Collection[str]) -> int:
    """FLOPs of terms of a next-token update (metapt/meta/terms.py), over all ranks; an upper bound for episodes."""
    d, tokens, flops = config.model.hidden_size, tokens_of_step(config, False), 0.0
    if "multitask" in terms:
        classes = sum(config.classes.partitions[:-1])
        flops += (1 + BACKWARD) * 2 * d * classes * LABELLED_FRACTION * tokens
    if "episodes" in terms:
        term, groups = config.episodes, tokens / (config.train.seq_len * config.meta.batch_sequences)
        products = (1 + BACKWARD) + BACKWARD * term.inner_steps + BACKWARD  # query, inner steps, prototypes
        flops += groups * term.per_group * products * 2 * d * term.n_way * term.max_examples
    return round(flops)


def flops_of_episode(config: PretrainConfig, support: Iterable[int], query: Iterable[int]) -> int:
    """FLOPs of one episode.

    Not counted, as negligible: the episode head, and the padding of packed windows (metapt/models/packed_windows.py).

    Args:
        support, query: number of tokens of each window that the decoder processes, up to the prediction position.
    """
    meta = config.meta
    outer = 0 if meta.algorithm == "reptile" else BACKWARD  # Reptile scores the query set without a gradient
    adapted_fraction = {"head": 0.0, "full": 1.0, "last_n": meta.last_n / config.model.num_layers}[meta.scope]
    inner_steps = 0 if meta.scope == "head" else meta.inner_steps
    passes_over_support = 1 + inner_steps * (1 + BACKWARD * adapted_fraction)
    if meta.makes_head_anew and meta.initial_head != "zero":  # the head is made from support states
        passes_over_support += outer if meta.scope == "head" else 1 + outer
    if meta.normalize and meta.scope != "head":
        passes_over_support += 1  # the mean support state of the query set
    support_pass, query_pass = (
        sum(
            count * length * Cost.of(config.model, length).blocks
            for length, count in Counter(lengths).items()
        )
        for lengths in (support, query)
    )
    return round(passes_over_support * support_pass + (1 + outer) * query_pass)


def flops_expected(config: PretrainConfig) -> float:
    """Expected FLOPs of an update, over the random choice of updates, or micro-batches, with episodes."""
    fraction = episode_fraction(config)
    episodes = fraction * flops_of_step(config, True) if fraction else 0.0
    return lm_fraction(config) * flops_of_step(config, False) + episodes


def episode_fraction(config: PretrainConfig) -> float:
    """Expected fraction of updates (or micro-batches) with episodes in a run: meta.rho from meta.start_step on."""
    meta, steps = config.meta, config.train.max_steps
    return meta.rho * (1 - min(meta.start_step, steps) / steps)


def lm_fraction(config: PretrainConfig) -> float:
    """Expected fraction of updates (or micro-batches) with next-token prediction in a run."""
    return 1.0 if config.meta.mixing == "sum" else 1 - episode_fraction(config)
