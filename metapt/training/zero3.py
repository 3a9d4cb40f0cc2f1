"""Episodes at ZeRO stage 3, where no rank holds whole parameters: all ranks process each episode together.

The rows of the support and query sets are split over the ranks. DeepSpeed gathers the parameters of each module when
it is called, and averages gradients into shards. Each rank adapts its own shards in place. No adapted copy is needed,
since the fp32 tensors that AdamW updates are separate and restore the shards afterwards. Hidden states of all rows
are gathered before the episode head, so that the loss, the head's gradient and its dropout masks equal those of one
rank.

This module manages the buffer of gradient shards itself: it is zero at the start of an update, DeepSpeed always adds
to it, and the inner loop borrows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.functional import cross_entropy

from metapt import randomness
from metapt.config import MetaConfig
from metapt.data.episodes import Episode
from metapt.meta.adaptation import sgd_step
from metapt.meta.window_episodes import (
    SIDES,
    AdaptationCurve,
    ExampleBatch,
    example_batches,
    initial_head,
    probe_metrics,
    without_dropout,
)
from metapt.models.episode_head import normalized_states
from metapt.models.meta_lm import MetaLM
from metapt.models.packed_windows import PackedWindows
from metapt.training.sharded_state import Fragment

SETTINGS = {
    # All parameters are partitioned and are gathered only when their module is called: shards change in between.
    "stage3_param_persistence_threshold": 0,
    "stage3_prefetch_bucket_size": 0,
}


@dataclass(frozen=True)
class Shard:
    """This rank's part of a parameter, flat and padded."""

    value: Tensor
    gradient: Tensor
    master: Tensor
    """The fp32 copy that AdamW updates."""


class Shards:
    """The shards of all parameters under DeepSpeed's stage 3 optimizer.

    Args:
        parameters: by name.
        optimizer: DeepSpeed's.
        fragments: this rank's fragment of each parameter, by name.
    """

    def __init__(self, parameters: Mapping[str, Any], optimizer: Any, fragments: Mapping[str, Fragment]):
        self._optimizer = optimizer
        self._gradients: Tensor = optimizer.grad_partitions_flat_buffer
        offsets = {}
        offset = 0
        for value in (value for group in optimizer.fp16_groups for value in group):
            offsets[id(value)] = offset
            offset += value.partition_numel()
        self.by_name = {
            name: Shard(
                value.ds_tensor,
                self._gradients.narrow(0, offsets[id(value)], fragments[name].padded_numel),
                fragments[name]
                .owner.detach()
                .narrow(0, fragments[name].offset, fragments[name].padded_numel),
            )
            for name, value in parameters.items()
        }

    def accumulate(self) -> None:
        """Make the next backward pass add to the gradients; must be called before each."""
        self._optimizer.clear_backward_seen_flag()
        # At micro step 0 DeepSpeed overwrites gradients, and keeps old ones of parameters outside the graph.
        self._optimizer.micro_step_id = 1

    def zero_gradients(self) -> None:
        self._gradients.zero_()

    @contextmanager
    def borrowed_gradients(self) -> Iterator[None]:
        """A context in which gradients start at zero; at its end the previous gradients are added."""
        before = self._gradients.clone()
        self.zero_gradients()
        yield
        self._gradients.add_(before)

    @contextmanager
    def restored_values(self, shards: Sequence[Shard]) -> Iterator[None]:
        """A context in which the values of these shards may change; they are restored at its end."""
        try:
            yield
        finally:
            self.release()
            torch._foreach_copy_([shard.value for shard in shards], [shard.master for shard in shards])

    def release(self) -> None:
        """Free all gathered parameters, so that the next call of each module sees changed shards."""
        self._optimizer._partition_all_parameters()


