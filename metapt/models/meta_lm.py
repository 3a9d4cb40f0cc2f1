"""The module that is meta-pretrained: a decoder with its output layer, and the episode head."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from metapt.config import MetaConfig, PretrainConfig
from metapt.errors import first_line
from metapt.models.causal_lm import load_causal_lm
from metapt.models.decoder import build_decoder
from metapt.models.episode_head import AnewHead, EpisodeHead, normalized_states
from metapt.models.initial_model import load_initial_decoder
from metapt.models.inner_rates import InnerRates
from metapt.models.packed_windows import PackedWindows

HEAD = "episode_head."
"""Prefix of the names of the episode head's weights in a MetaLM."""
WINDOWS = "windows"
"""Name of the initial head of episodes on windows among `MetaLM.term_heads`."""
COMPILER_FAILED = (
    "warning: torch.compile fails ({}); the run is not compiled, with the same results up to rounding"
)
T = TypeVar("T")
SLOW_BF16 = "warning: this CPU emulates bf16 products in fp32, at a third of the speed or less; train.precision=fp32 is faster"


def slow_in_bf16(device: torch.device) -> bool:
    """Whether a device is a CPU without bf16 instructions (AMX or AVX512-BF16 on x86, BF16 on ARM).

    False if torch is too old to report them.
    """
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return not any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))


