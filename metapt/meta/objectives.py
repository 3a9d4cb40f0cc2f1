"""The objective of next-token prediction with weighted terms, and what every objective gives the trainer.

An objective turns data into a loss whose ordinary backward pass accumulates the outer gradient. It knows nothing of
the engine or of ranks; the trainer calls `backward` on the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from metapt.meta.adaptation import attach_gradients
from metapt.meta.terms import Term, WordGroup
from metapt.models.meta_lm import MetaLM


@dataclass
class ObjectiveOutput:
    """A loss, and what is logged with it."""

    loss: Tensor
    """Scalar in nats; its backward pass accumulates the outer gradient."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars, or tensors [T + 1] over the inner steps 0..T, each a mean over its unit of work."""
    ratios: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Metrics whose number of observations varies from unit to unit: their sum, and that number."""
    after_backward: dict[str, Callable[[], tuple[Tensor, Tensor]]] = field(default_factory=dict)
    """Further `ratios`, which are known only after the backward pass of the loss."""


def next_token_objective(
    meta_lm: MetaLM,
    sequences: Tensor,
    terms: Mapping[str, tuple[float, Term]] | None = None,
    groups: Sequence[WordGroup] = (),
    step: int = 0,
) -> ObjectiveOutput:
    """Next-token prediction on sequences [n, T + 1], plus the weighted terms on its hidden states.

    Args:
        terms: weight and term, by name, of the terms that take part in this update.
        groups: labelled words of the sequences, in order.
        step: number of updates before this one, which keys the sampling of episodes.
    """
    hidden = meta_lm.hidden_states(sequences[:, :-1])
    taps = {name: GradientTap() for name in ("lm", *(terms or {}))} if terms else {}
    lm_loss = meta_lm.lm_loss_of(taps["lm"](hidden) if taps else hidden, sequences[:, 1:])
    output = ObjectiveOutput(lm_loss, {"lm_loss_nats": lm_loss.detach()})
    used = set(meta_lm.decoder.parameters())
    for name, (weight, term) in (terms or {}).items():
        found = term(taps[name](hidden).flatten(0, 1), groups, step)
        output.loss = output.loss + weight * found.loss
        output.ratios |= {f"{name}_{metric}": ratio for metric, ratio in found.metrics.items()}
        used |= set(term.parameters.parameters())
        output.after_backward[f"{name}_gradient_cosine"] = partial(taps["lm"].cosine, taps[name])
    output.loss = with_zero_gradients(output.loss, meta_lm, used)
    return output


class GradientTap:
    """Remembers the gradient that one loss sends to a tensor that several losses share."""

    def __init__(self) -> None:
        self.gradient: Tensor | None = None

    def __call__(self, shared: Tensor) -> Tensor:
        """The same values; the gradient of what is computed from them is remembered in the backward pass."""
        own = shared.view_as(shared)
        if own.requires_grad:
            own.register_hook(self._remember)
        return own

    def _remember(self, gradient: Tensor) -> None:
        self.gradient = gradient.detach()

    def cosine(self, other: GradientTap) -> tuple[Tensor, Tensor]:
        """Cosine of the two gradients as (sum, number of observations); no observation where one is zero."""
        assert self.gradient is not None
        assert other.gradient is not None
        one, two = (gradient.flatten().double() for gradient in (self.gradient, other.gradient))
        lengths = torch.linalg.vector_norm(one) * torch.linalg.vector_norm(two)
        observed = (lengths > 0).double()
        return observed * torch.dot(one, two) / lengths.clamp(min=torch.finfo(torch.float64).tiny), observed


def with_zero_gradients(loss: Tensor, meta_lm: MetaLM, used: AbstractSet[Tensor]) -> Tensor:
    """The loss, with a zero gradient for each parameter that is not used.

    Partitioned parameters need none, since their gradient buffer starts at zero (metapt/training/zero3.py).
    """
    if meta_lm.is_partitioned:
        return loss
    return attach_gradients(loss, [value for value in meta_lm.parameters() if value not in used])
