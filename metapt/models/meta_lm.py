"""What is pretrained: a decoder, its output layer, and the classifier of the episodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from metapt.config import MetaConfig, PretrainConfig
from metapt.models.decoder import EpisodeHead, build_decoder
from metapt.models.inner_rates import InnerRates
from metapt.models.packed_windows import Windows

SLOW_BF16 = "this processor multiplies bf16 by way of fp32, at a third of its speed or less: train.precision=fp32 is faster"


def slow_in_bf16(device: torch.device) -> bool:
    """Whether a device is a processor without instructions for products in bf16 (AMX, AVX512-BF16; on ARM, BF16).

    False where torch is too old to tell.
    """
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    has = torch.cpu.get_capabilities()
    return not any(has.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))


class MetaLM(nn.Module):
    """A decoder with an episode head. Parameters are fp32 always; `precision` is that of the decoder's products.

    Mixed precision is torch.autocast around the decoder: weights, gradients, residual stream, norms, losses and
    the head stay fp32, matrix products run in bf16. An adapted copy is then nothing special.

    The decoder's weights come from a stream of their own, so that a run without episodes (`head` is None)
    starts from the same ones.
    """

    def __init__(self, decoder: LlamaForCausalLM, head: EpisodeHead | None, precision: str):
        super().__init__()
        self.decoder = decoder
        self.head = head
        self.rates: InnerRates | None = None
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.compiled = False
        self.inner_step: Callable[..., tuple[dict[str, Tensor], Tensor, Tensor]] | None = None
        self._gather: Callable[[Sequence[Tensor]], AbstractContextManager[Any]] | None = None

    def states(self, tokens: Tensor, **options: Any) -> Tensor:
        """Last hidden states, fp32 [n, T, d], of token windows [n, T]. Options go to the decoder."""
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.dtype is torch.bfloat16):
            return self.decoder.model(input_ids=tokens, use_cache=False, **options).last_hidden_state

    def lm_loss(self, sequences: Tensor) -> Tensor:
        """Mean next-token cross-entropy, nats, of sequences [n, T + 1] (every token but the first is a target)."""
        states, targets = self.states(sequences[:, :-1]), sequences[:, 1:]
        return self.decoder.lm_head(states.flatten(0, 1), targets.flatten(), self.dtype)

    def states_read(self, windows: Windows) -> Tensor:
        """The states of n windows that are read, fp32 [n, d]."""
        laid = {"position_ids": windows.places, "groups": windows.groups}
        return self.states(windows.tokens, **laid)[0, windows.reads]

    def forward(self, windows: Windows) -> Tensor:
        """Class logits [n, N] of an episode's windows."""
        if self.head is None:
            raise RuntimeError("a meta_lm without an episode head cannot classify")
        return self.head(self.states_read(windows))

    def adaptable(self, meta: MetaConfig) -> dict[str, nn.Parameter]:
        """The parameters that the inner loop adapts, by scope; the output layer takes no part in an episode.

        Names are the head's own under scope head, the meta_lm's otherwise.
        """
        if meta.scope == "head":
            return dict(self.head.named_parameters()) if self.head else {}
        prefixes: tuple[str, ...] = ("head.", "decoder.model.")
        if meta.scope == "last_n":
            blocks = len(self.decoder.model.layers)
            last = range(blocks - meta.last_n, blocks)
            prefixes = (
                "head.",
                "decoder.model.norm.",
                *(f"decoder.model.layers.{block}." for block in last),
            )
        return {name: value for name, value in self.named_parameters() if name.startswith(prefixes)}

    def compile_parts(self) -> None:
        """The decoder's blocks go through torch.compile, one by one: they share a compilation, and names stay.

        So does the inner step of scope head, which on a GPU becomes a CUDA graph: its kernels are shorter than their launches.
        """
        self.compiled = True
        for block in self.decoder.model.layers:
            block.compile(dynamic=True)
        if self.head:
            self.inner_step = torch.compile(self.head.inner_step, mode="reduce-overhead", fullgraph=True)

    @property
    def partitioned(self) -> bool:
        """Whether parameters are empty but during the calls of their modules (ZeRO 3)."""
        return self._gather is not None

    def partition(self, gather: Callable[[Sequence[Tensor]], AbstractContextManager[Any]]) -> None:
        """Tells that parameters are partitioned from now on; within `gather(parameters)` they are whole."""
        self._gather = gather

    def whole(self, parameters: Mapping[str, Tensor]) -> AbstractContextManager[Any]:
        """Within this context the parameters have their values on every rank; all ranks enter it."""
        return self._gather(list(parameters.values())) if self._gather and parameters else nullcontext()


def build_meta_lm(config: PretrainConfig, *, eos_id: int | None = None) -> MetaLM:
    """A freshly initialised meta_lm; without an episode head if meta.rho is 0."""
    model, meta, seed = config.model, config.meta, config.train.seed
    head = None
    if meta.rho > 0:
        head = EpisodeHead(
            model.hidden_size, meta.head_hidden, meta.n_way, meta.head_layers, meta.head_dropout, seed
        )
    meta_lm = MetaLM(build_decoder(model, seed, eos_id=eos_id), head, config.train.precision)
    if config.train.compile:
        meta_lm.compile_parts()
    if meta.rho > 0 and meta.algorithm == "meta_sgd":
        meta_lm.rates = InnerRates(meta_lm.adaptable(meta))
    return meta_lm
