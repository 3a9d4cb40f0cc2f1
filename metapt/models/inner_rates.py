"""The learned inner rates of Meta-SGD (Li et al. 2017): one multiplier of the inner rate for each adapted parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class _Along(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, multiplier: Tensor, direction: Tensor) -> Tensor:
        ctx.save_for_backward(direction)
        return torch.zeros_like(direction)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (direction,) = ctx.saved_tensors
        return grad * direction, None


class InnerRates(nn.Module):
    """What Meta-SGD learns: for each adapted parameter a multiplier of the inner rate, elementwise, first 1."""

    def __init__(self, adapted: Mapping[str, Tensor]):
        super().__init__()
        self._names = {name: name.replace(".", "/") for name in adapted}
        for name, own in self._names.items():
            self.register_parameter(own, nn.Parameter(torch.ones_like(adapted[name])))

    def shard_names(self) -> dict[str, str]:
        """For each adapted parameter the name of its multiplier here."""
        return dict(self._names)

    def multipliers(self) -> dict[str, nn.Parameter]:
        """The multipliers by the names of the parameters that they belong to."""
        return {name: self.get_parameter(own) for name, own in self._names.items()}

    def forward(self, moved: Mapping[str, Tensor], rate: float) -> dict[str, Tensor]:
        """Zeros to add to phi_T, whose derivative with respect to m is that of phi_T: -rate * sum_t grad L_S(phi_t)."""
        own = self.multipliers()
        return {name: _Along.apply(own[name], total * -rate) for name, total in moved.items()}
