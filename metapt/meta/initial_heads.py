"""Where the classifier of an episode starts: zeros, prototypes, or rows that are trained from update to update.

Parameters belong to small modules that take and return single tensors, as ZeRO 3 needs to gather parameters around their call.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metapt.meta.state_episodes import LinearHead, StateExamples, prototypes, zero_head

INITIAL_SCALE = 8.0  # of prototype logits
MAX_SCALE = 20.0


@dataclass(frozen=True)
class HeadShape:
    """What a classifier is made for. width: of a hidden state; ways: largest number of classes of an episode; classes: of the task."""

    width: int
    ways: int
    classes: int


class InitialHead(nn.Module, ABC):
    """The classifiers phi_0 of K episodes.

    Args:
        shape: of the classifiers.
    """

    def __init__(self, shape: HeadShape):
        super().__init__()
        self.ways = shape.ways

    @abstractmethod
    def start(self, support: StateExamples, classes: Tensor) -> LinearHead:
        """phi_0 of each episode.

        Args:
            support: support states of K episodes.
            classes: int64 [K, N], the class of each label among those of the task; any class where there is no label.
        """


class ZeroHead(InitialHead):
    """W = 0, b = 0: the inner loop makes all of the classifier, and the outer gradient reaches the query states alone."""

    def start(self, support: StateExamples, classes: Tensor) -> LinearHead:
        return zero_head(support, self.ways)


class PrototypeHead(InitialHead):
    """Class means of the support states, with a learned scale; the outer gradient reaches support and query states."""

    def __init__(self, shape: HeadShape):
        super().__init__(shape)
        self.scale = LearnedScale()

    def start(self, support: StateExamples, classes: Tensor) -> LinearHead:
        weight = self.scale(prototypes(support, self.ways))
        return LinearHead(weight, weight.new_zeros(weight.shape[:2]))


class LearnedHead(InitialHead):
    """A trained row for each label: since labels are numbered at random, all rows learn from all classes."""

    def __init__(self, shape: HeadShape):
        super().__init__(shape)
        self.rows = Rows(shape.ways, shape.width)

    def start(self, support: StateExamples, classes: Tensor) -> LinearHead:
        return _head_of(self.rows(torch.arange(self.ways, device=classes.device).expand_as(classes)))


class PersistentHead(InitialHead):
    """A trained row for each class of the task: a class has the same row in all episodes."""

    def __init__(self, shape: HeadShape):
        super().__init__(shape)
        self.rows = Rows(shape.classes, shape.width)

    def start(self, support: StateExamples, classes: Tensor) -> LinearHead:
        return _head_of(self.rows(classes))


class LearnedScale(nn.Module):
    """Multiplies by a learned factor of at most MAX_SCALE."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((1,), math.log(INITIAL_SCALE)))

    def forward(self, values: Tensor) -> Tensor:
        return values * self.log_scale.exp().clamp(max=MAX_SCALE)


class Rows(nn.Module):
    """Linear classifiers of single classes, by number; zero at the start."""

    def __init__(self, count: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count, width))
        self.bias = nn.Parameter(torch.zeros(count))

    def forward(self, numbers: Tensor) -> Tensor:
        """Weights and bias [..., d + 1] of the rows with these numbers, int64 [...]."""
        return torch.cat([self.weight[numbers], self.bias[numbers][..., None]], dim=-1)


def _head_of(rows: Tensor) -> LinearHead:
    return LinearHead(rows[..., :-1], rows[..., -1])


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
