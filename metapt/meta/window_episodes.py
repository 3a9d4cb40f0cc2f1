"""Episodes on windows of their own: examples, inner loop, outer gradient and probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from metapt import randomness
from metapt.config import MetaConfig
from metapt.data.episodes import Episode
from metapt.meta.adaptation import (
    InnerLoopResult,
    Parameters,
    adapt,
    adapt_with,
    attach_gradients,
    straight_through,
)
from metapt.meta.objectives import ObjectiveOutput, with_zero_gradients
from metapt.models.episode_head import EpisodeHead
from metapt.models.meta_lm import MetaLM
from metapt.models.packed_windows import PackedWindows

SIDES = ("support", "query")


def episode_objective(
    meta_lm: MetaLM,
    task: Episode,
    meta: MetaConfig,
    seed: int,
    step: int,
    index: int,
    check_stop: Callable[[], None] = lambda: None,
) -> ObjectiveOutput:
    """The query loss of an episode at the adapted parameters, with the first-order gradient of `meta.algorithm`.

    Args:
        task: support and query examples.
        seed, step, index: of the run, the update and the episode in it; they key the dropout masks.
        check_stop: called before each inner step; may raise to leave the episode.
    Returns: the query loss, and loss and accuracy on support and query.
    """
    with randomness.torch_seed(seed, "episode dropout", step, index):
        support, query = (ExampleBatch.of(task, side, meta_lm) for side in SIDES)
        if meta.scope == "head":
            # The inner loop does not change the decoder: hidden states are computed once.
            with torch.no_grad():
                support.hidden = meta_lm.prediction_states(support.windows)
            query.hidden = meta_lm.prediction_states(query.windows)
        curve = AdaptationCurve()
        initial = meta_lm.inner_loop_parameters(meta)
        result = _run_inner_loop(meta_lm, initial, support, meta, curve, check_stop)
        with torch.no_grad():
            curve.record(_logits(meta_lm, result.parameters, support), support.labels)
        loss, logits = _query_loss(meta_lm, initial, result, query, meta)
    return ObjectiveOutput(loss, curve.episode_metrics(support, query, loss, logits))


def _run_inner_loop(
    meta_lm: MetaLM,
    initial: Mapping[str, Tensor],
    support: ExampleBatch,
    meta: MetaConfig,
    curve: AdaptationCurve,
    check_stop: Callable[[], None],
) -> InnerLoopResult:
    """Adapt to the support set and record loss and accuracy at phi_0..phi_{T-1}."""
    if meta_lm.compiled_inner_step and meta.scope == "head" and not meta_lm.inner_rates:
        step = partial(_compiled_step, meta_lm.compiled_inner_step, support, meta.inner_lr, curve)
        return adapt_with(step, initial, meta.inner_steps, before_step=lambda parameters: check_stop())
    multipliers = meta_lm.inner_rates.multipliers() if meta_lm.inner_rates else None
    with meta_lm.gathered(initial), meta_lm.gathered(multipliers or {}):
        return adapt(
            lambda parameters: curve.record(_logits(meta_lm, parameters, support), support.labels),
            initial,
            meta.inner_steps,
            meta.inner_lr,
            multipliers=multipliers,
            before_step=lambda parameters: check_stop(),
        )


def _compiled_step(
    step: Callable[..., tuple[Parameters, Tensor, Tensor]],
    support: ExampleBatch,
    rate: float,
    curve: AdaptationCurve,
    parameters: Parameters,
) -> Parameters:
    """phi_{t+1} from phi_t by `EpisodeHead.inner_step`; records loss and accuracy at phi_t."""
    updated, loss, logits = step(parameters, support.hidden, support.labels, rate, support.columns)
    curve.append(loss.clone(), accuracy(logits, support.labels))
    return updated


def _query_loss(
    meta_lm: MetaLM,
    initial: Mapping[str, Tensor],
    result: InnerLoopResult,
    query: ExampleBatch,
    meta: MetaConfig,
) -> tuple[Tensor, Tensor]:
    """The query loss at the adapted parameters, with the outer gradient of the algorithm, and the logits."""
    if meta.algorithm == "reptile":
        with torch.no_grad():
            logits = _logits(meta_lm, result.parameters, query)
            scale = 1 / (meta.inner_lr * meta.inner_steps)
            gradients = [(value - result.parameters[name]) * scale for name, value in initial.items()]
        loss = attach_gradients(cross_entropy(logits, query.labels), list(initial.values()), gradients)
        return with_zero_gradients(loss, meta_lm, set(initial.values())), logits
    rates = meta_lm.inner_rates
    offsets = rates(result.gradient_sums, meta.inner_lr) if rates else {}

    def substitute(originals: Mapping[str, Tensor]) -> Parameters:
        adapted = straight_through(originals, result.parameters)
        return {name: value + offsets[name] for name, value in adapted.items()} if offsets else adapted

    if query.hidden is not None:
        assert meta_lm.episode_head is not None
        logits = meta_lm.episode_head(query.hidden, substitute, query.columns)
    else:
        logits = _logits(meta_lm, substitute(initial), query)
    loss = cross_entropy(logits, query.labels)
    unused = {*meta_lm.decoder.lm_head.parameters(), *meta_lm.term_heads.parameters()}
    used = set(meta_lm.parameters()) - unused
    return with_zero_gradients(loss, meta_lm, used), logits


def _logits(meta_lm: MetaLM, parameters: Parameters, batch: ExampleBatch) -> Tensor:
    """Class logits with adapted parameters, from the hidden states if they are known, else from the tokens."""
    if batch.hidden is not None:
        assert meta_lm.episode_head is not None
        return meta_lm.episode_head.logits(batch.hidden, parameters, batch.columns)
    return functional_call(meta_lm, parameters, (batch.windows, batch.columns))


def probe(
    meta_lm: MetaLM, task: Episode, meta: MetaConfig, check_stop: Callable[[], None] = lambda: None
) -> dict[str, Tensor]:
    """Loss and accuracy on support and query at every inner step 0..T of an episode; nothing is trained.

    Dropout is off, so that two measurements differ by the weights alone.

    Args:
        task, meta, check_stop: as in `episode_objective`.
    Returns: tensors [T + 1] by name, losses in nats.
    """
    assert meta_lm.episode_head is not None
    batches = {side: ExampleBatch.of(task, side, meta_lm) for side in SIDES}
    curves = {name: AdaptationCurve() for name in batches}
    initial = meta_lm.inner_loop_parameters(meta)
    multipliers = meta_lm.inner_rates.multipliers() if meta_lm.inner_rates else None
    if meta.scope == "head":
        with torch.no_grad():
            for batch in batches.values():
                batch.hidden = meta_lm.prediction_states(batch.windows)

    def record(name: str, parameters: Parameters) -> Tensor:
        return curves[name].record(_logits(meta_lm, parameters, batches[name]), batches[name].labels)

    def record_query(parameters: Parameters) -> None:
        check_stop()
        with torch.no_grad():
            record("query", parameters)

    with (
        without_dropout(meta_lm.episode_head),
        meta_lm.gathered(initial),
        meta_lm.gathered(multipliers or {}),
    ):
        result = adapt(
            lambda parameters: record("support", parameters),
            initial,
            meta.inner_steps,
            meta.inner_lr,
            multipliers=multipliers,
            before_step=record_query,
        )
        with torch.no_grad():
            record("support", result.parameters)
        record_query(result.parameters)
    return probe_metrics(curves)


@contextmanager
def without_dropout(head: EpisodeHead) -> Iterator[None]:
    """A context in which the episode head is in evaluation mode."""
    was_training = head.training
    head.eval()
    try:
        yield
    finally:
        head.train(was_training)


@dataclass
class ExampleBatch:
    """Support or query examples as tensors on the model's device."""

    windows: PackedWindows
    positions: Tensor
    """int64 [n]: the prediction position in each window."""
    labels: Tensor
    """int64 [n]."""
    columns: Tensor | None
    """int64 [N]: outputs of the episode head that belong to the labels, if it has one for each token."""
    hidden: Tensor | None = None
    """Hidden states [n, d] at the prediction positions, if the inner loop does not change them."""

    @classmethod
    def of(
        cls,
        task: Episode,
        side: str,
        meta_lm: MetaLM,
        select: Callable[[np.ndarray], np.ndarray] = lambda rows: rows,
    ) -> ExampleBatch:
        """The examples of one side of an episode, support or query, on the device of `meta_lm`.

        Args:
            select: picks the rows whose windows this rank processes; positions and labels are those of all rows.
        """
        device, examples = next(meta_lm.parameters()).device, getattr(task, side)
        windows = PackedWindows.pack(select(examples.tokens), select(examples.positions), device)
        positions, labels = (
            torch.from_numpy(array).to(device) for array in (examples.positions, examples.labels)
        )
        assert meta_lm.episode_head is not None
        columns = torch.from_numpy(task.classes).to(device) if meta_lm.episode_head.per_token else None
        return cls(windows, positions, labels, columns)


