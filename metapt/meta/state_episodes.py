"""Episodes on hidden states that exist already: a linear classifier is adapted on support states and scored on query states.

All episodes of a micro-batch are one batched computation. The states cost no second pass of the decoder, since those of the
next-token loss serve; the classifier's gradient has a closed form, so that the inner loop needs no autograd:

    h'      = (h - m) / (rms(h - m) + 1e-4),  m the mean support state, without gradient; |h'|^2 = d
    phi_0   = zero, or prototypes: w_c = tau p_c / (|p_c| sqrt(d)), p_c the mean of the class's support states h', with gradient
              (Snell et al. 2017; proto-MAML, Triantafillou et al. 2020)
    phi_t   = phi_{t-1} - eta grad L_S(phi_{t-1}) on detached support states, eta = c N / (T d)
    loss    = L_Q(phi_0 + (phi_T - phi_0) without gradient): first order (Finn et al. 2017, section 5.2)

A head of fewer than N classes is padded: the columns of absent classes do not compete in the softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metapt.data.batch_episodes import BatchEpisode, LabelledStates
from metapt.models.episode_head import normalized_states


class LinearHead(NamedTuple):
    """Classifiers of K episodes. weight: [K, N, d]; bias: [K, N]."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class StateExamples:
    """Support or query states of K episodes, padded. states: [K, S, d]; labels: int64 [K, S]; weights: [K, S], 0 for padding."""

    states: Tensor
    labels: Tensor
    weights: Tensor

    @classmethod
    def gather(cls, states: Tensor, sides: Sequence[LabelledStates], offsets: Sequence[int]) -> StateExamples:
        """The examples of K episodes from hidden states [M, d], fp32.

        Args:
            offsets: where the states of each episode's group begin.
        """
        positions, labels, weights = (
            torch.from_numpy(np.stack([getattr(side, name) for side in sides])).to(states.device)
            for name in ("positions", "labels", "weights")
        )
        positions = positions + torch.tensor(offsets, device=states.device)[:, None]
        picked = states.index_select(0, positions.flatten()).view(*positions.shape, -1)
        return cls(picked.float(), labels, weights)


def normalized(support: Tensor, query: Tensor, support_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Support and query states centred on the mean support state and scaled to |h|^2 = d; and the spread of the raw states [K].

    Args:
        support, query: [K, S, d]; support_weights: [K, S], 0 for padding.
    """
    counted = (support_weights > 0).to(support.dtype)
    total = counted.sum(dim=1).clamp(min=1)[:, None, None]
    mean = ((support * counted[..., None]).sum(dim=1, keepdim=True) / total).detach()
    spread = ((support.detach() - mean).square().mean(dim=2) * counted).sum(dim=1) / total[:, 0, 0]

    return normalized_states(support, mean), normalized_states(query, mean), spread.sqrt()


def zero_head(examples: StateExamples, n_way: int) -> LinearHead:
    """A head of zeros, in the shape that the examples need."""
    count, _, width = examples.states.shape
    return LinearHead(examples.states.new_zeros(count, n_way, width), examples.states.new_zeros(count, n_way))


def prototypes(examples: StateExamples, n_way: int) -> Tensor:
    """The weighted mean state of each class, scaled to length 1 / sqrt(d), with gradient. [K, N, d]; zeros for absent classes."""
    _, _, width = examples.states.shape
    membership = torch.nn.functional.one_hot(examples.labels, n_way) * examples.weights[..., None]
    sums = torch.einsum("ksn,ksd->knd", membership, examples.states)
    lengths = sums.square().sum(dim=2, keepdim=True).add(1e-12).sqrt()
    return sums / (lengths * width**0.5)


def logits_of(head: LinearHead, states: Tensor, ways: Tensor) -> Tensor:
    """Class logits [K, S, N]; -inf in the columns of classes that an episode does not have.

    Args:
        ways: int64 [K], number of classes of each episode.
    """
    logits = torch.baddbmm(head.bias[:, None, :], states, head.weight.mT)
    absent = torch.arange(head.bias.shape[1], device=ways.device) >= ways[:, None]
    return logits.masked_fill(absent[:, None, :], float("-inf"))


def weighted_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean cross-entropy of each episode, nats. [K]; 0 for an episode without examples."""
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    losses = torch.where(weights > 0, losses.view_as(weights) * weights, 0.0)
    return losses.sum(dim=1) / weights.sum(dim=1).clamp(min=1e-12)


def balanced_accuracy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Accuracy of each class that has examples, averaged over classes. [K]."""
    counted = (weights > 0).float()
    membership = torch.nn.functional.one_hot(labels, logits.shape[-1]) * counted[..., None]
    correct = (logits.argmax(dim=-1) == labels).float()
    totals = membership.sum(dim=1)
    per_class = torch.einsum("ksn,ks->kn", membership, correct) / totals.clamp(min=1)
    return per_class.sum(dim=1) / (totals > 0).sum(dim=1).clamp(min=1)


@torch.no_grad()
def scale_derivative(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Derivative of each episode's loss by log s for logits s z, at s = 1: the weighted mean of E_p[z] - z_label. [K].

    Negative: more confident logits would have a lower loss.
    """
    finite = logits.masked_fill(logits.isneginf(), 0.0)
    expected = (logits.softmax(dim=-1) * finite).sum(dim=-1)
    excess = expected - finite.gather(2, labels[..., None])[..., 0]
    return (excess * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-12)


@torch.no_grad()
def inner_steps(
    head: LinearHead, support: StateExamples, ways: Tensor, steps: int, rate: Tensor
) -> list[LinearHead]:
    """phi_0 .. phi_T: gradient descent on the support loss, on detached values.

    Args:
        rate: eta of each episode, [K].
    """
    states, weights = (
        support.states.detach(),
        support.weights / support.weights.sum(dim=1, keepdim=True).clamp(min=1e-12),
    )
    target = torch.nn.functional.one_hot(support.labels, head.bias.shape[1]).to(states.dtype)
    heads = [LinearHead(head.weight.detach(), head.bias.detach())]
    for _ in range(steps):
        error = (logits_of(heads[-1], states, ways).softmax(dim=-1) - target) * weights[..., None]
        weight = torch.baddbmm(heads[-1].weight, error.mT, -rate[:, None, None] * states)
        heads.append(LinearHead(weight, heads[-1].bias - rate[:, None] * error.sum(dim=1)))
    return heads


def first_order(initial: LinearHead, adapted: LinearHead) -> LinearHead:
    """A head with the value of `adapted` and the derivative of `initial`."""
    return LinearHead(
        *(
            start + (end - start).detach() if start.requires_grad else end
            for start, end in zip(initial, adapted, strict=True)
        )
    )


def auto_rate(ways: Tensor, steps: int, width: int, scale: float) -> Tensor:
    """eta = c N / (T d) of each episode, for states of |h|^2 = d. [K]."""
    return scale * ways.float() / (max(1, steps) * width)


def number_of_ways(episodes: Sequence[BatchEpisode], device: torch.device) -> Tensor:
    """int64 [K]; at least 1, so that an episode without a loss has finite numbers everywhere."""
    return torch.tensor([max(1, episode.ways) for episode in episodes], device=device)
