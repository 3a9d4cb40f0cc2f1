"""What pretraining does to the model, measured every `train.dynamics_every` updates; nothing of it touches training.

- The proportional effective rank of a weight matrix, exp(H(s / sum s)) / rank_max, H the Shannon entropy of the
  normalised singular values s: 1 where all directions count alike, 1 / rank_max where one is all.
- The entropy of each attention head, on the first held-out sequences.
- An episode that is never trained on and always the same, the probe: support and query figures at every inner step.

The norms of the gradient by part of the model stand in the line of the update at which is measured
(`Engine.gradient_norms`). Every rank takes part; the values do not depend on their number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from metapt.config import PretrainConfig, ranks_share_episodes
from metapt.data.episodes import Episode, EpisodeSampler
from metapt.meta.objectives import probe
from metapt.models.meta_lm import MetaLM
from metapt.training.engine import Engine
from metapt.training.zero3 import probe_together

MATRICES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
ATTENTION_SEQUENCES = 4
QUERIES_AT_ONCE = 256
PROBE_STEP = -1  # episodes of training have steps from 0


class Dynamics:
    """The measurements of one run.

    Args:
        eval_rows: tokens [n, T + 1] of the held-out split.
        sampler: of episodes; None in a run without.
        poll: called equally often on all ranks while measuring; may raise to break it off.
    """

    def __init__(
        self,
        engine: Engine,
        config: PretrainConfig,
        eval_rows: Tensor,
        sampler: EpisodeSampler | None,
        poll: Callable[[], None] = lambda: None,
    ):
        self.engine, self.config, self.poll = engine, config, poll
        self.sequences = eval_rows[:ATTENTION_SEQUENCES, :-1].to(engine.device)
        self.probe_task = sampler.episode(PROBE_STEP, 0) if sampler and config.train.dynamics_every else None

    def is_due(self, done: int) -> bool:
        """Whether to measure after `done` updates: every so many, and at both ends."""
        every = self.config.train.dynamics_every
        return every > 0 and (done % every == 0 or done == self.config.train.max_steps)

    def measure(self) -> dict[str, Any]:
        """The values of one line of kind `dynamics` (docs/design.md); a function of the weights alone."""
        started = time.perf_counter()
        values: dict[str, Any] = {"effective_rank": self._effective_ranks()}
        values |= attention_entropy(self.engine.meta_lm, self.sequences)
        if self.probe_task is not None:
            values |= {
                f"probe_{name}": curve.tolist() for name, curve in self._probe(self.probe_task).items()
            }
        return {**values, "seconds": time.perf_counter() - started}

    def _probe(self, task: Episode) -> dict[str, Tensor]:
        engine, meta = self.engine, self.config.meta
        if engine.shards and ranks_share_episodes(self.config):
            backward = partial(engine.backward, last=False)
            return probe_together(engine.shards, engine.meta_lm, backward, task, meta, self.poll)
        return probe(engine.meta_lm, task, meta, self.poll)

    def _effective_ranks(self) -> dict[str, list[float]]:
        """By kind of matrix, one for each block. The matrices are dealt to the ranks, one each in a round."""
        engine, blocks = self.engine, self.config.model.num_layers
        parameters = dict(engine.meta_lm.named_parameters())
        names = [
            f"decoder.model.layers.{block}.{path}.weight"
            for path in MATRICES.values()
            for block in range(blocks)
        ]
        ranks = torch.zeros(len(names), dtype=torch.float64)
        for first in range(0, len(names), engine.world_size):
            self.poll()
            mine = None
            for number, name in enumerate(names[first : first + engine.world_size]):
                with engine.meta_lm.whole({name: parameters[name]}):
                    if number == engine.rank:
                        mine = parameters[name].detach().clone()
            if mine is not None:
                ranks[first + engine.rank] = effective_rank(mine)
        summed = engine.mean(ranks) * engine.world_size
        return dict(zip(MATRICES, summed.view(len(MATRICES), blocks).tolist(), strict=True))


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values of a matrix [m, n], ascending, fp64 [min(m, n)].

    Roots of the eigenvalues of the smaller Gram matrix, many times faster than a singular value decomposition.
    In fp64 only those below 1e-8 of the largest are lost in rounding, and an entropy does not see them.
    """
    wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().T
    return torch.linalg.eigvalsh(wide @ wide.T).clamp(min=0).sqrt()


