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
from functools import partial
from typing import Any

import torch
from torch import Tensor

Parameters = dict[str, Tensor]
"""Parameters by name."""


class Copies:
    """Copies of parameters that are adapted by SGD on a support loss.

    Args:
        initial: the parameters phi by name; they are not changed.
        rate: the inner rate alpha.
        multipliers: multipliers m of the rate by name, if rates are learned (Meta-SGD).
    Raises:
        ValueError: a parameter has less than fp32 precision, in which a step of 1e-3 rounds to nothing.
    """

    def __init__(
        self, initial: Mapping[str, Tensor], rate: float, multipliers: Mapping[str, Tensor] | None = None
    ):
        for name, value in initial.items():
            if value.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"inner steps need fp32 parameters; {name} is {value.dtype}")
        self._values = {name: value.detach().clone().requires_grad_() for name, value in initial.items()}
        self.gradient_sums: Parameters = {name: torch.zeros_like(initial[name]) for name in multipliers or {}}
        """sum_t grad L_S(phi_t) by name; empty unless rates are learned."""
        for name, value in self._values.items():
            rates = ([multipliers[name].detach()], [self.gradient_sums[name]]) if multipliers else (None, [])
            value.register_post_accumulate_grad_hook(partial(_step_and_free, rate, *rates))

    def detached(self) -> Parameters:
        """phi_t by name, detached; they share memory with the copies."""
        return {name: value.detach() for name, value in self._values.items()}

    def step(self, support_loss: Callable[[Parameters], Tensor]) -> Tensor:
        """phi_{t+1} = phi_t - alpha * m * grad L_S(phi_t).

        Args:
            support_loss: scalar loss as a function of the adapted parameters.
        Returns: L_S(phi_t), detached.
        """
        with torch.enable_grad():
            loss = support_loss(self._values)
            loss.backward(inputs=list(self._values.values()))
        return loss.detach()


def _step_and_free(
    rate: float, multipliers: list[Tensor] | None, gradient_sums: list[Tensor], value: Tensor
) -> None:
    """An inner step of one parameter as soon as its gradient is complete, so that not all gradients are held at once."""
    assert value.grad is not None
    sgd_step([value], [value.grad], rate, multipliers, gradient_sums)
    value.grad = None


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
