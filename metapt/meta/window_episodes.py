"""Episodes on windows of their own: the inner loop, what is logged of it, and the probe.

What an inner loop changes is behind `Adaptation`: copies of parameters (metapt/meta/adapted_copies.py), or shards of the
parameters themselves at ZeRO stage 3 (metapt/training/zero3.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from metapt import randomness
from metapt.config import MetaConfig
from metapt.data.episodes import Episode
from metapt.meta.adapted_copies import adapted_copies
from metapt.meta.objectives import ObjectiveOutput
from metapt.meta.window_examples import ExampleBatch
from metapt.models.episode_head import EpisodeHead
from metapt.models.meta_lm import MetaLM


class Adaptation(Protocol):
    """The adapted parameters of one episode: phi_0 at first, phi_t after t steps."""

    support: ExampleBatch
    query: ExampleBatch

    def step(self) -> tuple[Tensor, Tensor]:
        """One inner step on the support set, phi_t to phi_{t+1}.

        Returns: loss in nats and logits [n, N] of the support set at phi_t, detached.
        """

    def logits(self, examples: ExampleBatch) -> Tensor:
        """Class logits [n, N] of `support` or `query` at the present parameters, without gradient."""

    def query_loss(self) -> tuple[Tensor, Tensor]:
        """The query loss in nats at phi_T, and the query logits [n, N].

        The outer gradient of `meta.algorithm` accumulates in the loss's backward pass, or has been accumulated if the
        loss requires no gradient.
        """


Begin = Callable[[MetaLM, Episode, MetaConfig], AbstractContextManager[Adaptation]]
"""Begins an episode at phi_0. Afterwards the model's own parameters are as they were before."""


def episode_objective(
    meta_lm: MetaLM,
    task: Episode,
    meta: MetaConfig,
    seed: int,
    step: int,
    index: int,
    check_stop: Callable[[], None] = lambda: None,
    begin: Begin = adapted_copies,
) -> ObjectiveOutput:
    """The query loss of an episode at the adapted parameters, with the first-order gradient of `meta.algorithm`.

    Args:
        task: support and query examples.
        seed, step, index: of the run, the update and the episode in it; they key the dropout masks.
        check_stop: called before each inner step; may raise to leave the episode.
        begin: how parameters are adapted.
    Returns: the query loss, and loss and accuracy on support and query.
    """
    curve = AdaptationCurve()
    with (
        randomness.torch_seed(seed, "episode dropout", step, index),
        begin(meta_lm, task, meta) as adaptation,
    ):
        _run_inner_loop(adaptation, meta.inner_steps, curve, check_stop)
        loss, logits = adaptation.query_loss()
    return ObjectiveOutput(loss, curve.episode_metrics(adaptation.support, adaptation.query, loss, logits))


def probe(
    meta_lm: MetaLM,
    task: Episode,
    meta: MetaConfig,
    check_stop: Callable[[], None] = lambda: None,
    begin: Begin = adapted_copies,
) -> dict[str, Tensor]:
    """Loss and accuracy on support and query at every inner step 0..T of an episode; nothing is trained.

    Dropout is off, so that two measurements differ by the weights alone.

    Args:
        task, meta, check_stop, begin: as in `episode_objective`.
    Returns: tensors [T + 1] by name, losses in nats.
    """
    assert meta_lm.episode_head is not None
    support, query = AdaptationCurve(), AdaptationCurve()
    with (
        _without_dropout(meta_lm.episode_head),
        torch.no_grad(),
        begin(meta_lm, task, meta) as adaptation,
    ):

        def record_query() -> None:
            check_stop()
            query.record(adaptation.logits(adaptation.query), adaptation.query.labels)

        _run_inner_loop(adaptation, meta.inner_steps, support, record_query)
        record_query()
    return support.values("support") | query.values("query")


def _run_inner_loop(
    adaptation: Adaptation, steps: int, curve: AdaptationCurve, before_step: Callable[[], None]
) -> None:
    """Adapt to the support set, and record loss and accuracy on it at phi_0..phi_T."""
    labels = adaptation.support.labels
    for _ in range(steps):
        before_step()
        loss, logits = adaptation.step()
        curve.record(logits, labels, loss)
    curve.record(adaptation.logits(adaptation.support), labels)


@contextmanager
def _without_dropout(head: EpisodeHead) -> Iterator[None]:
    """A context in which the episode head is in evaluation mode."""
    was_training = head.training
    head.eval()
    try:
        yield
    finally:
        head.train(was_training)


class AdaptationCurve:
    """Loss and accuracy on one set of examples at each inner step."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.accuracies: list[Tensor] = []

    def record(self, logits: Tensor, labels: Tensor, loss: Tensor | None = None) -> None:
        """Append loss and accuracy of logits [n, N] with labels [n]; the loss is computed if it is not given."""
        self.losses.append(cross_entropy(logits, labels) if loss is None else loss)
        self.accuracies.append(accuracy(logits, labels))

    def values(self, name: str) -> dict[str, Tensor]:
        """Tensors [T + 1] of losses in nats and accuracies, by names that begin with `name`."""
        return {
            f"{name}_loss_nats": torch.stack(self.losses),
            f"{name}_accuracy": torch.stack(self.accuracies),
        }

    def episode_metrics(
        self, support: ExampleBatch, query: ExampleBatch, loss: Tensor, logits: Tensor
    ) -> dict[str, Tensor]:
        """What is logged of an episode, if this is its curve on the support set.

        Args:
            loss, logits: of the query set, at the adapted parameters.
        """
        return self.values("support") | {
            "query_loss_nats": loss.detach(),
            "query_accuracy": accuracy(logits, query.labels),
            "mask_position_tokens": torch.cat([support.positions, query.positions]).float().mean(),
        }


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Fraction of the rows of logits [n, N] whose largest logit is that of the label."""
    return (logits.detach().argmax(dim=-1) == labels).float().mean()
