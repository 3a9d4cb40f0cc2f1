"""Kernels and bytes of a unit of training, counted on fake tensors without computing anything.

Every operation that PyTorch dispatches below autograd and that is not a view counts as one kernel. Its bytes are those of
its inputs (an expanded input counts once) and outputs. Matrix products and attention are counted apart: their time
follows from their FLOPs.

The shapes are those of a GPU: the chunks of the loss, and torch's own attention. The tensors are fake CPU tensors, whose
operations are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.graph import GraphLowering
from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metapt.config import PretrainConfig
from metapt.data.episodes import Episode
from metapt.meta.window_episodes import episode_objective
from metapt.models import attention, losses
from metapt.models.meta_lm import build_meta_lm

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product", "_flash_attention")
SPARSE = ("gather", "scatter_", "scatter_add_", "embedding", "index_select")
FREE = (
    "empty",
    "detach",
    "lift_fresh",
    "_local_scalar_dense",
    "new_empty",
    "empty_like",
    "set_",
    "_unsafe_view",
)


@dataclass
class Counts:
    """Kernels, bytes of all kernels but products, and how often each operation ran."""

    kernels: int = 0
    product_kernels: int = 0
    elementwise_bytes: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    bytes_by_operation: Counter[str] = field(default_factory=Counter)


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not (func.is_view or func.namespace != "aten" or name in FREE):
            self._add(name, _tensors((args, {**(kwargs or {}), "out": None})), _tensors(result))
        return result

    def _add(self, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        counts = self.counts
        counts.kernels += 1
        counts.operations[name] += 1
        if name.startswith(PRODUCTS):
            counts.product_kernels += 1
            return
        if name in SPARSE:  # only the selected elements are read and written
            size = 2 * min(map(_bytes, inputs[-1:] if name.startswith("scatter") else outputs))
        else:
            written = {"copy_"}  # whose first argument is not read
            size = sum(map(_bytes, inputs[name in written :] + outputs))
        counts.elementwise_bytes += size
        counts.bytes_by_operation[name] += size


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """Bytes of the elements of a tensor that are different places in memory."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    elements = 1
    for size, stride in sizes:
        elements *= size if stride else 1
    return elements * tensor.element_size()


def count(work: Callable[[], object]) -> Counts:
    """Kernels and bytes of a call. The tensors it uses should be fake (`on_fake_gpu`)."""
    with _Counter() as counter:
        work()
    return counter.counts


@contextmanager
def on_fake_gpu() -> Iterator[None]:
    """A context in which new tensors are fake, and shapes are chosen as on a GPU."""

    def sdpa(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )

    with (
        mock.patch.object(attention, "causal_attention", sdpa),
        mock.patch.dict(losses.CHUNK_TOKENS, cpu=losses.CHUNK_TOKENS["cuda"]),
        mock.patch.dict(losses.TILE_TOKENS, cpu=losses.TILE_TOKENS["cuda"]),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        yield


def micro_batch(config: PretrainConfig) -> Counts:
    """Counts of the forward and backward pass of a next-token micro-batch that is not the first of its update."""
    with on_fake_gpu():
        meta_lm = build_meta_lm(config)
        sequences = torch.zeros((config.train.micro_batch, config.train.seq_len + 1), dtype=torch.int64)
        meta_lm.lm_loss(sequences).backward()  # gradients exist from now on: the next ones are added to them
        return count(lambda: meta_lm.lm_loss(sequences).backward())


def episode(config: PretrainConfig, task: Episode) -> Counts:
    """Counts of the forward and backward pass of an episode that is not the first of its update."""
    with on_fake_gpu():
        meta_lm = build_meta_lm(config)
        episode_objective(meta_lm, task, config.meta, 0, 0, 0).loss.backward()
        return count(lambda: episode_objective(meta_lm, task, config.meta, 0, 0, 0).loss.backward())


class _Counted(BaseException):
    """Ends a compilation whose kernels have been counted; the compiler catches any Exception."""


def compiled(function: Callable[..., object], *arguments: Tensor) -> Counts:
    """Kernels and bytes that PyTorch's compiler leaves of a function, forward and backward.

    Counted after its fusion of operations for a CPU, which is that for a GPU but for a few cases. No code is generated.
    """
    counts = Counts()

    def count_graph(lowering: GraphLowering) -> None:
        lowering.init_wrapper_code()
        lowering._update_scheduler()
        for node in lowering.scheduler.nodes:
            size = node.get_read_write_buffers_sizes()
            is_product = isinstance(node, ExternKernelSchedulerNode)
            if isinstance(node, NopKernelSchedulerNode) or (is_product and not size):  # parts of a result
                continue
            counts.kernels += 1
            counts.product_kernels += is_product
            counts.elementwise_bytes += 0 if is_product else size
        raise _Counted

    def inner_compile(graph: torch.fx.GraphModule, inputs: Any, **options: Any) -> Any:
        with mock.patch.object(GraphLowering, "compile_to_module", count_graph), suppress(_Counted):
            compile_fx_inner(graph, inputs, **options)
        return graph

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        return compile_fx(graph, inputs, inner_compile=inner_compile)

    torch._dynamo.reset()
    with (
        torch._inductor.config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(force_non_lazy_backward_lowering=True),
    ):
        torch.compile(function, backend=backend, dynamic=False, fullgraph=True)(*arguments)
    torch._dynamo.reset()
    return counts


def compiled_block(config: PretrainConfig, length: int) -> Counts:
    """Counts of the forward and backward pass of the first block, compiled, on one sequence."""
    decoder = build_meta_lm(config).decoder.model
    positions = torch.arange(length)[None]
    states = torch.zeros((1, length, config.model.hidden_size), requires_grad=True)
    angles = decoder.rotary_emb(states, positions)
    with torch.autocast("cpu", torch.bfloat16, enabled=config.train.precision == "bf16"):
        return compiled(
            lambda hidden: decoder.layers[0].forward(
                hidden, position_embeddings=angles, position_ids=positions
            ),
            states,
        )
