"""Tiled causal attention in bf16 on a CPU, where torch's flash kernel is slow (benchmarks/README.md).

    O = softmax(Q K^T / sqrt(head_dim)) V, where each query attends to its own and earlier positions

A tile is a block of queries with all keys that they attend to. Matrix products are in bf16 with fp32 accumulation,
scores and probabilities are rounded to bf16, and the softmax is computed in fp32: the arithmetic of transformers'
eager attention. The full score matrix is never stored; the backward pass recomputes it tile by tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "metapt_tiled"
"""The name under which transformers knows this attention."""
TILE_QUERIES = 64
"""Query positions per tile."""
TILE_SCORES = 2**20
"""Approximate number of scores per tile; sequences are batched up to it."""


class _TiledAttention(torch.autograd.Function):
    """`causal_attention` as one autograd node."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scaling = scaling
        sequences, heads, length, head_dim = query.shape
        out = query.new_empty(sequences, length, heads, head_dim).transpose(1, 2)
        grouped = _group_by_kv_head(out, key)
        for tile in _tiles(query):
            attention, _, _, values = _attention(tile, query, key, value, scaling)
            target = _tile_queries(grouped, tile)
            target.copy_(torch.bmm(attention, values).view(target.shape))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of query, key and value from recomputed scores; those of key and value accumulate in fp32."""
        query, key, value = ctx.saved_tensors
        grad_query = torch.empty_like(query)
        grad_key, grad_value = (torch.zeros_like(tensor, dtype=torch.float32) for tensor in (key, value))
        grouped_grad, grouped_grad_query = _group_by_kv_head(grad, key), _group_by_kv_head(grad_query, key)
        for tile in _tiles(query):
            attention, queries, keys, values = _attention(tile, query, key, value, ctx.scaling)
            grad_out = _tile_queries(grouped_grad, tile).reshape(queries.shape)
            visible = tile.sequences, slice(None), slice(tile.queries.stop)
            grad_value[visible] += torch.bmm(attention.mT, grad_out).view(grad_value[visible].shape)
            grad_scores = torch.bmm(grad_out, values.mT)
            torch._softmax_backward_data(
                grad_scores, attention, -1, grad_scores.dtype, grad_input=grad_scores
            )
            grad_key[visible] += torch.bmm(grad_scores.mT, queries).view(grad_key[visible].shape)
            target = _tile_queries(grouped_grad_query, tile)
            target.copy_(torch.bmm(grad_scores, keys).mul_(ctx.scaling).view(target.shape))
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Causal grouped-query attention, differentiable once.

    Args:
        query: [n, heads, T, head_dim].
        key: [n, kv_heads, T, head_dim]; each key head serves heads / kv_heads consecutive query heads.
        value: [n, kv_heads, T, head_dim].
        scaling: factor of the scores.
    Returns: [n, heads, T, head_dim], with memory layout [n, T, heads, head_dim].
    """
    return _TiledAttention.apply(query, key, value, scaling)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    groups: Sequence[tuple[int, int]] = (),
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention function registered with transformers.

    It is tiled where that is faster, on a CPU under bf16 autocast, and torch's own attention elsewhere, on a GPU with
    repeated key and value heads if that avoids stored scores (`needs_repeated_heads`). A compiled block uses torch's own
    attention, since the tiles cannot be traced.

    Args:
        groups: (number of windows, length) of packed windows (metapt/models/packed_windows.py); if empty, each
            row is one sequence.
    """
    if groups:
        split = (_split_groups(tensor, groups) for tensor in (query, key, value))
        outputs = [
            attention_forward(module, queries, keys, values, attention_mask, **options)[0].flatten(0, 1)
            for queries, keys, values in zip(*split, strict=True)
        ]
        return torch.cat(outputs)[None], None
    device = query.device.type
    is_cast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if is_cast else query.dtype
    if _repeats_heads(device, dtype, tuple(query.shape[1:]), key.shape[1]):
        repeats = query.shape[1] // key.shape[1]
        keys, values = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
        is_causal = query.shape[2] > 1
        out = scaled_dot_product_attention(query, keys, values, is_causal=is_causal, scale=options["scaling"])
        return out.transpose(1, 2).contiguous(), None
    if device != "cpu" or not is_cast or torch.compiler.is_compiling():
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    with torch.autocast(device, enabled=False):
        return causal_attention(query, key, value, options["scaling"]).transpose(1, 2), None


@torch.compiler.assume_constant_result
def _repeats_heads(device: str, dtype: torch.dtype, shape: tuple[int, ...], kv_heads: int) -> bool:
    """`needs_repeated_heads` for query [heads, T, head_dim] on a GPU, whose kernels torch knows; False on a CPU."""
    heads, length, head_dim = shape
    if device != "cuda" or heads == kv_heads:
        return False
    return needs_repeated_heads(device, dtype, heads, kv_heads, length, head_dim)


@cache
def needs_repeated_heads(
    device: str, dtype: torch.dtype, heads: int, kv_heads: int, length: int, head_dim: int
) -> bool:
    """Whether causal attention has a fused kernel only if keys and values are repeated for all query heads.

    Flash attention takes fewer key heads than query heads, but neither fp32 nor old GPUs; memory-efficient attention takes
    both, but needs as many key heads. Without a fused kernel torch repeats the heads all the same, and keeps the scores
    [n, heads, T, T] for the backward pass.
    """
    kernels = torch.backends.cuda

    def is_fused(number: int, *, grouped: bool) -> bool:
        query, key = (
            torch.empty(1, count, length, head_dim, device=device, dtype=dtype) for count in (heads, number)
        )
        params = kernels.SDPAParams(query, key, key, None, 0.0, True, grouped)
        return any(
            can_use(params)
            for can_use in (
                kernels.can_use_flash_attention,
                kernels.can_use_efficient_attention,
                kernels.can_use_cudnn_attention,
            )
        )

    return not is_fused(kv_heads, grouped=True) and is_fused(heads, grouped=False)


# transformers passes no mask to an implementation without a registered mask function. None is needed: no padding.
AttentionInterface.register(NAME, attention_forward)


def _split_groups(row: Tensor, groups: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Split one packed row [1, heads, tokens, head_dim] into groups [windows, heads, length, head_dim]."""
    parts = row[0].split([windows * length for windows, length in groups], dim=1)
    return [part.unflatten(1, group).transpose(0, 1) for part, group in zip(parts, groups, strict=True)]


