"""First-order adaptation: plain SGD on per-task copies of parameters, and the way back to the originals.

The inner loop (Finn et al. 2017, equation 1; first-order variant, section 5.2)

    phi_0 = phi,    phi_t = phi_{t-1} - alpha * grad L_S(phi_{t-1})

works on copies through torch.autograd.grad, so it neither reads nor leaves anything in `.grad`, whoever
owns that. The outer gradient of a first-order episode is grad L_Q taken at phi_T and added to the gradient of
phi. `at_adapted` states just that: its value is phi_T, its derivative with respect to phi is the identity. A
single ordinary backward pass of the query loss then accumulates the right gradient under any engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Parameters = dict[str, Tensor]


def adapt(
    support_loss: Callable[[Parameters], Tensor],
    start: Mapping[str, Tensor],
    steps: int,
    rate: float,
) -> Parameters:
    """Adapted copies of parameters after `steps` SGD steps on the support loss.

    Args:
        support_loss: scalar loss as a function of the adapted parameters.
        start: the parameters phi by name; never written to.
        steps: number T of inner steps.
        rate: alpha.
    Returns: phi_T, detached.
    Raises:
        ValueError: a parameter is not fp32 (or finer); in bf16 a step of 1e-3 rounds away.
    """
    coarse = [name for name, value in start.items() if value.dtype not in (torch.float32, torch.float64)]
    if coarse:
        raise ValueError(f"inner updates need fp32 parameters; {coarse[0]} is {start[coarse[0]].dtype}")
    adapted = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
    values = list(adapted.values())
    for _ in range(steps):
        with torch.enable_grad():
            gradients = torch.autograd.grad(support_loss(adapted), values)
        with torch.no_grad():
            torch._foreach_sub_(values, gradients, alpha=rate)
        del gradients  # else they live beside the next step's
    return {name: value.detach() for name, value in adapted.items()}


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


class _WithZeroGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, *unused: Tensor) -> Tensor:
        ctx.unused = [(value.shape, value.dtype, value.device) for value in unused]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        zeros = (torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.unused)
        return grad, *zeros


def with_zero_gradients(loss: Tensor, unused: Sequence[Tensor]) -> Tensor:
    """The same loss, with gradient zero instead of none for parameters that it does not depend on.

    An optimizer that skips parameters without a gradient and one that sees a flat buffer of zeros (ZeRO) would
    otherwise decay moments and weights differently, and the stages would part.
    """
    return _WithZeroGradients.apply(loss, *unused) if unused else loss
