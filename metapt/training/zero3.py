"""Episodes at ZeRO stage 3, where no rank holds the parameters: all ranks work on each task together.

The rows of the support and query sets are split over the ranks; DeepSpeed gathers each module's parameters for
its call and averages gradients into shards. Then every rank adapts its own shards in place, which needs no
adapted copy at all, since the fp32 tensors that AdamW updates are kept apart from them and restore them afterwards.
The states of all rows are shared before the head, so that the loss, the head's gradient and its dropout masks
are those of one rank.

The buffer of gradient shards is held by hand: it is zero at the start of an update, DeepSpeed always adds to it,
and the inner loop borrows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.functional import cross_entropy

from metapt import randomness
from metapt.config import MetaConfig
from metapt.data.episodes import Episode
from metapt.meta.adaptation import descend
from metapt.meta.objectives import Side, Trace, curves, without_dropout
from metapt.models.meta_lm import MetaLM
from metapt.training.sharded_state import Fragment

SETTINGS = {
    # every parameter is partitioned, gathered when its module is called and not before: shards change in between
    "stage3_param_persistence_threshold": 0,
    "stage3_prefetch_bucket_size": 0,
}


@dataclass(frozen=True)
class Shard:
    """This rank's part of a parameter, flat and padded: its value, its gradient, and AdamW's copy of it."""

    value: Tensor
    gradient: Tensor
    kept: Tensor


class Shards:
    """The shards of parameters, given by name, under DeepSpeed's stage 3 optimizer."""

    def __init__(self, parameters: Mapping[str, Any], optimizer: Any, places: Mapping[str, Fragment]):
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
                self._gradients.narrow(0, offsets[id(value)], places[name].width),
                places[name].owner.detach().narrow(0, places[name].offset, places[name].width),
            )
            for name, value in parameters.items()
        }

    def accumulate(self) -> None:
        """Call it before a backward pass: its gradients are added to those that are there."""
        self._optimizer.clear_backward_seen_flag()
        self._optimizer.micro_step_id = (
            1  # at 0 DeepSpeed overwrites, and leaves what is not in the graph as it was
        )

    def clear(self) -> None:
        """The gradient is zero."""
        self._gradients.zero_()

    @contextmanager
    def borrowed_gradients(self) -> Iterator[None]:
        """Within it the gradient starts at zero; afterwards what was there before is added to it."""
        before = self._gradients.clone()
        self.clear()
        yield
        self._gradients.add_(before)

    @contextmanager
    def adapting(self, shards: Sequence[Shard]) -> Iterator[None]:
        """Within it the values of these shards may be changed; afterwards they are as before."""
        try:
            yield
        finally:
            self.release()
            torch._foreach_copy_([shard.value for shard in shards], [shard.kept for shard in shards])

    def release(self) -> None:
        """No parameter is whole any more: a change of shards is seen by the next call of each module."""
        self._optimizer._partition_all_parameters()


Rows = TypeVar("Rows", np.ndarray, Tensor)