class MetaLM(nn.Module):
    """A decoder with an optional episode head and optional learned inner rates.

    Parameters are always fp32. Mixed precision is torch.autocast around the decoder: matrix products run in bf16;
    weights, gradients, residual stream, norms, losses and the episode head stay fp32. Adapted copies need no special
    treatment.

    The decoder's initial weights come from their own random stream, so they are the same without an episode head.

    Args:
        decoder: the language model.
        episode_head: None in a run without episodes.
        precision: of the decoder's matrix products, fp32 or bf16.
    """

    def __init__(self, decoder: PreTrainedModel, episode_head: EpisodeHead | None, precision: str):
        super().__init__()
        self.decoder = decoder
        self.episode_head = episode_head
        self.inner_rates: InnerRates | None = None
        self.term_heads = nn.ModuleDict()
        """What the weighted terms and the initial head of episodes on windows learn beside the decoder (metapt/meta/terms.py)."""
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.compiled_shape: tuple[int, int] | None = None
        """Shape [n, T] of the tokens whose decoder blocks run compiled; blocks run eagerly on all others."""
        self.compiled_inner_step: Callable[..., tuple[dict[str, Tensor], Tensor, Tensor]] | None = None
        self._is_compiled = False
        self._gather: Callable[[Sequence[Tensor]], AbstractContextManager[Any]] | None = None

    def hidden_states(self, tokens: Tensor, **options: Any) -> Tensor:
        """Last hidden states after the final norm, fp32 [n, T, d], of tokens [n, T].

        Args:
            tokens: int64 [n, T].
            options: passed to the decoder.
        """

        def run(context: AbstractContextManager[Any]) -> Tensor:
            with context, torch.autocast(tokens.device.type, torch.bfloat16, enabled=is_bf16):
                return self.decoder.model(input_ids=tokens, use_cache=False, **options).last_hidden_state

        is_bf16 = self.dtype is torch.bfloat16
        if options or tokens.shape != self.compiled_shape:
            return run(self.run_eagerly())
        return self._compiled_or_eager(lambda: run(nullcontext()), lambda: run(self.run_eagerly()))

    def lm_loss(self, sequences: Tensor) -> Tensor:
        """Mean next-token cross-entropy in nats of sequences [n, T + 1]; all tokens but the first are targets."""
        return self.lm_loss_of(self.hidden_states(sequences[:, :-1]), sequences[:, 1:])

    def lm_loss_of(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Mean next-token cross-entropy in nats of hidden states [n, T, d] and targets [n, T]."""

        def run(is_compiled: bool) -> Tensor:
            return self.decoder.lm_head(hidden.flatten(0, 1), targets.flatten(), self.dtype, is_compiled)

        if targets.shape != self.compiled_shape:
            return run(False)
        return self._compiled_or_eager(lambda: run(True), lambda: run(False))

    def prediction_states(self, windows: PackedWindows) -> Tensor:
        """Hidden states at the prediction positions of n windows, fp32 [n, d]."""
        options = {"position_ids": windows.position_ids, "groups": windows.groups}
        return self.hidden_states(windows.tokens, **options)[0, windows.prediction_indices]

    def forward(
        self, windows: PackedWindows, columns: Tensor | None = None, support: PackedWindows | None = None
    ) -> Tensor:
        """Class logits [n, N] of an episode's windows.

        Args:
            columns: as in `EpisodeHead.logits`.
            support: windows on whose mean state those of `windows` are centred; None: raw states.
        """
        if self.episode_head is None:
            raise RuntimeError("a MetaLM without an episode head has no classes")
        states = self.prediction_states(windows)
        if support is not None:
            with torch.no_grad():
                mean = (states if support is windows else self.prediction_states(support)).mean(dim=0)
            states = normalized_states(states, mean)
        return self.episode_head(states, columns=columns)

    def inner_loop_parameters(self, meta: MetaConfig) -> dict[str, Tensor]:
        """What the inner loop adapts under `meta.scope`; the output layer is never part of it.

        Returns: tensors by their names in the episode head for scope head, else by their names in this module.
        """
        head = self.episode_head.weights() if self.episode_head else {}
        if meta.scope == "head":
            return head
        prefixes: tuple[str, ...] = ("decoder.model.",)
        if meta.scope == "last_n":
            num_layers = len(self.decoder.model.layers)
            blocks = range(num_layers - meta.last_n, num_layers)
            layers = [f"decoder.model.layers.{block}." for block in blocks]
            prefixes = ("decoder.model.norm.", *layers)
        found = {name: value for name, value in self.named_parameters() if name.startswith(prefixes)}
        return found | {f"{HEAD}{name}": value for name, value in head.items()}

    def inner_rate(self, meta: MetaConfig) -> float:
        """The rate alpha of the inner loop: given, or c N / (T d) for states of width d."""
        if meta.inner_lr is not None:
            return meta.inner_lr
        return meta.rate_scale * meta.n_way / (max(1, meta.inner_steps) * self.decoder.config.hidden_size)

    def compile_parts(self, shape: tuple[int, int], backend: str = "inductor") -> None:
        """Compile each decoder block in place, so that blocks share one compilation and keep their names.

        Compiled code is for micro-batches alone, which all have the same shape: windows of episodes have many lengths, and
        a graph for each would be compiled. The inner step of scope head is compiled as well. On a GPU it becomes a CUDA
        graph, since launching its kernels takes longer than running them.

        Args:
            shape: [n, T] of a micro-batch.
            backend: of torch.compile.
        """
        self._is_compiled, self.compiled_shape = True, shape
        # Compile the backward pass with the forward pass, so that a failure can be answered by running both eagerly.
        torch._functorch.config.force_non_lazy_backward_lowering = True
        for block in self.decoder.model.layers:
            block.compile(fullgraph=True, dynamic=False, backend=backend)
        self.decoder.lm_head.compile_loss(backend)
        if self.episode_head:
            inner_step = self.episode_head.inner_step
            options: dict[str, Any] = {"mode": "reduce-overhead"} if backend == "inductor" else {}
            compiled = torch.compile(inner_step, fullgraph=True, backend=backend, **options)
            self.compiled_inner_step = lambda *inputs: self._compiled_or_eager(
                lambda: compiled(*inputs), lambda: inner_step(*inputs)
            )

    def run_eagerly(self) -> AbstractContextManager[Any]:
        """A context in which no compiled code runs, so that hooks of modules within blocks are called."""
        return torch.compiler.set_stance("force_eager") if self._is_compiled else nullcontext()

    def _compiled_or_eager(self, compiled: Callable[[], T], eager: Callable[[], T]) -> T:
        """The result of compiled code, or of the same code run eagerly once the compiler has failed.

        A signal that stops a run may also end the compiler, a process of its own.
        """
        if self.compiled_shape is None:
            return eager()
        try:
            return compiled()
        except torch._dynamo.exc.TorchDynamoException as error:
            self.compiled_shape = None
            print(COMPILER_FAILED.format(first_line(error)), file=sys.stderr, flush=True)
            return eager()

    @property
    def is_partitioned(self) -> bool:
        """Whether parameters are gathered only while their module is called (ZeRO 3)."""
        return self._gather is not None

    def set_partitioned(self, gather: Callable[[Sequence[Tensor]], AbstractContextManager[Any]]) -> None:
        """Declare that parameters are partitioned from now on.

        Args:
            gather: context manager factory within which the given parameters are whole on every rank.
        """
        self._gather = gather

    def gathered(self, parameters: Mapping[str, Tensor]) -> AbstractContextManager[Any]:
        """A context in which the parameters are whole on every rank; all ranks must enter it."""
        partitioned = [value for value in parameters.values() if isinstance(value, nn.Parameter)]
        return self._gather(partitioned) if self._gather and partitioned else nullcontext()


def build_meta_lm(config: PretrainConfig, *, eos_id: int | None = None) -> MetaLM:
    """A MetaLM with the weights that `init` names or else random ones, without an episode head if meta.rho is 0."""
    model, meta, seed = config.model, config.meta, config.train.seed
    episode_head = build_episode_head(config) if meta.rho > 0 else None
    if config.init:
        decoder = load_initial_decoder(config.init, model.vocab_size)
    else:
        decoder = build_decoder(model, seed, eos_id=eos_id)
    meta_lm = MetaLM(decoder, episode_head, config.train.precision)
    if meta.rho > 0 and meta.algorithm == "meta_sgd":
        meta_lm.inner_rates = InnerRates(meta_lm.inner_loop_parameters(meta))
    return meta_lm


def load_meta_lm(folder: Path, precision: str) -> MetaLM:
    """The MetaLM of a model folder, without an episode head, in evaluation mode. Raises as `load_causal_lm`."""
    return MetaLM(load_causal_lm(folder), None, precision).eval()


def build_episode_head(config: PretrainConfig) -> EpisodeHead:
    """The head of the episodes on windows that `meta.initial_head` and `meta.task` describe."""
    model, meta = config.model, config.meta
    if meta.makes_head_anew:
        return AnewHead(model.hidden_size, meta.n_way)
    return EpisodeHead(
        model.hidden_size,
        meta.head_hidden,
        config.episode_head_outputs,
        meta.head_layers,
        meta.head_dropout,
        config.train.seed,
        per_class=meta.initial_head == "persistent",
    )
