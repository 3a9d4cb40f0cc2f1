"""The two objectives of hybrid pretraining. Each turns data into a loss whose plain backward pass is the outer gradient.

An objective knows neither the engine nor the rank; the trainer calls `backward` on what it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from metapt import randomness
from metapt.config import MetaConfig
from metapt.data.episodes import Episode, Examples
from metapt.meta.adaptation import Adapted, Parameters, adapt, adapt_by, at_adapted, with_gradients
from metapt.models.decoder import EpisodeHead
from metapt.models.meta_lm import MetaLM
from metapt.models.packed_windows import Windows


@dataclass
class Outcome:
    """A loss to go backward from, and what is worth logging (detached; lists are over inner steps 0..T)."""

    loss: Tensor
    measures: dict[str, Tensor] = field(default_factory=dict)


def is_episode(meta: MetaConfig, seed: int, step: int) -> bool:
    """The Bernoulli draw of a step, the same on all ranks; none is an episode before meta.start_step."""
    return step >= meta.start_step and bool(randomness.generator(seed, "branch", step).random() < meta.rho)


def next_token(meta_lm: MetaLM, sequences: Tensor) -> Outcome:
    """Next-token cross-entropy of sequences [n, T + 1]."""
    loss = meta_lm.lm_loss(sequences)
    used = set(meta_lm.decoder.parameters())
    return Outcome(_idle(loss, meta_lm, used), {"lm_loss_nats": loss.detach()})


def episode(
    meta_lm: MetaLM,
    task: Episode,
    meta: MetaConfig,
    seed: int,
    step: int,
    number: int,
    poll: Callable[[], None] = lambda: None,
) -> Outcome:
    """A first-order episode: the query loss at the adapted parameters; its backward pass follows `meta.algorithm`.

    Args:
        task: support and query examples.
        seed, step, number: name the episode, and with it its dropout masks.
        poll: called before each inner step; may raise to leave the episode.
    Returns: the query loss in nats; support and query figures.
    """
    with randomness.torch_seed(seed, "episode dropout", step, number):
        support, query = (Side.of(examples, meta_lm) for examples in (task.support, task.query))
        if meta.scope == "head":
            # The decoder is constant during the inner loop: its states need computing once.
            with torch.no_grad():
                support.states = meta_lm.states_read(support.windows)
            query.states = meta_lm.states_read(query.windows)
        trace = Trace()

        def support_loss(values: Parameters) -> Tensor:
            return trace.record(_logits(meta_lm, values, support), support.labels)

        parameters = meta_lm.adaptable(meta)
        if meta_lm.inner_step and meta.scope == "head" and not meta_lm.rates:
            move = partial(_compiled_step, meta_lm.inner_step, support, meta.inner_lr, trace)
            adapted = adapt_by(move, parameters, meta.inner_steps, before_step=lambda values: poll())
        else:
            multipliers = meta_lm.rates.multipliers() if meta_lm.rates else None
            with meta_lm.whole(parameters), meta_lm.whole(multipliers or {}):
                adapted = adapt(
                    support_loss,
                    parameters,
                    meta.inner_steps,
                    meta.inner_lr,
                    multipliers=multipliers,
                    before_step=lambda values: poll(),
                )
        with torch.no_grad():
            support_loss(adapted.values)
        loss, logits = _outer(meta_lm, parameters, adapted, query, meta)
    return Outcome(loss, trace.measures(support, query, loss, logits))


def _compiled_step(
    step: Callable[..., tuple[Parameters, Tensor, Tensor]],
    support: Side,
    rate: float,
    trace: Trace,
    values: Parameters,
) -> Parameters:
    """phi_{t+1} from phi_t by `EpisodeHead.inner_step`, with loss and accuracy at phi_t remembered."""
    moved, loss, logits = step(values, support.states, support.labels, rate)
    trace.remember(loss.clone(), accuracy(logits, support.labels))
    return moved


def _outer(
    meta_lm: MetaLM, parameters: Mapping[str, Tensor], adapted: Adapted, query: Side, meta: MetaConfig
) -> tuple[Tensor, Tensor]:
    """The query loss at the adapted parameters, with the derivative that the algorithm gives it; and the logits."""
    if meta.algorithm == "reptile":
        with torch.no_grad():
            logits = _logits(meta_lm, adapted.values, query)
            scale = 1 / (meta.inner_lr * meta.inner_steps)
            moves = [(value - adapted.values[name]) * scale for name, value in parameters.items()]
        loss = with_gradients(cross_entropy(logits, query.labels), list(parameters.values()), moves)
        return _idle(loss, meta_lm, set(parameters.values())), logits
    along = meta_lm.rates(adapted.moved, meta.inner_lr) if meta_lm.rates else {}

    def replace(originals: Mapping[str, Tensor]) -> Parameters:
        values = at_adapted(originals, adapted.values)
        return {name: value + along[name] for name, value in values.items()} if along else values

    if query.states is not None:
        assert meta_lm.head is not None
        logits = meta_lm.head(query.states, replace)
    else:
        logits = _logits(meta_lm, replace(parameters), query)
    loss = cross_entropy(logits, query.labels)
    return _idle(loss, meta_lm, set(meta_lm.parameters()) - set(meta_lm.decoder.lm_head.parameters())), logits


def _idle(loss: Tensor, meta_lm: MetaLM, used: AbstractSet[Tensor]) -> Tensor:
    """The loss with a gradient of zero for the parameters that it does not use.

    Partitioned parameters need none: the engine starts from zeros there (metapt/training/zero3.py).
    """
    if meta_lm.partitioned:
        return loss
    return with_gradients(loss, [value for value in meta_lm.parameters() if value not in used])


def _logits(meta_lm: MetaLM, values: Parameters, side: Side) -> Tensor:
    """Class logits with adapted parameters: from the states, where these are constant, or from the tokens."""
    if side.states is not None:
        assert meta_lm.head is not None
        return meta_lm.head.logits(side.states, values)
    return functional_call(meta_lm, values, (side.windows,))


def probe(
    meta_lm: MetaLM, task: Episode, meta: MetaConfig, poll: Callable[[], None] = lambda: None
) -> dict[str, Tensor]:
    """Loss (nats) and accuracy on support and query at every inner step 0..T of an episode; nothing is trained.

    Without dropout, so that two measurements differ by the weights alone. `poll` as in `episode`.
    """
    assert meta_lm.head is not None
    sides = {"support": Side.of(task.support, meta_lm), "query": Side.of(task.query, meta_lm)}
    traces = {name: Trace() for name in sides}
    parameters = meta_lm.adaptable(meta)
    multipliers = meta_lm.rates.multipliers() if meta_lm.rates else None
    if meta.scope == "head":
        with torch.no_grad():
            for side in sides.values():
                side.states = meta_lm.states_read(side.windows)

    def record(name: str, values: Parameters) -> Tensor:
        return traces[name].record(_logits(meta_lm, values, sides[name]), sides[name].labels)

    def record_query(values: Parameters) -> None:
        poll()
        with torch.no_grad():
            record("query", values)

    with without_dropout(meta_lm.head), meta_lm.whole(parameters), meta_lm.whole(multipliers or {}):
        adapted = adapt(
            lambda values: record("support", values),
            parameters,
            meta.inner_steps,
            meta.inner_lr,
            multipliers=multipliers,
            before_step=record_query,
        )
        with torch.no_grad():
            record("support", adapted.values)
        record_query(adapted.values)
    return curves(traces)


def curves(traces: Mapping[str, Trace]) -> dict[str, Tensor]:
    """What is logged of the traces of a probe, by side; tensors [T + 1]."""
    losses = {f"{side}_loss_nats": torch.stack(trace.losses) for side, trace in traces.items()}
    return losses | {f"{side}_accuracy": torch.stack(trace.accuracies) for side, trace in traces.items()}


@contextmanager
def without_dropout(head: EpisodeHead) -> Iterator[None]:
    """Within it the head is in evaluation mode."""
    was_training = head.training
    head.eval()
    try:
        yield
    finally:
        head.train(was_training)


@dataclass
class Side:
    """Support or query examples as tensors on the meta_lm's device; states [n, d] where they are constant."""

    windows: Windows
    positions: Tensor
    labels: Tensor
    states: Tensor | None = None

    @classmethod
    def of(
        cls, examples: Examples, meta_lm: MetaLM, own: Callable[[np.ndarray], np.ndarray] = lambda rows: rows
    ) -> Side:
        """own: those rows of an array whose windows this rank reads."""
        device = next(meta_lm.parameters()).device
        windows = Windows.cut(own(examples.tokens), own(examples.positions), device)
        return cls(
            windows,
            *(torch.from_numpy(array).to(device) for array in (examples.positions, examples.labels)),
        )


class Trace:
    """Loss and accuracy on the support set along the inner loop."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.accuracies: list[Tensor] = []

    def record(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of logits [n, N] against labels [n], which is remembered."""
        loss = cross_entropy(logits, labels)
        self.remember(loss.detach(), accuracy(logits, labels))
        return loss

    def remember(self, loss: Tensor, share: Tensor) -> None:
        self.losses.append(loss)
        self.accuracies.append(share)

    def measures(self, support: Side, query: Side, loss: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """What is logged of an episode."""
        return {
            "support_loss_nats": torch.stack(self.losses),
            "support_accuracy": torch.stack(self.accuracies),
            "query_loss_nats": loss.detach(),
            "query_accuracy": accuracy(logits, query.labels),
            "mask_position_tokens": torch.cat([support.positions, query.positions]).float().mean(),
        }


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of rows of logits [n, N] whose largest one is the label's."""
    return (logits.detach().argmax(dim=-1) == labels).float().mean()
