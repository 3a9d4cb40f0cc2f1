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

from metapt.config import MetaConfig
from metapt.data.episodes import Episode
from metapt.meta.adaptation import sgd_step
from metapt.meta.adapted_copies import initial_head
from metapt.meta.window_examples import ExampleBatch, example_batches
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


class ShardedAdaptation:
    """`metapt.meta.window_episodes.Adaptation` by shards of the parameters themselves, and a head that is made anew.

    The weights of such a head are whole on every rank, which all compute the same gradient of them. All ranks make the
    same calls, and see the logits of all rows.

    Args:
        backward: the engine's backward pass of a loss.
        weight: of the query loss in the update.
    """

    def __init__(
        self,
        shards: Shards,
        backward: Callable[[Tensor], None],
        weight: float,
        meta_lm: MetaLM,
        task: Episode,
        meta: MetaConfig,
    ):
        self.shards, self.backward, self.weight = shards, backward, weight
        self.meta_lm, self.meta, self.rate = meta_lm, meta, meta_lm.inner_rate(meta)
        self.support, self.query = example_batches(meta_lm, task, meta, _rows_of_rank)
        assert meta_lm.episode_head is not None
        self.made = list(meta_lm.episode_head.weights().values()) if meta_lm.episode_head.is_made_anew else []
        self.made_gradients: list[Tensor] = []
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
    def running(self) -> Iterator[None]:
        """A context that begins at phi_0, in which parameters may change; at its end they are as before."""
        with self.shards.borrowed_gradients():
            with self._made_head(), self.shards.restored_values(self.adapted):
                yield
            if self.made_gradients:
                self._backward_through_start()

    @contextmanager
    def _made_head(self) -> Iterator[None]:
        """A context in which the episode head has the weights that are made from the support set."""
        if self.made:
            with torch.no_grad():
                for weight, start in zip(self.made, self._start(), strict=True):
                    weight.copy_(start).requires_grad_()
        try:
            yield
        finally:
            for weight in self.made:
                weight.grad = None
                weight.requires_grad_(False).zero_()

    def _start(self) -> tuple[Tensor, Tensor]:
        """Weight [N, d] and bias [N] that are made from the support set."""
        head = initial_head(self.meta_lm, self._states(self.support), self.support)
        return head.weight[0], head.bias[0]

    def step(self) -> tuple[Tensor, Tensor]:
        """See `Adaptation`."""
        with torch.enable_grad():
            logits = self._logits(self.support)
            loss = cross_entropy(logits, self.support.labels)
            self.backward(loss)
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
        return loss.detach(), logits.detach()

    @torch.no_grad()
    def logits(self, examples: ExampleBatch) -> Tensor:
        """See `Adaptation`."""
        return self._logits(examples)

    def query_loss(self) -> tuple[Tensor, Tensor]:
        """See `Adaptation`; adds the outer gradient times `weight` to the gradient shards."""
        if self.meta.algorithm == "reptile":
            logits = self.logits(self.query)
            loss = cross_entropy(logits, self.query.labels)
            self._set_reptile_gradient()
        else:
            logits = self._logits(self.query)
            loss = cross_entropy(logits, self.query.labels)
            self.backward(loss * self.weight)
            self.made_gradients = [weight.grad.clone() for weight in self.made if weight.grad is not None]
            self._set_multiplier_gradient()
        return loss.detach(), logits.detach()

    def _set_reptile_gradient(self) -> None:
        """Set the gradient to weight * (phi - phi_T) / (alpha * T)."""
        scale = self.weight / (self.rate * self.meta.inner_steps)
        for shard in self.adapted:
            torch.sub(shard.master, shard.value, out=shard.gradient).mul_(scale)

    def _set_multiplier_gradient(self) -> None:
        """Meta-SGD: set the gradient of the multipliers, given the query gradient of the adapted parameters."""
        if self.multipliers:
            triples = zip(self.multipliers, self.gradient_sums, self.adapted, strict=True)
            for multiplier, gradient_sum, adapted in triples:
                torch.mul(gradient_sum, adapted.gradient, out=multiplier.gradient).mul_(-self.rate)

    def _backward_through_start(self) -> None:
        """Pass the query gradient of a head that is made anew on to what it is made from; parameters are those of phi_0."""
        parts = [
            (start * gradient).sum()
            for start, gradient in zip(self._start(), self.made_gradients, strict=True)
            if start.requires_grad
        ]
        if parts:
            self.backward(torch.stack(parts).sum())

    def _states(self, examples: ExampleBatch) -> Tensor:
        """Hidden states [n, d] of all rows, on every rank, centred and scaled if the examples ask for it."""
        states = _gathered(self.meta_lm, examples.windows, len(examples.labels))
        if examples.centre is None:
            return states
        with torch.no_grad():
            is_support = examples.centre is examples.windows
            support = states if is_support else _gathered(self.meta_lm, examples.centre, examples.centre_rows)
        return normalized_states(states, support.mean(dim=0).detach())

    def _logits(self, examples: ExampleBatch) -> Tensor:
        """Class logits [n, N] of all rows, on every rank."""
        assert self.meta_lm.episode_head is not None
        return self.meta_lm.episode_head(self._states(examples), columns=examples.columns)


@contextmanager
def sharded_adaptation(
    shards: Shards,
    backward: Callable[[Tensor], None],
    weight: float,
    meta_lm: MetaLM,
    task: Episode,
    meta: MetaConfig,
) -> Iterator[ShardedAdaptation]:
    """An episode with scope full or last_n that begins at phi_0, by all ranks together."""
    adaptation = ShardedAdaptation(shards, backward, weight, meta_lm, task, meta)
    with adaptation.running():
        yield adaptation
