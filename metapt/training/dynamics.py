"""Measurements of what pretraining does to the model, every `train.dynamics_every` updates. Training is not affected.

- The proportional effective rank of a weight matrix, exp(H(s / sum s)) / rank_max, where H is the Shannon entropy of
  the normalised singular values s. It is 1 if all singular values are equal, and 1 / rank_max if one dominates.
- The entropy of each attention head, on a few held-out sequences.
- Accuracy on word classes that were held out of training (metapt/meta/word_probe.py).
- The probe: loss and accuracy on support and query at every inner step of a fixed episode that is never trained on.

Gradient norms by part of the model are logged with the update before the measurement (`Engine.gradient_norms`). All
ranks take part; the values do not depend on their number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from metapt.config import PretrainConfig
from metapt.data.episodes import Episode, TaskSampler
from metapt.data.shards import evenly_spread
from metapt.meta.window_episodes import probe
from metapt.meta.word_probe import WordProbe
from metapt.models.meta_lm import MetaLM
from metapt.training.engine import Engine

MATRICES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""Weight matrices of a block by their names in metrics.jsonl."""
ATTENTION_SEQUENCES = 4
"""Number of held-out sequences on which attention entropy is measured."""
QUERY_CHUNK = 256
"""Query positions whose scores are in memory at a time."""
PROBE_STEP = -1
"""Step that keys the sampling of the probe episode; training episodes have steps from 0."""


