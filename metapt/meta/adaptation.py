"""First-order adaptation: SGD on per-task copies of parameters, and the ways back to the originals.

The inner loop (Finn et al. 2017, equation 1; first-order variant, section 5.2)

    phi_0 = phi,    phi_t = phi_{t-1} - alpha * grad L_S(phi_{t-1})

works on copies and asks for gradients of these alone, so it neither reads nor leaves anything in the originals'
`.grad`, whoever owns that. Three algorithms turn it into a gradient of the originals; each is stated as a tensor whose plain backward
pass accumulates that gradient, under any engine:

    fomaml     grad L_Q at phi_T, added to the gradient of phi: `at_adapted` has the value phi_T and, with respect
               to phi, the derivative of the identity;
    meta_sgd   as fomaml, with learned rates alpha * m, one m per parameter (Li et al. 2017, algorithm 1), whose
               first-order gradient is grad L_Q(phi_T) * (-alpha * sum_t grad L_S(phi_t)): metapt/models/inner_rates.py;
    reptile    (phi - phi_T) / (alpha * T), the mean inner gradient (Nichol et al. 2018, section 3), which an
               outer Adam takes as gradient: `with_gradients`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

Parameters = dict[str, Tensor]


@dataclass
class Adapted:
    """Where the inner loop ended."""

    values: Parameters
    """phi_T by name, detached."""
    moved: Parameters
    """The sum over t of grad L_S(phi_t) by name; empty unless rates are learned."""


def adapt(
    support_loss: Callable[[Parameters], Tensor],
    start: Mapping[str, Tensor],
    steps: int,
    rate: float,
    *,
    multipliers: Mapping[str, Tensor] | None = None,
    before_step: Callable[[Parameters], None] = lambda values: None,
) -> Adapted:
    """Adapted copies of parameters after `steps` SGD steps on the support loss.

    Args:
        support_loss: scalar loss as a function of the adapted parameters.
        start: the parameters phi by name; never written to.
        steps: number T of inner steps.
        rate: alpha.
        multipliers: m by name, where rates are learned (Meta-SGD).
        before_step: called with the copies before each inner step; may raise to leave the loop.
    Raises:
        ValueError: a parameter is not fp32 (or finer); in bf16 a step of 1e-3 rounds away.
    """
    coarse = [name for name, value in start.items() if value.dtype not in (torch.float32, torch.float64)]
    if coarse:
        raise ValueError(f"inner updates need fp32 parameters; {coarse[0]} is {start[coarse[0]].dtype}")
    adapted = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
    moved = {} if multipliers is None else {name: torch.zeros_like(value) for name, value in adapted.items()}

    def move(value: Tensor, name: str) -> None:
        # As soon as its gradient is there, which then goes: the gradients of an inner step never live all at once.
        scales = None if multipliers is None else [multipliers[name].detach()]
        assert value.grad is not None
        descend([value], [value.grad], rate, scales, [moved[name]] if moved else [])
        value.grad = None

    for name, value in adapted.items():
        value.register_post_accumulate_grad_hook(partial(move, name=name))
    values = list(adapted.values())
    for _ in range(steps):
        before_step(adapted)
        with torch.enable_grad():
            support_loss(adapted).backward(inputs=values)
    return Adapted({name: value.detach() for name, value in adapted.items()}, moved)


def adapt_by(
    step: Callable[[Parameters], Parameters],
    start: Mapping[str, Tensor],
    steps: int,
    *,
    before_step: Callable[[Parameters], None] = lambda values: None,
) -> Adapted:
    """As `adapt`, with a function that makes phi_{t+1} of phi_t: a compiled one (`EpisodeHead.inner_step`), without learned rates."""
    torch.compiler.cudagraph_mark_step_begin()
    values = {name: value.detach() for name, value in start.items()}
    for _ in range(steps):
        before_step(values)
        values = step(values)
    # a CUDA graph writes its results to the same place each time it runs
    return Adapted({name: value.clone() for name, value in values.items()}, {})


def descend(
    values: list[Tensor],
    gradients: list[Tensor] | tuple[Tensor, ...],
    rate: float,
    scales: list[Tensor] | None,
    moved: list[Tensor],
) -> None:
    """One inner step in place: values -= rate * scales * gradients. With scales, gradients are added to `moved`."""
    if scales is None:
        torch._foreach_sub_(values, gradients, alpha=rate)
        return
    torch._foreach_add_(moved, gradients)
    torch._foreach_addcmul_(values, scales, gradients, value=-rate)


class _AtAdapted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, original: Tensor, adapted: Tensor) -> Tensor:
        return adapted.detach()  # the same memory: nobody writes to either

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def at_adapted(original: Mapping[str, Tensor], adapted: Mapping[str, Tensor]) -> Parameters:
    """Tensors with the values of `adapted` whose gradients go to `original`, unchanged."""
    return {name: _AtAdapted.apply(original[name], adapted[name]) for name in adapted}


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: Sequence[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        ctx.likes = [(value.shape, value.dtype, value.device) for value in parameters]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        given = zip(ctx.gradients, ctx.likes, strict=True)
        return (
            grad,
            None,
            *(
                torch.zeros(shape, dtype=dtype, device=device) if gradient is None else grad * gradient
                for gradient, (shape, dtype, device) in given
            ),
        )


def with_gradients(
    loss: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None] | None = None
) -> Tensor:
    """The same loss, whose derivative with respect to `parameters` is `gradients` in addition; None: zero.

    A gradient of zero is not no gradient: an optimizer that skips parameters without one and one that sees a flat
    buffer of zeros (ZeRO) would decay moments and weights differently, and the stages would part.
    """
    if not parameters:
        return loss
    return _WithGradients.apply(loss, gradients or [None] * len(parameters), *parameters)
