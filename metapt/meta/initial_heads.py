"""Where the classifier of an episode on hidden states starts: zeros, prototypes, or rows that persist from update to update.

Modules with parameters take and return single tensors, as ZeRO 3 needs to gather parameters around their call.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from metapt.meta.state_episodes import LinearHead, StateExamples, prototypes, zero_head

INITIAL_SCALE = 8.0  # of prototype logits
MAX_SCALE = 20.0


class InitialHead(Protocol):
    """The classifiers phi_0 of K episodes, from their support examples.

    `parameters` is the module that holds what it learns.
    """

    @property
    def parameters(self) -> nn.Module: ...

    def __call__(self, support: StateExamples, n_way: int) -> LinearHead: ...


class ZeroHead:
    """W = 0, b = 0: the inner loop makes all of the classifier, and the outer gradient reaches the query states alone."""

    def __init__(self) -> None:
        self.parameters = nn.Module()

    def __call__(self, support: StateExamples, n_way: int) -> LinearHead:
        return zero_head(support, n_way)


class LearnedScale(nn.Module):
    """Multiplies by a learned factor of at most MAX_SCALE."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((1,), math.log(INITIAL_SCALE)))

    def forward(self, values: Tensor) -> Tensor:
        return values * self.log_scale.exp().clamp(max=MAX_SCALE)


class PrototypeHead:
    """Class means of the support states, with a learned scale; the outer gradient reaches support and query states."""

    def __init__(self) -> None:
        self.parameters = LearnedScale()

    def __call__(self, support: StateExamples, n_way: int) -> LinearHead:
        weight = self.parameters(prototypes(support, n_way))
        return LinearHead(weight, weight.new_zeros(weight.shape[:2]))


INITIAL_HEADS: dict[str, type[ZeroHead] | type[PrototypeHead]] = {
    "zero": ZeroHead,
    "prototypes": PrototypeHead,
}


class PersistentHeads(nn.Module):
    """One linear classifier over all classes of each partition, trained like any other parameter; zero at the start.

    Args:
        width: of a hidden state.
        classes: number of classes of all partitions together.
    """

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, width))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, states: Tensor) -> Tensor:
        """Class logits of all partitions side by side, [n, classes], of hidden states [n, d]."""
        return nn.functional.linear(states, self.weight, self.bias)
