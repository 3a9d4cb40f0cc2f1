"""Next-token cross-entropy that never stores the full [tokens, vocabulary] logits.

At the small scales the output layer takes most of the computation and of the memory. The loss and its gradient are
computed chunk by chunk. The logits of a chunk are overwritten by their gradient, a few rows at a time while these are
in the cache. Buffers are allocated once per call, since page faults cost a CPU more than the arithmetic.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metapt.estimate.flops import CHUNK_TOKENS, TILE_TOKENS


class _ChunkedCrossEntropy(torch.autograd.Function):
    """`linear_cross_entropy`; the gradients are computed in the forward pass and scaled in the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        hidden_dtype, weight_dtype = hidden.dtype, weight.dtype
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        needs_gradient = any(ctx.needs_input_grad[:2])
        device = hidden.device
        chunk_tokens = min(len(hidden), CHUNK_TOKENS[device.type])
        tile_tokens = min(chunk_tokens, TILE_TOKENS[device.type])
        logits = torch.empty((chunk_tokens, len(weight)), dtype=dtype, device=device)
        tile = torch.empty((tile_tokens, len(weight)), device=device) if dtype is not torch.float32 else None
        total = torch.zeros((), dtype=torch.float32, device=device)
        if needs_gradient:
            grad_hidden = torch.empty_like(hidden)
            grad_weight = torch.zeros(weight.shape, dtype=weight_dtype, device=device)
            chunk_grad_weight = torch.empty_like(weight) if weight_dtype is not dtype else None
        for start in range(0, len(hidden), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            rows = logits[: len(hidden[chunk])]
            torch.mm(hidden[chunk], weight.T, out=rows)
            tiles = zip(rows.split(tile_tokens), targets[chunk, None].split(tile_tokens), strict=True)
            for tile_logits, tile_targets in tiles:
                total += _replace_by_gradient(tile_logits, tile_targets, tile)
            if needs_gradient:
                torch.mm(rows, weight, out=grad_hidden[chunk])
                if chunk_grad_weight is None:
                    grad_weight.addmm_(rows.T, hidden[chunk])
                else:
                    grad_weight += torch.mm(rows.T, hidden[chunk], out=chunk_grad_weight)
        if needs_gradient:
            ctx.save_for_backward(grad_hidden.to(hidden_dtype), grad_weight)
        ctx.tokens = len(hidden)
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad_loss / ctx.tokens
        return grad_hidden * scale, grad_weight * scale, None, None


def _replace_by_gradient(logits: Tensor, targets: Tensor, buffer: Tensor | None) -> Tensor:
    """Overwrite logits by the gradient of their summed loss, softmax - one-hot, and return that loss in nats.

    Args:
        logits: [n, vocabulary].
        targets: [n, 1], token ids.
        buffer: fp32 [at least n, vocabulary] to compute in, if the logits have lower precision.
    """
    work = logits if buffer is None else buffer[: len(logits)].copy_(logits)
    top, target_logits = work.amax(dim=-1, keepdim=True), work.gather(1, targets)
    torch.softmax(work, dim=-1, out=work)
    # The largest probability is 1 / sum exp(logit - top), so that one pass of exp yields log Z as well.
    loss = (top - work.amax(dim=-1, keepdim=True).log() - target_logits).sum()
    work.scatter_add_(1, targets, torch.full_like(target_logits, -1.0))
    if buffer is not None:
        logits.copy_(work)
    return loss


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Mean cross-entropy of the logits `hidden @ weight.T`, in nats; differentiable once.

    The log-sum-exp and the sum over tokens are computed in fp32 whatever `dtype` is.

    Args:
        hidden: [tokens, d].
        weight: [vocabulary, d].
        targets: [tokens], token ids.
        dtype: precision of the matrix products.
    Returns: fp32 scalar.
    """
    return _ChunkedCrossEntropy.apply(hidden, weight, targets, dtype)


class OutputLayer(nn.Module):
    """The decoder's output layer, which returns logits or, given targets, the loss without storing the logits.

    It is a module because ZeRO 3 gathers a weight only while its module is called.
    """

    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = weight

    def forward(
        self, hidden: Tensor, targets: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Logits, or the mean loss.

        Args:
            hidden: [..., d]; [tokens, d] with targets.
            targets: [tokens], token ids.
            dtype: precision of the matrix products of the loss, by default that of `hidden`.
        Returns: logits [..., vocabulary] without targets, else the mean loss in nats.
        """
        if targets is None:
            return nn.functional.linear(hidden, self.weight)
        return linear_cross_entropy(hidden, self.weight, targets, dtype or hidden.dtype)
