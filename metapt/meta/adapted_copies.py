"""Episodes on windows by copies of the adapted parameters; the parameters themselves stay as they are.

With scope head the inner loop does not change the decoder, so that hidden states are computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from metapt.config import MetaConfig
from metapt.data.episodes import Episode
from metapt.meta.adaptation import Copies, Parameters, attach_gradients, straight_through
from metapt.meta.initial_heads import InitialHead
from metapt.meta.objectives import with_zero_gradients
from metapt.meta.state_episodes import LinearHead, StateExamples
from metapt.meta.window_examples import ExampleBatch, example_batches
from metapt.models.episode_head import EpisodeHead, normalized_states
from metapt.models.meta_lm import HEAD, WINDOWS, MetaLM


@contextmanager
def adapted_copies(meta_lm: MetaLM, task: Episode, meta: MetaConfig) -> Iterator[AdaptedCopies]:
    """An episode that begins at phi_0, made from the support states if the initial head is."""
    support, query = example_batches(meta_lm, task, meta)
    states = _compute_states(meta_lm, support, query, meta)
    initial = _initial_parameters(meta_lm, states, support, meta)
    is_compiled = (
        meta_lm.compiled_inner_step
        and meta.scope == "head"
        and _head(meta_lm).training
        and not meta_lm.inner_rates
    )
    yield (CompiledCopies if is_compiled else AdaptedCopies)(meta_lm, meta, support, query, initial)


class AdaptedCopies:
    """`metapt.meta.window_episodes.Adaptation` by copies of the parameters phi_0, by name."""

    def __init__(
        self,
        meta_lm: MetaLM,
        meta: MetaConfig,
        support: ExampleBatch,
        query: ExampleBatch,
        initial: Parameters,
    ):
        self.meta_lm, self.meta, self.support, self.query = meta_lm, meta, support, query
        self.initial, self.rate = initial, meta_lm.inner_rate(meta)
        multipliers = meta_lm.inner_rates.multipliers() if meta_lm.inner_rates else {}
        with meta_lm.gathered(initial), meta_lm.gathered(multipliers):
            rates = {
                n: value.clone() if meta_lm.is_partitioned else value for n, value in multipliers.items()
            }
            self.copies = Copies(initial, self.rate, rates)

    def parameters(self) -> Parameters:
        """phi_t by name, detached."""
        return self.copies.detached()

    def step(self) -> tuple[Tensor, Tensor]:
        """See `Adaptation`."""
        logits = torch.empty(0)

        def support_loss(parameters: Parameters) -> Tensor:
            nonlocal logits
            logits = self._logits(parameters, self.support)
            return cross_entropy(logits, self.support.labels)

        return self.copies.step(support_loss), logits.detach()

    @torch.no_grad()
    def logits(self, examples: ExampleBatch) -> Tensor:
        """See `Adaptation`."""
        return self._logits(self.parameters(), examples)

    def query_loss(self) -> tuple[Tensor, Tensor]:
        """See `Adaptation`."""
        return self._reptile() if self.meta.algorithm == "reptile" else self._first_order()

    def _reptile(self) -> tuple[Tensor, Tensor]:
        adapted, logits = self.parameters(), self.logits(self.query)
        trained = {name: value for name, value in self.initial.items() if isinstance(value, nn.Parameter)}
        scale = 1 / (self.rate * self.meta.inner_steps)
        with torch.no_grad():
            gradients = [(value - adapted[name]) * scale for name, value in trained.items()]
        loss = attach_gradients(cross_entropy(logits, self.query.labels), list(trained.values()), gradients)
        return with_zero_gradients(loss, self.meta_lm, set(trained.values())), logits

    def _first_order(self) -> tuple[Tensor, Tensor]:
        head, rates, adapted = _head(self.meta_lm), self.meta_lm.inner_rates, self.parameters()
        offsets = rates(self.copies.gradient_sums, self.rate) if rates else {}

        def substitute(originals: Mapping[str, Tensor]) -> Parameters:
            values = straight_through(originals, adapted)
            return {name: value + offsets[name] for name, value in values.items()} if offsets else values

        if self.query.hidden is not None:
            # Partitioned parameters are whole only inside their module, which passes them on.
            made = substitute(self.initial) if head.is_made_anew else {}
            logits = head(self.query.hidden, lambda own: made or substitute(own), self.query.columns)
        else:
            logits = self._logits(substitute(self.initial), self.query)
        loss = cross_entropy(logits, self.query.labels)
        made_from = [self.meta_lm.term_heads[WINDOWS]] if head.is_made_anew else []
        parts = [self.meta_lm.decoder.model, head, *([rates] if rates else []), *made_from]
        used = {value for part in parts for value in part.parameters()}
        return with_zero_gradients(loss, self.meta_lm, used), logits

    def _logits(self, parameters: Parameters, examples: ExampleBatch) -> Tensor:
        """Class logits with given parameters, from the hidden states if they are known, else from the tokens."""
        if examples.hidden is not None:
            return _head(self.meta_lm).logits(examples.hidden, parameters, examples.columns)
        return functional_call(
            self.meta_lm, parameters, (examples.windows, examples.columns, examples.centre)
        )


class CompiledCopies(AdaptedCopies):
    """Adapts the episode head alone, by a compiled inner step without learned rates (`EpisodeHead.inner_step`)."""

    @cached_property
    def _present(self) -> Parameters:
        """phi_t as the compiled step left it; phi_0 before the first one."""
        torch.compiler.cudagraph_mark_step_begin()
        return super().parameters()

    def parameters(self) -> Parameters:
        """phi_t by name. A CUDA graph writes its results to the same memory in each run, so that they are copied."""
        return {name: value.clone() for name, value in self._present.items()}

    def step(self) -> tuple[Tensor, Tensor]:
        """See `Adaptation`."""
        assert self.meta_lm.compiled_inner_step is not None
        support = self.support
        self._present, loss, logits = self.meta_lm.compiled_inner_step(
            self._present, support.hidden, support.labels, self.rate, support.columns
        )
        return loss.clone(), logits


def initial_head(meta_lm: MetaLM, states: Tensor, support: ExampleBatch) -> LinearHead:
    """The classifier that an episode makes anew from its support states [n, d]; K = 1."""
    examples = StateExamples(
        states[None], support.labels[None], torch.ones_like(support.labels[None], dtype=states.dtype)
    )
    made: InitialHead = meta_lm.term_heads[WINDOWS]  # type: ignore[assignment]
    return made.start(examples, support.classes[None])


def _head(meta_lm: MetaLM) -> EpisodeHead:
    assert meta_lm.episode_head is not None
    return meta_lm.episode_head


def _compute_states(
    meta_lm: MetaLM, support: ExampleBatch, query: ExampleBatch, meta: MetaConfig
) -> Tensor | None:
    """Scope head: the hidden states of both sides, once, since the inner loop does not change the decoder.

    Returns: the support states [n, d] at the initial parameters, if the initial head is made from them; with gradient.
    """
    is_made_anew, states = _head(meta_lm).is_made_anew, None
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