class Dynamics:
    """The measurements of one run.

    Args:
        eval_rows: tokens [n, T + 1] of the held-out split.
        sampler: of episodes; None in a run without.
        check_stop: called equally often on all ranks during a measurement; may raise to abort it.
        word_probe: of the corpus' held-out words; None in a run without word classes.
    """

    def __init__(
        self,
        engine: Engine,
        config: PretrainConfig,
        eval_rows: Tensor,
        sampler: TaskSampler | None,
        check_stop: Callable[[], None] = lambda: None,
        word_probe: WordProbe | None = None,
    ):
        self.engine, self.config, self.check_stop = engine, config, check_stop
        self.word_probe = word_probe
        chosen = evenly_spread(ATTENTION_SEQUENCES, len(eval_rows))
        self.sequences = eval_rows[chosen, :-1].to(engine.device)
        self.probe_task = sampler.episode(PROBE_STEP, 0) if sampler and config.train.dynamics_every else None

    def is_due(self, updates_done: int) -> bool:
        """Whether to measure now: every `train.dynamics_every` updates, before the first and after the last."""
        every = self.config.train.dynamics_every
        return every > 0 and (updates_done % every == 0 or updates_done == self.config.train.max_steps)

    def measure(self) -> dict[str, Any]:
        """The values of a line of kind `dynamics`; they depend on the weights alone, except for `seconds`."""
        started = time.perf_counter()
        values: dict[str, Any] = {"effective_rank": self._effective_ranks()}
        values |= attention_entropy(self.engine.meta_lm, self.sequences)
        if self.probe_task is not None:
            curves = self._probe(self.probe_task)
            values |= {f"probe_{name}": curve.tolist() for name, curve in curves.items()}
        if self.word_probe is not None:
            values |= self.word_probe.measure(self.engine.meta_lm)
        return {**values, "seconds": time.perf_counter() - started}

    def _probe(self, task: Episode) -> dict[str, Tensor]:
        engine, meta = self.engine, self.config.meta
        return probe(engine.meta_lm, task, meta, self.check_stop, engine.begin_episode(meta))

    def _effective_ranks(self) -> dict[str, list[float]]:
        """Effective ranks of each kind of matrix, one per block. Each rank computes every world_size-th matrix."""
        engine, num_layers = self.engine, self.config.model.num_layers
        parameters = dict(engine.meta_lm.named_parameters())
        names = [
            f"decoder.model.layers.{block}.{path}.weight"
            for path in MATRICES.values()
            for block in range(num_layers)
        ]
        effective_ranks = torch.zeros(len(names), dtype=torch.float64)
        for first in range(0, len(names), engine.world_size):
            self.check_stop()
            matrix = None
            for rank, name in enumerate(names[first : first + engine.world_size]):
                with engine.meta_lm.gathered({name: parameters[name]}):
                    if rank == engine.rank:
                        matrix = parameters[name].detach().clone()
            if matrix is not None:
                effective_ranks[first + engine.rank] = effective_rank(matrix)
        combined = engine.mean(effective_ranks) * engine.world_size
        return dict(zip(MATRICES, combined.view(len(MATRICES), num_layers).tolist(), strict=True))


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values of a matrix [m, n], ascending, fp64 [min(m, n)].

    They are roots of the eigenvalues of the smaller Gram matrix, which is many times faster than a singular value
    decomposition. In fp64, only values below 1e-8 of the largest are lost to rounding, which does not affect an
    entropy.
    """
    wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().T
    return torch.linalg.eigvalsh(wide @ wide.T).clamp(min=0).sqrt()


def effective_rank(matrix: Tensor) -> float:
    """Proportional effective rank of a matrix [m, n]: exp(H(s / sum s)) / min(m, n).

    Returns: a value in (0, 1]; 0 for the zero matrix; NaN if a weight is not finite.
    """
    if not matrix.isfinite().all():
        return math.nan
    values = singular_values(matrix)
    total = values.sum()
    if total == 0:
        return 0.0
    entropy = torch.special.entr(values / total).sum()  # entr(p) = -p log p, and 0 at 0
    return float(entropy.exp()) / len(values)


def parameter_groups(meta_lm: MetaLM) -> dict[str, list[str]]:
    """Names of all parameters by part of the model.

    Returns: names by group: embedding, block_0 .., output_layer (with the final norm), episode_head, inner_rates, term_heads.
    """
    groups: dict[str, list[str]] = {}
    for name, _ in meta_lm.named_parameters():
        if name.startswith(("episode_head.", "inner_rates.", "term_heads.")):
            group = name.split(".")[0]
        elif name.startswith("decoder.model.embed_tokens."):
            group = "embedding"
        elif name.startswith("decoder.model.layers."):
            group = f"block_{name.split('.')[3]}"
        else:
            group = "output_layer"
        groups.setdefault(group, []).append(name)
    return groups


def attention_entropy(meta_lm: MetaLM, sequences: Tensor) -> dict[str, list[list[float]]]:
    """Entropy of each attention head over the keys that a query attends to, by block and head.

    Args:
        sequences: tokens [n, T]; the decoder processes one sequence at a time.
    Returns: `attention_entropy_nats`, the mean over queries, and `attention_entropy_ratio`, the mean ratio of the
        entropy to that of uniform attention, log(keys), over queries with more than one key.
    """
    with _observed_attention(meta_lm) as layers, torch.no_grad():
        by_sequence = []
        for sequence in sequences:
            meta_lm.hidden_states(sequence[None])
            by_sequence.append(torch.stack([layer.entropies for layer in layers]))
    entropies = torch.stack(by_sequence).mean(dim=0)  # [blocks, heads, queries]
    keys = torch.arange(1, entropies.shape[-1] + 1, device=entropies.device)
    ratios = entropies[..., 1:] / keys[1:].log()
    return {
        "attention_entropy_nats": entropies.mean(dim=-1).tolist(),
        "attention_entropy_ratio": ratios.mean(dim=-1).tolist(),
    }


class _ObservedAttention:
    """Computes the entropies of the heads of an attention module from the outputs of its projections.

    The module itself runs unchanged, since its fused kernels return no attention weights. At ZeRO stage 3, weights
    are used in their usual order.
    """

    def __init__(self, attention: nn.Module):
        self.entropies: Tensor = torch.empty(0)
        self._projections: dict[str, Tensor] = {}
        self.handles = [attention.register_forward_hook(self._compute, with_kwargs=True)]
        for name in ("q_proj", "k_proj"):
            self.handles.append(getattr(attention, name).register_forward_hook(self._store_as(name)))

    def _store_as(self, name: str) -> Any:
        def store(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._projections[name] = output

        return store

    def _compute(self, attention: Any, inputs: Any, options: dict[str, Any], output: Any) -> None:
        query, key = (
            self._projections.pop(name).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for name in ("q_proj", "k_proj")
        )
        query, key = apply_rotary_pos_emb(query, key, *options["position_embeddings"])
        self.entropies = head_entropies(query[0], key[0], attention.scaling)


@contextmanager
def _observed_attention(meta_lm: MetaLM) -> Iterator[Sequence[_ObservedAttention]]:
    layers = [_ObservedAttention(layer.self_attn) for layer in meta_lm.decoder.model.layers]
    try:
        # Compiled blocks would not run the hooks.
        with meta_lm.run_eagerly():
            yield layers
    finally:
        for layer in layers:
            for handle in layer.handles:
                handle.remove()


def head_entropies(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Entropies of causal attention in nats.

    Args:
        query: [heads, T, head_dim].
        key: [kv_heads, T, head_dim]; each key head serves heads / kv_heads consecutive query heads.
        scaling: factor of the scores.
    Returns: fp64 [heads, T].
    """
    length, chunks = query.shape[1], []
    with torch.autocast(query.device.type, enabled=False):
        query, key = query.float(), key.float().repeat_interleave(len(query) // len(key), dim=0)
        for start in range(0, length, QUERY_CHUNK):
            stop = min(start + QUERY_CHUNK, length)
            scores = query[:, start:stop] @ key[:, :stop].mT * scaling
            future = torch.ones(stop - start, stop, dtype=torch.bool, device=key.device).triu(start + 1)
            attention = scores.masked_fill_(future, float("-inf")).softmax(dim=-1)
            chunks.append(torch.special.entr(attention).sum(dim=-1, dtype=torch.float64))
    return torch.cat(chunks, dim=1)