def effective_rank(matrix: Tensor) -> float:
    """Proportional effective rank of a matrix [m, n]: exp(H(s / sum s)) / min(m, n), in (0, 1]; 0 for the zero matrix.

    NaN if a weight is not finite (no eigenvalues are found then).
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
    """Names of all parameters by part of the model: embedding, block_0 .., output_layer (with the last norm), episode_head,
    inner_rates."""
    groups: dict[str, list[str]] = {}
    for name, _ in meta_lm.named_parameters():
        if name.startswith("head."):
            group = "episode_head"
        elif name.startswith("rates."):
            group = "inner_rates"
        elif name.startswith("decoder.model.embed_tokens."):
            group = "embedding"
        elif name.startswith("decoder.model.layers."):
            group = f"block_{name.split('.')[3]}"
        else:
            group = "output_layer"
        groups.setdefault(group, []).append(name)
    return groups


def attention_entropy(meta_lm: MetaLM, sequences: Tensor) -> dict[str, list[list[float]]]:
    """Entropy of the attention of each head over the keys that a query sees, by block and head.

    Args:
        sequences: tokens [n, T]; they go through the decoder one at a time.
    Returns: `attention_entropy_nats`, the mean over queries, and `attention_entropy_ratio`, the mean over queries that
        see more than one key of the entropy as a share of that of uniform attention, log(keys).
    """
    with _observed(meta_lm) as heads, torch.no_grad():
        found = []
        for sequence in sequences:
            meta_lm.states(sequence[None])
            found.append(torch.stack([observed.entropies for observed in heads]))
    entropies = torch.stack(found).mean(dim=0)  # [blocks, heads, queries]
    keys = torch.arange(1, entropies.shape[-1] + 1, device=entropies.device)
    shares = entropies[..., 1:] / keys[1:].log()
    return {
        "attention_entropy_nats": entropies.mean(dim=-1).tolist(),
        "attention_entropy_ratio": shares.mean(dim=-1).tolist(),
    }


class _ObservedHeads:
    """Computes the entropies of an attention module's heads beside it, from what its projections give.

    The module itself runs as ever (its fused kernels give no weights), and at ZeRO stage 3 no weight is used
    out of turn.
    """

    def __init__(self, attention: nn.Module):
        self.entropies: Tensor = torch.empty(0)
        self._projected: dict[str, Tensor] = {}
        self.handles = [attention.register_forward_hook(self._compute, with_kwargs=True)]
        for name in ("q_proj", "k_proj"):
            self.handles.append(getattr(attention, name).register_forward_hook(self._keeper(name)))

    def _keeper(self, name: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._projected[name] = output

        return keep

    def _compute(self, attention: Any, inputs: Any, named: dict[str, Any], output: Any) -> None:
        query, key = (
            self._projected.pop(name).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for name in ("q_proj", "k_proj")
        )
        query, key = apply_rotary_pos_emb(query, key, *named["position_embeddings"])
        self.entropies = head_entropies(query[0], key[0], attention.scaling)


@contextmanager
def _observed(meta_lm: MetaLM) -> Iterator[Sequence[_ObservedHeads]]:
    heads = [_ObservedHeads(layer.self_attn) for layer in meta_lm.decoder.model.layers]
    try:
        # compiled blocks would pass the hooks over
        with torch.compiler.set_stance("force_eager") if meta_lm.compiled else nullcontext():
            yield heads
    finally:
        for handle in [handle for observed in heads for handle in observed.handles]:
            handle.remove()


def head_entropies(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Entropies of causal attention, nats, fp64 [heads, T].

    Args:
        query: [heads, T, head_dim]; key: [kv_heads, T, head_dim], each shared by heads / kv_heads heads in turn.
    """
    length, parts = query.shape[1], []
    with torch.autocast(query.device.type, enabled=False):
        query, key = query.float(), key.float().repeat_interleave(len(query) // len(key), dim=0)
        for start in range(0, length, QUERIES_AT_ONCE):
            stop = min(start + QUERIES_AT_ONCE, length)
            scores = query[:, start:stop] @ key[:, :stop].mT * scaling
            hidden = torch.ones(stop - start, stop, dtype=torch.bool, device=key.device).triu(start + 1)
            attention = scores.masked_fill_(hidden, float("-inf")).softmax(dim=-1)
            parts.append(torch.special.entr(attention).sum(dim=-1, dtype=torch.float64))
    return torch.cat(parts, dim=1)
