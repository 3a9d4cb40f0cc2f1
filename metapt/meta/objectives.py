"""The two objectives of hybrid pretraining. Each turns data into a loss whose plain backward pass is the outer gradient.

An objective knows neither the engine nor the rank; the trainer calls `backward` on what it returns.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from metapt import randomness
from metapt.config import MetaConfig
from metapt.data.episodes import Episode, Examples
from metapt.meta.adaptation import Parameters, adapt, at_adapted, with_zero_gradients
from metapt.models.learner import Learner


@dataclass
class Outcome:
    """A loss to go backward from, and what is worth logging (detached; lists are over inner steps 0..T)."""

    loss: Tensor
    measures: dict[str, Tensor] = field(default_factory=dict)


def is_episode(meta: MetaConfig, seed: int, step: int) -> bool:
    """The Bernoulli draw of a step, the same on all ranks."""
    return bool(randomness.generator(seed, "branch", step).random() < meta.rho)


def autoregressive(learner: Learner, sequences: Tensor) -> Outcome:
    """Next-token cross-entropy of sequences [n, T + 1]."""
    loss = learner.lm_loss(sequences)
    unused = [] if learner.head is None else list(learner.head.parameters())
    return Outcome(with_zero_gradients(loss, unused), {"lm_loss_nats": loss.detach()})


def adapted_names(learner: Learner, meta: MetaConfig) -> list[str]:
    """Names of the parameters that the inner loop adapts, by scope; the output layer takes no part in an episode."""
    names = [name for name, _ in learner.named_parameters() if not name.startswith("decoder.lm_head.")]
    if meta.scope == "full":
        return names
    prefixes: tuple[str, ...] = ("head.",)
    if meta.scope == "last_n":
        blocks = len(learner.decoder.model.layers)
        last = range(blocks - meta.last_n, blocks)
        prefixes += ("decoder.model.norm.", *(f"decoder.model.layers.{block}." for block in last))
    return [name for name in names if name.startswith(prefixes)]


def episode(learner: Learner, task: Episode, meta: MetaConfig, seed: int, step: int, number: int) -> Outcome:
    """A first-order MAML episode: the query loss at the adapted parameters, differentiable to the originals.

    Args:
        task: support and query examples.
        seed, step, number: name the episode, and with it its dropout masks.
    Returns: the query loss in nats; support and query figures.
    """
    parameters = dict(learner.named_parameters())
    originals = {name: parameters[name] for name in adapted_names(learner, meta)}
    with randomness.torch_seed(seed, "episode dropout", step, number):
        logits_of = _head_logits if meta.scope == "head" else _logits
        support, query = (_Side.of(examples, learner) for examples in (task.support, task.query))
        if meta.scope == "head":
            # The decoder is constant during the inner loop: its states need computing once.
            with torch.no_grad():
                support.states = learner.masked_states(support.tokens, support.positions)
            query.states = learner.masked_states(query.tokens, query.positions)
        trace = _Trace()

        def support_loss(adapted: Parameters) -> Tensor:
            return trace.record(logits_of(learner, adapted, support), support.labels)

        adapted = adapt(support_loss, originals, meta.inner_steps, meta.inner_lr)
        with torch.no_grad():
            support_loss(adapted)
        logits = logits_of(learner, at_adapted(originals, adapted), query)
        loss = cross_entropy(logits, query.labels)
    measures = {
        "support_loss_nats": torch.stack(trace.losses),
        "support_accuracy": torch.stack(trace.accuracies),
        "query_loss_nats": loss.detach(),
        "query_accuracy": _accuracy(logits, query.labels),
        "mask_position_tokens": torch.cat([support.positions, query.positions]).float().mean(),
    }
    return Outcome(with_zero_gradients(loss, list(learner.decoder.lm_head.parameters())), measures)


def probe(learner: Learner, task: Episode, meta: MetaConfig) -> dict[str, Tensor]:
    """Loss (nats) and accuracy on support and query at every inner step 0..T of an episode; nothing is trained.

    Without dropout, so that two measurements differ by the weights alone.
    """
    assert learner.head is not None
    parameters = dict(learner.named_parameters())
    originals = {name: parameters[name] for name in adapted_names(learner, meta)}
    logits_of = _head_logits if meta.scope == "head" else _logits
    sides = {"support": _Side.of(task.support, learner), "query": _Side.of(task.query, learner)}
    traces = {name: _Trace() for name in sides}
    was_training = learner.head.training
    learner.head.eval()
    if meta.scope == "head":
        with torch.no_grad():
            for side in sides.values():
                side.states = learner.masked_states(side.tokens, side.positions)

    def record(name: str, adapted: Parameters) -> Tensor:
        return traces[name].record(logits_of(learner, adapted, sides[name]), sides[name].labels)

    def support_loss(adapted: Parameters) -> Tensor:
        with torch.no_grad():
            record("query", adapted)
        return record("support", adapted)

    adapted = adapt(support_loss, originals, meta.inner_steps, meta.inner_lr)
    with torch.no_grad():
        support_loss(adapted)
    learner.head.train(was_training)
    losses = {f"{name}_loss_nats": torch.stack(trace.losses) for name, trace in traces.items()}
    return losses | {f"{name}_accuracy": torch.stack(trace.accuracies) for name, trace in traces.items()}


@dataclass
class _Side:
    """Support or query examples as tensors on the learner's device."""

    tokens: Tensor
    positions: Tensor
    labels: Tensor
    states: Tensor | None = None

    @classmethod
    def of(cls, examples: Examples, learner: Learner) -> _Side:
        device = next(learner.parameters()).device
        tensors = (
            torch.from_numpy(array).to(device)
            for array in (examples.tokens, examples.positions, examples.labels)
        )
        return cls(*tensors)


class _Trace:
    """Loss and accuracy on the support set along the inner loop."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.accuracies: list[Tensor] = []

    def record(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = cross_entropy(logits, labels)
        self.losses.append(loss.detach())
        self.accuracies.append(_accuracy(logits, labels))
        return loss


def _head_logits(learner: Learner, adapted: Parameters, side: _Side) -> Tensor:
    assert learner.head is not None
    head = {name.removeprefix("head."): value for name, value in adapted.items()}
    return functional_call(learner.head, head, (side.states,))


def _logits(learner: Learner, adapted: Parameters, side: _Side) -> Tensor:
    return functional_call(learner, adapted, (side.tokens, side.positions))


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(dim=-1) == labels).float().mean()