class _GatherRows(torch.autograd.Function):
    """Gather the rows of all ranks in rank order, [n / ranks, d] to [n, d]; all ranks compute the same loss."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered = rows.new_empty((len(rows) * dist.get_world_size(), *rows.shape[1:]))
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # DeepSpeed averages over ranks, and each rank contributes only its own rows: hence the factor.
        return grad.chunk(dist.get_world_size())[dist.get_rank()] * dist.get_world_size()


def _rows_of_rank(rows: np.ndarray) -> np.ndarray:
    """The rows that this rank processes, equally many on all ranks: the last ranks repeat the last row if need be."""
    count = -(-len(rows) // dist.get_world_size())
    own = np.arange(dist.get_rank() * count, (dist.get_rank() + 1) * count)
    return rows[own.clip(max=len(rows) - 1)]


def _gathered(meta_lm: MetaLM, windows: PackedWindows, count: int) -> Tensor:
    """Hidden states [count, d] of the rows of all ranks, without those that `_rows_of_rank` repeats."""
    states: Tensor = _GatherRows.apply(meta_lm.prediction_states(windows))
    return states[:count]


def _states(meta_lm: MetaLM, batch: ExampleBatch) -> Tensor:
    """Hidden states [n, d] of all rows, on every rank, centred and scaled if the batch asks for it."""
    states = _gathered(meta_lm, batch.windows, len(batch.labels))
    if batch.centre is None:
        return states
    with torch.no_grad():
        is_support = batch.centre is batch.windows
        support = states if is_support else _gathered(meta_lm, batch.centre, batch.centre_rows)
    return normalized_states(states, support.mean(dim=0).detach())


def _logits(meta_lm: MetaLM, batch: ExampleBatch) -> Tensor:
    """Class logits [n, N] of all rows, on every rank."""
    assert meta_lm.episode_head is not None
    return meta_lm.episode_head(_states(meta_lm, batch), columns=batch.columns)


class _InnerLoop:
    """What the inner loop adapts, its steps, and the outer gradient: shards of parameters, and a head that is made anew.

    The weights of such a head are whole on every rank, which all compute the same gradient of them.
    """

    def __init__(self, shards: Shards, meta_lm: MetaLM, meta: MetaConfig):
        self.shards, self.meta_lm, self.meta = shards, meta_lm, meta
        self.rate = meta_lm.inner_rate(meta)
        assert meta_lm.episode_head is not None
        self.made = list(meta_lm.episode_head.weights().values()) if meta_lm.episode_head.is_made_anew else []
        parameters = meta_lm.inner_loop_parameters(meta)
        names = [name for name, value in parameters.items() if isinstance(value, nn.Parameter)]
        self.adapted = [shards.by_name[name] for name in names]
        self.multipliers: list[Shard] = []
        self.gradient_sums: list[Tensor] = []
        if meta_lm.inner_rates:
            own_names = meta_lm.inner_rates.own_names()
            self.multipliers = [shards.by_name[f"inner_rates.{own_names[name]}"] for name in names]
            self.gradient_sums = [torch.zeros_like(shard.value) for shard in self.adapted]

    @contextmanager
    def running(self, support: ExampleBatch) -> Iterator[None]:
        """A context that begins at phi_0, in which values may change; at its end parameters are as before."""
        if self.made:
            with torch.no_grad():
                head = initial_head(self.meta_lm, _states(self.meta_lm, support), support)
                for weight, start in zip(self.made, (head.weight[0], head.bias[0]), strict=True):
                    weight.copy_(start).requires_grad_()
        try:
            with self.shards.restored_values(self.adapted):
                yield
        finally:
            for weight in self.made:
                weight.grad = None
                weight.requires_grad_(False).zero_()

    def step(self) -> None:
        """One inner step along the gradient of the last backward pass, which is then set to zero."""
        self.shards.release()
        values = [shard.value for shard in self.adapted]
        gradients = [shard.gradient for shard in self.adapted]
        multipliers = [shard.value for shard in self.multipliers] if self.multipliers else None
        sgd_step(values, gradients, self.rate, multipliers, self.gradient_sums)
        self.shards.zero_gradients()
        with torch.no_grad():
            for weight in self.made:
                assert weight.grad is not None
                weight.sub_(weight.grad, alpha=self.rate)
                weight.grad = None

    def set_reptile_gradient(self, weight: float) -> None:
        """Reptile: set the gradient to weight * (phi - phi_T) / (alpha * T)."""
        scale = weight / (self.rate * self.meta.inner_steps)
        for shard in self.adapted:
            torch.sub(shard.master, shard.value, out=shard.gradient).mul_(scale)

    def set_multiplier_gradient(self) -> None:
        """Meta-SGD: set the gradient of the multipliers, given the query gradient of the adapted parameters."""
        if self.multipliers:
            triples = zip(self.multipliers, self.gradient_sums, self.adapted, strict=True)
            for multiplier, gradient_sum, adapted in triples:
                torch.mul(gradient_sum, adapted.gradient, out=multiplier.gradient).mul_(-self.rate)

    def gradients_of_made(self) -> list[Tensor]:
        """The query gradient of a head that is made anew; empty without one."""
        return [weight.grad.clone() for weight in self.made if weight.grad is not None]


def _backward_through_start(
    meta_lm: MetaLM, backward: Callable[[Tensor], None], support: ExampleBatch, gradients: Sequence[Tensor]
) -> None:
    """Pass the query gradient of a head that is made anew on to what it is made from; parameters are those of phi_0."""
    head = initial_head(meta_lm, _states(meta_lm, support), support)
    made = [start[0] for start in (head.weight, head.bias)]
    parts = [
        (start * gradient).sum()
        for start, gradient in zip(made, gradients, strict=True)
        if start.requires_grad
    ]
    if parts:
        backward(torch.stack(parts).sum())


def sharded_episode(
    shards: Shards,
    meta_lm: MetaLM,
    backward: Callable[[Tensor], None],
    task: Episode,
    meta: MetaConfig,
    seed: int,
    step: int,
    index: int,
    weight: float,
    check_stop: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """`metapt.meta.window_episodes.episode_objective` with scope full or last_n, by all ranks together.

    Adds the outer gradient, times `weight`, to the gradient shards; parameters are unchanged.

    Args:
        backward: the engine's backward pass of a loss.
        check_stop: called before each inner step; may raise to leave the episode.
    Returns: what is logged of the episode, the same on every rank.
    """
    support, query = example_batches(meta_lm, task, meta, _rows_of_rank)
    inner_loop, curve = _InnerLoop(shards, meta_lm, meta), AdaptationCurve()
    made_gradients: list[Tensor] = []
    with randomness.torch_seed(seed, "episode dropout", step, index), shards.borrowed_gradients():
        with inner_loop.running(support):
            for _ in range(meta.inner_steps):
                check_stop()
                backward(curve.record(_logits(meta_lm, support), support.labels))
                inner_loop.step()
            with torch.no_grad():
                curve.record(_logits(meta_lm, support), support.labels)
            with torch.set_grad_enabled(meta.algorithm != "reptile"):
                logits = _logits(meta_lm, query)
                loss = cross_entropy(logits, query.labels)
            if meta.algorithm == "reptile":
                inner_loop.set_reptile_gradient(weight)
            else:
                backward(loss * weight)
                made_gradients = inner_loop.gradients_of_made()
            inner_loop.set_multiplier_gradient()
        if made_gradients:
            _backward_through_start(meta_lm, backward, support, made_gradients)
    return curve.episode_metrics(support, query, loss, logits)


def sharded_probe(
    shards: Shards,
    meta_lm: MetaLM,
    backward: Callable[[Tensor], None],
    task: Episode,
    meta: MetaConfig,
    check_stop: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """`metapt.meta.window_episodes.probe` by all ranks together.

    It overwrites the gradient shards, so that it must be called between updates.
    """
    assert meta_lm.episode_head is not None
    batches = dict(zip(SIDES, example_batches(meta_lm, task, meta, _rows_of_rank), strict=True))
    curves = {name: AdaptationCurve() for name in batches}
    inner_loop = _InnerLoop(shards, meta_lm, meta)

    def record(name: str) -> Tensor:
        return curves[name].record(_logits(meta_lm, batches[name]), batches[name].labels)

    with without_dropout(meta_lm.episode_head), inner_loop.running(batches["support"]):
        for _ in range(meta.inner_steps):
            check_stop()
            with torch.no_grad():
                record("query")
            backward(record("support"))
            inner_loop.step()
        with torch.no_grad():
            record("support")
            record("query")
    return probe_metrics(curves)