class _Tile(NamedTuple):
    sequences: slice
    queries: slice


def _tiles(query: Tensor) -> Iterator[_Tile]:
    """The tiles that cover query [n, heads, T, head_dim]."""
    sequences, heads, length, _ = query.shape
    for start in range(0, length, TILE_QUERIES):
        stop = min(start + TILE_QUERIES, length)
        batch = max(1, TILE_SCORES // (heads * (stop - start) * stop))
        for first in range(0, sequences, batch):
            yield _Tile(slice(first, min(first + batch, sequences)), slice(start, stop))


def _group_by_kv_head(tensor: Tensor, key: Tensor) -> Tensor:
    """View [n, heads, T, head_dim] as [n, kv_heads, heads / kv_heads, T, head_dim]."""
    return tensor.unflatten(1, (key.shape[1], -1))


def _tile_queries(grouped: Tensor, tile: _Tile) -> Tensor:
    return grouped[tile.sequences, :, :, tile.queries]


def _attention(
    tile: _Tile, query: Tensor, key: Tensor, value: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention probabilities of a tile, with its scaled queries, its keys and its values.

    Returns: [m, rows, keys], [m, rows, head_dim], [m, keys, head_dim], [m, keys, head_dim], where m is sequences
        times key heads, and rows are the query positions of all query heads that share a key head.
    """
    start, stop = tile.queries.start, tile.queries.stop
    queries = _tile_queries(_group_by_kv_head(query, key), tile).flatten(2, 3).flatten(0, 1) * scaling
    keys, values = (tensor[tile.sequences, :, :stop].flatten(0, 1) for tensor in (key, value))
    scores = torch.bmm(queries, keys.mT)
    future = torch.ones(stop - start, stop - start, dtype=torch.bool, device=scores.device).triu(1)
    scores.unflatten(1, (-1, stop - start))[..., start:].masked_fill_(future, float("-inf"))
    return torch.softmax(scores, dim=-1, out=scores), queries, keys, values
