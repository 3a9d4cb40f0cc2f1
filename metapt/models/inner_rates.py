"""The learned inner rates of Meta-SGD (Li et al. 2017): a multiplier of the inner rate for each adapted weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class _ZeroWithDerivative(torch.autograd.Function):
    """Zero, whose derivative with respect to the multiplier is `derivative`, elementwise."""

    @staticmethod
    def forward(ctx: Any, multiplier: Tensor, derivative: Tensor) -> Tensor:
        ctx.save_for_backward(derivative)
        return torch.zeros_like(derivative)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (derivative,) = ctx.saved_tensors
        return grad * derivative, None


class InnerRates(nn.Module):
    """Elementwise multipliers m of the inner rate, one tensor per adapted parameter, initialised to 1.

    Args:
        adapted: the parameters that the inner loop adapts, by name.
    """

    def __init__(self, adapted: Mapping[str, Tensor]):
        super().__init__()
        self._own_names = {name: name.replace(".", "/") for name in adapted}
        for name, own_name in self._own_names.items():
            self.register_parameter(own_name, nn.Parameter(torch.ones_like(adapted[name])))

    def own_names(self) -> dict[str, str]:
        """The name of each multiplier in this module, by the name of the adapted parameter."""
        return dict(self._own_names)

    def multipliers(self) -> dict[str, nn.Parameter]:
        """The multipliers by the name of the adapted parameter."""
        return {name: self.get_parameter(own_name) for name, own_name in self._own_names.items()}

    def forward(self, gradient_sums: Mapping[str, Tensor], rate: float) -> dict[str, Tensor]:
        """Zeros to add to phi_T, so that the query loss has its first-order derivative with respect to m.

        d phi_T / d m = -rate * sum_t grad L_S(phi_t), where the sums are held fixed.

        Args:
            gradient_sums: sum_t grad L_S(phi_t) by the name of the adapted parameter.
            rate: the inner rate alpha.
        """
        multipliers = self.multipliers()
        return {
            name: _ZeroWithDerivative.apply(multipliers[name], total * -rate)
            for name, total in gradient_sums.items()
        }