class AdaptationCurve:
    """Loss and accuracy on one set of examples at each inner step."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.accuracies: list[Tensor] = []

    def record(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Append loss and accuracy of logits [n, N] with labels [n], and return the loss in nats."""
        loss = cross_entropy(logits, labels)
        self.append(loss.detach(), accuracy(logits, labels))
        return loss

    def append(self, loss: Tensor, accuracy: Tensor) -> None:
        self.losses.append(loss)
        self.accuracies.append(accuracy)

    def episode_metrics(
        self, support: ExampleBatch, query: ExampleBatch, loss: Tensor, logits: Tensor
    ) -> dict[str, Tensor]:
        """What is logged of an episode, if this is its curve on the support set.

        Args:
            loss, logits: of the query set, at the adapted parameters.
        """
        return {
            "support_loss_nats": torch.stack(self.losses),
            "support_accuracy": torch.stack(self.accuracies),
            "query_loss_nats": loss.detach(),
            "query_accuracy": accuracy(logits, query.labels),
            "mask_position_tokens": torch.cat([support.positions, query.positions]).float().mean(),
        }


def probe_metrics(curves: Mapping[str, AdaptationCurve]) -> dict[str, Tensor]:
    """What is logged of a probe: tensors [T + 1], given the curves on "support" and "query"."""
    losses = {f"{name}_loss_nats": torch.stack(curve.losses) for name, curve in curves.items()}
    return losses | {f"{name}_accuracy": torch.stack(curve.accuracies) for name, curve in curves.items()}


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Fraction of the rows of logits [n, N] whose largest logit is that of the label."""
    return (logits.detach().argmax(dim=-1) == labels).float().mean()
