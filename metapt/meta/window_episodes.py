"""Episodes on windows of their own: examples, inner loop, outer gradient and probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
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
from metapt.meta.initial_heads import InitialHead
from metapt.meta.objectives import ObjectiveOutput, with_zero_gradients
from metapt.meta.state_episodes import LinearHead, StateExamples
from metapt.models.episode_head import EpisodeHead, normalized_states
from metapt.models.meta_lm import HEAD, WINDOWS, MetaLM
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
        support, query = example_batches(meta_lm, task, meta)
        states = _compute_states(meta_lm, support, query, meta)
        curve = AdaptationCurve()
        initial = _initial_parameters(meta_lm, states, support, meta)
        result = _run_inner_loop(meta_lm, initial, support, meta, curve, check_stop)
        with torch.no_grad():
            curve.record(_logits(meta_lm, result.parameters, support), support.labels)
        loss, logits = _query_loss(meta_lm, initial, result, query, meta)
    return ObjectiveOutput(loss, curve.episode_metrics(support, query, loss, logits))


def _compute_states(
    meta_lm: MetaLM, support: ExampleBatch, query: ExampleBatch, meta: MetaConfig
) -> Tensor | None:
    """Scope head: the hidden states of both sides, once, since the inner loop does not change the decoder.

    Returns: the support states [n, d] at the initial parameters, if the initial head is made from them; with gradient.
    """
    assert meta_lm.episode_head is not None
    is_made_anew, states = meta_lm.episode_head.is_made_anew, None
    if is_made_anew or meta.scope == "head":
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_made_anew):
            states = meta_lm.prediction_states(support.windows)
    if meta.scope == "head":
        query.hidden = meta_lm.prediction_states(query.windows)
    if meta.normalize and states is not None:
        mean = states.detach().mean(dim=0)
        states = normalized_states(states, mean)
        query.hidden = None if query.hidden is None else normalized_states(query.hidden, mean)
    if meta.scope == "head" and states is not None:
        support.hidden = states.detach()
    return states if is_made_anew else None


def _initial_parameters(
    meta_lm: MetaLM, states: Tensor | None, support: ExampleBatch, meta: MetaConfig
) -> Parameters:
    """phi_0 by name: parameters of the model, and the weights of a head that is made from the support states [n, d]."""
    initial = meta_lm.inner_loop_parameters(meta)
    if states is None:
        return initial
    head = initial_head(meta_lm, states, support)
    prefix = "" if meta.scope == "head" else HEAD
    return initial | {f"{prefix}weight0": head.weight[0], f"{prefix}bias0": head.bias[0]}


def initial_head(meta_lm: MetaLM, states: Tensor, support: ExampleBatch) -> LinearHead:
    """The classifier that an episode makes anew from its support states [n, d]; K = 1."""
    examples = StateExamples(
        states[None], support.labels[None], torch.ones_like(support.labels[None], dtype=states.dtype)
    )
    made: InitialHead = meta_lm.term_heads[WINDOWS]  # type: ignore[assignment]
    return made.start(examples, support.classes[None])


def _run_inner_loop(
    meta_lm: MetaLM,
    initial: Mapping[str, Tensor],
    support: ExampleBatch,
    meta: MetaConfig,
    curve: AdaptationCurve,
    check_stop: Callable[[], None],
) -> InnerLoopResult:
    """Adapt to the support set and record loss and accuracy at phi_0..phi_{T-1}."""
    rate = meta_lm.inner_rate(meta)
    if meta_lm.compiled_inner_step and meta.scope == "head" and not meta_lm.inner_rates:
        step = partial(_compiled_step, meta_lm.compiled_inner_step, support, rate, curve)
        return adapt_with(step, initial, meta.inner_steps, before_step=lambda parameters: check_stop())
    multipliers = meta_lm.inner_rates.multipliers() if meta_lm.inner_rates else None
    with meta_lm.gathered(initial), meta_lm.gathered(multipliers or {}):
        return adapt(
            lambda parameters: curve.record(_logits(meta_lm, parameters, support), support.labels),
            initial,
            meta.inner_steps,
            rate,
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
    rate = meta_lm.inner_rate(meta)
    if meta.algorithm == "reptile":
        trained = {name: value for name, value in initial.items() if isinstance(value, nn.Parameter)}
        with torch.no_grad():
            logits = _logits(meta_lm, result.parameters, query)
            scale = 1 / (rate * meta.inner_steps)
            gradients = [(value - result.parameters[name]) * scale for name, value in trained.items()]
        loss = attach_gradients(cross_entropy(logits, query.labels), list(trained.values()), gradients)
        return with_zero_gradients(loss, meta_lm, set(trained.values())), logits
    rates = meta_lm.inner_rates
    offsets = rates(result.gradient_sums, rate) if rates else {}

    def substitute(originals: Mapping[str, Tensor]) -> Parameters:
        adapted = straight_through(originals, result.parameters)
        return {name: value + offsets[name] for name, value in adapted.items()} if offsets else adapted

    head = meta_lm.episode_head
    assert head is not None
    if query.hidden is not None:
        # Partitioned parameters are whole only inside their module, which passes them on.
        made = substitute(initial) if head.is_made_anew else {}
        logits = head(query.hidden, lambda own: made or substitute(own), query.columns)
    else:
        logits = _logits(meta_lm, substitute(initial), query)
    loss = cross_entropy(logits, query.labels)
    made_from = [meta_lm.term_heads[WINDOWS]] if head.is_made_anew else []
    parts = [meta_lm.decoder.model, head, *([rates] if rates else []), *made_from]
    used = {value for part in parts for value in part.parameters()}
    return with_zero_gradients(loss, meta_lm, used), logits


def _logits(meta_lm: MetaLM, parameters: Parameters, batch: ExampleBatch) -> Tensor:
    """Class logits with adapted parameters, from the hidden states if they are known, else from the tokens."""
    if batch.hidden is not None:
        assert meta_lm.episode_head is not None
        return meta_lm.episode_head.logits(batch.hidden, parameters, batch.columns)
    return functional_call(meta_lm, parameters, (batch.windows, batch.columns, batch.centre))


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
    batches = dict(zip(SIDES, example_batches(meta_lm, task, meta), strict=True))
    curves = {name: AdaptationCurve() for name in batches}
    multipliers = meta_lm.inner_rates.multipliers() if meta_lm.inner_rates else None
    with torch.no_grad():
        states = _compute_states(meta_lm, batches["support"], batches["query"], meta)
        initial = _initial_parameters(meta_lm, states, batches["support"], meta)

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
            meta_lm.inner_rate(meta),
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
    classes: Tensor
    """int64 [N]: the class of each label among those of the task."""
    columns: Tensor | None
    """int64 [N]: outputs of the episode head that belong to the labels, if it has one for each class of the task."""
    centre: PackedWindows | None = None
    """Support windows on whose mean state the states are centred; None: raw states."""
    centre_rows: int = 0
    """Number of support windows on all ranks."""
    hidden: Tensor | None = None
    """Hidden states [n, d] at the prediction positions, if the inner loop does not change them."""


def example_batches(
    meta_lm: MetaLM,
    task: Episode,
    meta: MetaConfig,
    select: Callable[[np.ndarray], np.ndarray] = lambda rows: rows,
) -> tuple[ExampleBatch, ExampleBatch]:
    """Support and query of an episode, on the device of `meta_lm`.

    Args:
        select: picks the rows whose windows this rank processes; positions and labels are those of all rows.
    """
    assert meta_lm.episode_head is not None
    device = next(meta_lm.parameters()).device
    classes = torch.from_numpy(task.classes).to(device)
    columns = classes if meta_lm.episode_head.per_class else None
    batches: list[ExampleBatch] = []
    for examples in (task.support, task.query):
        windows = PackedWindows.pack(select(examples.tokens), select(examples.positions), device)
        positions, labels = (
            torch.from_numpy(array).to(device) for array in (examples.positions, examples.labels)
        )
        centre = (batches[0].windows if batches else windows) if meta.normalize else None
        batches.append(
            ExampleBatch(windows, positions, labels, classes, columns, centre, len(task.support.labels))
        )
    return batches[0], batches[1]


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
