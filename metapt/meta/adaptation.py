"""The inner loop: SGD on per-task copies of parameters, and first-order outer gradients.

The inner loop (Finn et al. 2017, equation 1; first-order variant, section 5.2)

    phi_0 = phi,    phi_t = phi_{t-1} - alpha * grad L_S(phi_{t-1})

updates copies and takes gradients with respect to these alone, so that it neither reads nor changes the `.grad` of
the originals. Three algorithms turn its result into a gradient of the originals. Each is expressed as a tensor whose
ordinary backward pass accumulates that gradient, so that it works under any engine:

    fomaml     grad L_Q at phi_T is added to the gradient of phi. `straight_through` returns tensors with the value
               phi_T whose derivative with respect to phi is the identity.
    meta_sgd   As fomaml, with learned rates alpha * m, one m per weight (Li et al. 2017, algorithm 1). The
               first-order gradient of m is grad L_Q(phi_T) * (-alpha * sum_t grad L_S(phi_t)):
               metapt/models/inner_rates.py.
    reptile    (phi - phi_T) / (alpha * T), the mean inner gradient (Nichol et al. 2018, section 3), is the outer
               gradient: `attach_gradients`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

Parameters = dict[str, Tensor]
"""Parameters by name."""


@dataclass
class InnerLoopResult:
    """The result of an inner loop of T steps."""

    parameters: Parameters
    """phi_T by name, detached."""
    gradient_sums: Parameters
    """sum_t grad L_S(phi_t) by name; empty unless rates are learned."""


def adapt(
    support_loss: Callable[[Parameters], Tensor],
    initial: Mapping[str, Tensor],
    steps: int,
    rate: float,
    *,
    multipliers: Mapping[str, Tensor] | None = None,
    before_step: Callable[[Parameters], None] = lambda parameters: None,
) -> InnerLoopResult:
    """Adapt copies of parameters by SGD on the support loss.

    Args:
        support_loss: scalar loss as a function of the adapted parameters.
        initial: the parameters phi by name; they are not changed.
        steps: number T of inner steps.
        rate: the inner rate alpha.
        multipliers: multipliers m of the rate by name, if rates are learned (Meta-SGD).
        before_step: called with the copies before each inner step; may raise to leave the loop.
    Raises:
        ValueError: a parameter has less than fp32 precision, in which a step of 1e-3 rounds to nothing.
    """
    imprecise = [name for name, value in initial.items() if value.dtype not in (torch.float32, torch.float64)]
    if imprecise:
        raise ValueError(f"inner steps need fp32 parameters; {imprecise[0]} is {initial[imprecise[0]].dtype}")
    adapted = {name: value.detach().clone().requires_grad_() for name, value in initial.items()}
    sums = {} if multipliers is None else {name: torch.zeros_like(value) for name, value in adapted.items()}

    def update(value: Tensor, name: str) -> None:
        # Runs as soon as a gradient is complete and frees it: an inner step never holds all gradients at once.
        scales = None if multipliers is None else [multipliers[name].detach()]
        assert value.grad is not None
        sgd_step([value], [value.grad], rate, scales, [sums[name]] if sums else [])
        value.grad = None

    for name, value in adapted.items():
        value.register_post_accumulate_grad_hook(partial(update, name=name))
    values = list(adapted.values())
    for _ in range(steps):
        before_step(adapted)
        with torch.enable_grad():
            support_loss(adapted).backward(inputs=values)
    return InnerLoopResult({name: value.detach() for name, value in adapted.items()}, sums)


def adapt_with(
    inner_step: Callable[[Parameters], Parameters],
    initial: Mapping[str, Tensor],
    steps: int,
    *,
    before_step: Callable[[Parameters], None] = lambda parameters: None,
) -> InnerLoopResult:
    """Like `adapt`, with a given inner step, such as a compiled one (`EpisodeHead.inner_step`).

    Args:
        inner_step: phi_{t+1} as a function of phi_t, without learned rates.
        initial, steps, before_step: as in `adapt`.
    """
    torch.compiler.cudagraph_mark_step_begin()
    parameters = {name: value.detach() for name, value in initial.items()}
    for _ in range(steps):
        before_step(parameters)
        parameters = inner_step(parameters)
    # A CUDA graph writes its results to the same memory in each run, so that they must be copied.
    return InnerLoopResult({name: value.clone() for name, value in parameters.items()}, {})


def sgd_step(
    values: list[Tensor],
    gradients: list[Tensor] | tuple[Tensor, ...],
    rate: float,
    multipliers: list[Tensor] | None,
    gradient_sums: list[Tensor],
) -> None:
    """One inner step in place: values -= rate * multipliers * gradients.

    With multipliers, the gradients are added to `gradient_sums` as well.
    """
    if multipliers is None:
        torch._foreach_sub_(values, gradients, alpha=rate)
        return
    torch._foreach_add_(gradient_sums, gradients)
    torch._foreach_addcmul_(values, multipliers, gradients, value=-rate)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, original: Tensor, adapted: Tensor) -> Tensor:
        return adapted.detach()  # shares memory with `adapted`, which nothing writes to any more

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def straight_through(originals: Mapping[str, Tensor], adapted: Mapping[str, Tensor]) -> Parameters:
    """Tensors with the values of `adapted`, whose gradients go to `originals` unchanged."""
    return {name: _StraightThrough.apply(originals[name], adapted[name]) for name in adapted}


class _AttachGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: Sequence[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        ctx.layouts = [(value.shape, value.dtype, value.device) for value in parameters]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            torch.zeros(shape, dtype=dtype, device=device) if gradient is None else grad * gradient
            for gradient, (shape, dtype, device) in zip(ctx.gradients, ctx.layouts, strict=True)
        ]
        return grad, None, *scaled


def attach_gradients(
    loss: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None] | None = None
) -> Tensor:
    """The same loss, with given derivatives with respect to `parameters` in addition to its own.

    A zero gradient differs from no gradient. Optimizers skip a parameter without a gradient, but ZeRO sees a flat
    buffer that holds zeros there, so that moments and weights would decay differently at different ZeRO stages.

    Args:
        loss: scalar.
        parameters: tensors that require a gradient.
        gradients: one per parameter; None stands for zero.
    """
    if not parameters:
        return loss
    return _AttachGradients.apply(loss, gradients or [None] * len(parameters), *parameters)
