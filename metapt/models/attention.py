"""Causal attention in bf16 on a CPU, where torch's flash kernel is slow (benchmarks/README.md).

    O = softmax(Q K^T / sqrt(head_dim)) V, each query seeing the keys up to its own

Tiles of a few queries against all keys that they see: products in bf16 accumulated in fp32, scores and
probabilities rounded to bf16, the softmax itself in fp32: the arithmetic of transformers' eager attention. Scores
never exist whole; the backward pass makes them again, tile by tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "metapt_tiled"  # the implementation, as transformers knows it
QUERIES = 64  # of a tile
SCORES = 2**20  # of a tile, about: windows are put together up to it


class _Tiled(torch.autograd.Function):
    """`causal_attention`, without a graph over the tiles."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scaling = scaling
        windows, heads, length, width = query.shape
        out = query.new_empty(windows, length, heads, width).transpose(1, 2)
        grouped = _grouped(out, key)
        for tile in _tiles(query):
            attention, _, _, values = _attention(tile, query, key, value, scaling)
            _queries(grouped, tile).copy_(torch.bmm(attention, values).view(_queries(grouped, tile).shape))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of query, key and value, from scores that are made again tile by tile; those of key and value add up in fp32."""
        query, key, value = ctx.saved_tensors
        grad_query = torch.empty_like(query)
        grad_key, grad_value = (torch.zeros_like(side, dtype=torch.float32) for side in (key, value))
        grouped_grad, grouped_out = _grouped(grad, key), _grouped(grad_query, key)
        for tile in _tiles(query):
            attention, queries, keys, values = _attention(tile, query, key, value, ctx.scaling)
            own = _queries(grouped_grad, tile).reshape(queries.shape)
            seen = tile[0], slice(None), slice(tile[1].stop)
            grad_value[seen] += torch.bmm(attention.mT, own).view(grad_value[seen].shape)
            scores = torch.bmm(own, values.mT)
            torch._softmax_backward_data(scores, attention, -1, scores.dtype, grad_input=scores)
            grad_key[seen] += torch.bmm(scores.mT, queries).view(grad_key[seen].shape)
            target = _queries(grouped_out, tile)
            target.copy_(torch.bmm(scores, keys).mul_(ctx.scaling).view(target.shape))
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attention of every query over its own and earlier keys. Differentiable once.

    Args:
        query: [n, heads, T, head_dim]; key, value: [n, kv_heads, T, head_dim], each shared by heads / kv_heads in turn.
        scaling: of the scores.
    Returns: [n, heads, T, head_dim], stored as [n, T, heads, head_dim].
    """
    return _Tiled.apply(query, key, value, scaling)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    groups: Sequence[tuple[int, int]] = (),
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: tiles where they pay, on a CPU under bf16, and torch's own attention elsewhere.

    A compiled block has torch's own too: the tiles cannot be traced.

    groups: windows and their length, of windows that are laid end to end in one row (metapt/models/packed_windows.py);
        none: each row is a window.
    """
    if groups:
        sides = (_by_group(side, groups) for side in (query, key, value))
        parts = [
            attention_forward(module, queries, keys, values, attention_mask, **options)[0].flatten(0, 1)
            for queries, keys, values in zip(*sides, strict=True)
        ]
        return torch.cat(parts)[None], None
    device = query.device.type
    if device != "cpu" or not torch.is_autocast_enabled(device) or torch.compiler.is_compiling():
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    query, key, value = (side.to(torch.get_autocast_dtype(device)) for side in (query, key, value))
    with torch.autocast(device, enabled=False):
        return causal_attention(query, key, value, options["scaling"]).transpose(1, 2), None


# Without a mask function of its own name, transformers passes no mask, and none is needed: windows are whole.
AttentionInterface.register(NAME, attention_forward)


def _by_group(row: Tensor, groups: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Of one row [1, heads, tokens, head_dim] the groups, each [windows, heads, length, head_dim]."""
    parts = row[0].split([windows * length for windows, length in groups], dim=1)
    return [part.unflatten(1, group).transpose(0, 1) for part, group in zip(parts, groups, strict=True)]


Tile = tuple[slice, slice]  # of windows, of queries


def _tiles(query: Tensor) -> Iterator[Tile]:
    windows, heads, length, _ = query.shape
    for start in range(0, length, QUERIES):
        stop = min(start + QUERIES, length)
        together = max(1, SCORES // (heads * (stop - start) * stop))
        for first in range(0, windows, together):
            yield slice(first, min(first + together, windows)), slice(start, stop)


def _grouped(side: Tensor, key: Tensor) -> Tensor:
    """Queries, or what has their shape, by the key head that they share: [n, kv_heads, group, T, head_dim]."""
    return side.unflatten(1, (key.shape[1], -1))


def _queries(grouped: Tensor, tile: Tile) -> Tensor:
    return grouped[tile[0], :, :, tile[1]]


def _attention(
    tile: Tile, query: Tensor, key: Tensor, value: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Probabilities [m, rows, keys] of a tile, and its queries (scaled), keys and values; m windows and key heads,
    rows the queries of all heads of a group."""
    windows, span = tile
    size = span.stop - span.start
    queries = _queries(_grouped(query, key), tile).flatten(2, 3).flatten(0, 1) * scaling
    keys, values = (side[windows, :, : span.stop].flatten(0, 1) for side in (key, value))
    scores = torch.bmm(queries, keys.mT)
    later = torch.ones(size, size, dtype=torch.bool, device=scores.device).triu(1)
    scores.unflatten(1, (-1, size))[..., span.start :].masked_fill_(later, float("-inf"))
    return torch.softmax(scores, dim=-1, out=scores), queries, keys, values