class _AllRows(torch.autograd.Function):
    """Rows of all ranks in order, [n / ranks, d] to [n, d]. Each rank goes on to the same loss."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered = rows.new_empty((len(rows) * dist.get_world_size(), *rows.shape[1:]))
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # DeepSpeed averages over ranks, and each contributes its own rows only: hence the factor
        return _own_rows(grad) * dist.get_world_size()


def _own_rows(rows: Rows) -> Rows:
    share = len(rows) // dist.get_world_size()
    return rows[dist.get_rank() * share : (dist.get_rank() + 1) * share]


def _logits(meta_lm: MetaLM, side: Side) -> Tensor:
    """Class logits of all rows, on every rank."""
    assert meta_lm.head is not None
    return meta_lm.head(_AllRows.apply(meta_lm.states_read(side.windows)))


class _Task:
    """The parameters that a task adapts, as shards, and one inner step on them."""

    def __init__(self, shards: Shards, meta_lm: MetaLM, meta: MetaConfig):
        self.shards, self.meta = shards, meta
        names = list(meta_lm.adaptable(meta))
        self.adapted = [shards.by_name[name] for name in names]
        multipliers = meta_lm.rates.shard_names() if meta_lm.rates else {}
        self.rates = [shards.by_name[f"rates.{multipliers[name]}"] for name in names] if multipliers else []
        self.moved = [torch.zeros_like(shard.value) for shard in self.adapted] if self.rates else []

    def descend(self) -> None:
        """An inner step along the gradient that a backward pass has left, which is cleared."""
        self.shards.release()
        values = [shard.value for shard in self.adapted]
        gradients = [shard.gradient for shard in self.adapted]
        scales = [shard.value for shard in self.rates] if self.rates else None
        descend(values, gradients, self.meta.inner_lr, scales, self.moved)
        self.shards.clear()

    def move_for_gradient(self, share: float) -> None:
        """Reptile: the gradient is `share` of what the inner loop has moved, per inner step and rate."""
        scale = share / (self.meta.inner_lr * self.meta.inner_steps)
        for shard in self.adapted:
            torch.sub(shard.kept, shard.value, out=shard.gradient).mul_(scale)

    def gradient_of_rates(self) -> None:
        """Meta-SGD: what follows for the multipliers from the query gradient of the adapted parameters."""
        if self.rates:
            for rate, moved, shard in zip(self.rates, self.moved, self.adapted, strict=True):
                torch.mul(moved, shard.gradient, out=rate.gradient).mul_(-self.meta.inner_lr)


def episode_together(
    shards: Shards,
    meta_lm: MetaLM,
    backward: Callable[[Tensor], None],
    task: Episode,
    meta: MetaConfig,
    seed: int,
    step: int,
    number: int,
    poll: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """A first-order episode of scope full or last_n, as `metapt.meta.objectives.episode`, by all ranks.

    Its outer gradient, divided by `meta.tasks_per_step`, is added to the shards' gradient; the values are as before.

    Args:
        backward: the engine's backward pass of a loss.
        poll: called before each inner step; may raise to leave the episode.
    Returns: what is logged of it, the same on every rank.
    """
    support, query = (Side.of(examples, meta_lm, _own_rows) for examples in (task.support, task.query))
    work, trace, share = _Task(shards, meta_lm, meta), Trace(), 1 / meta.tasks_per_step
    with (
        randomness.torch_seed(seed, "episode dropout", step, number),
        shards.borrowed_gradients(),
        shards.adapting(work.adapted),
    ):
        for _ in range(meta.inner_steps):
            poll()
            backward(trace.record(_logits(meta_lm, support), support.labels))
            work.descend()
        with torch.no_grad():
            trace.record(_logits(meta_lm, support), support.labels)
        with torch.set_grad_enabled(meta.algorithm != "reptile"):
            logits = _logits(meta_lm, query)
            loss = cross_entropy(logits, query.labels)
        if meta.algorithm == "reptile":
            work.move_for_gradient(share)
        else:
            backward(loss * share)
        work.gradient_of_rates()
    return trace.measures(support, query, loss, logits)


def probe_together(
    shards: Shards,
    meta_lm: MetaLM,
    backward: Callable[[Tensor], None],
    task: Episode,
    meta: MetaConfig,
    poll: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """`metapt.meta.objectives.probe` by all ranks; between updates, when no gradient is there to be kept."""
    assert meta_lm.head is not None
    sides = {name: Side.of(getattr(task, name), meta_lm, _own_rows) for name in ("support", "query")}
    traces, work = {name: Trace() for name in sides}, _Task(shards, meta_lm, meta)

    def record(name: str) -> Tensor:
        return traces[name].record(_logits(meta_lm, sides[name]), sides[name].labels)

    with without_dropout(meta_lm.head), shards.adapting(work.adapted):
        for _ in range(meta.inner_steps):
            poll()
            with torch.no_grad():
                record("query")
            backward(record("support"))
            work.descend()
        with torch.no_grad():
            record("support")
            record("query")
    return curves(traces)
