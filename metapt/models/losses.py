"""Next-token cross-entropy that never holds the [tokens, vocabulary] logits.

At the small scales the output layer is most of the work and of the memory. The loss is computed chunk by chunk,
and each chunk's gradient with it. A chunk's logits become their gradient in place, a few rows at a time, while these
are in the cache; the buffers are made once, since fresh pages cost a CPU more than the arithmetic on them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metapt.estimate.flops import CHUNK_TOKENS, TILE_TOKENS


class _ChunkedCrossEntropy(torch.autograd.Function):
    """`linear_cross_entropy` with its gradients made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """The mean loss; its gradients are kept for `backward`, which only scales them."""
        types = hidden.dtype, weight.dtype
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        wants_gradient = any(ctx.needs_input_grad[:2])
        device = hidden.device
        chunk = min(len(hidden), CHUNK_TOKENS[device.type])
        logits = torch.empty((chunk, len(weight)), dtype=dtype, device=device)
        tile_tokens = min(chunk, TILE_TOKENS[device.type])
        tile = torch.empty((tile_tokens, len(weight)), device=device) if dtype is not torch.float32 else None
        total = torch.zeros((), dtype=torch.float32, device=device)
        if wants_gradient:
            grad_hidden = torch.empty_like(hidden)
            grad_weight = torch.zeros(weight.shape, dtype=types[1], device=device)
            share = torch.empty_like(weight) if types[1] is not dtype else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            rows = logits[: len(hidden[part])]
            torch.mm(hidden[part], weight.T, out=rows)
            for own, wanted in zip(
                rows.split(tile_tokens), targets[part, None].split(tile_tokens), strict=True
            ):
                total += _to_gradient(own, wanted, tile)
            if wants_gradient:
                torch.mm(rows, weight, out=grad_hidden[part])
                if share is None:
                    grad_weight.addmm_(rows.T, hidden[part])
                else:
                    grad_weight += torch.mm(rows.T, hidden[part], out=share)
        if wants_gradient:
            ctx.save_for_backward(grad_hidden.to(types[0]), grad_weight)
        ctx.tokens = len(hidden)
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad_loss / ctx.tokens
        return grad_hidden * scale, grad_weight * scale, None, None


def _to_gradient(logits: Tensor, targets: Tensor, buffer: Tensor | None) -> Tensor:
    """Turns logits [n, vocabulary] into the derivative of their summed loss, softmax - one-hot, and returns that loss.

    In fp32, within `buffer` [at least n, vocabulary] if the logits are coarser. targets: [n, 1].
    """
    work = logits if buffer is None else buffer[: len(logits)].copy_(logits)
    top, wanted = work.amax(dim=-1, keepdim=True), work.gather(1, targets)
    torch.softmax(work, dim=-1, out=work)
    # The largest probability is 1 / sum exp(logit - top), so that one pass of exp gives log Z as well.
    loss = (top - work.amax(dim=-1, keepdim=True).log() - wanted).sum()
    work.scatter_add_(1, targets, torch.full_like(wanted, -1.0))
    if buffer is not None:
        logits.copy_(work)
    return loss


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Mean cross-entropy of `hidden @ weight.T` against `targets`, in nats.

    The log-sum-exp and the sum over tokens are in fp32 whatever `dtype` is. Differentiable once.

    Args:
        hidden: [tokens, d].
        weight: [vocabulary, d].
        targets: [tokens], class indices.
        dtype: of the matrix products.
    Returns: fp32 scalar.
    """
    return _ChunkedCrossEntropy.apply(hidden, weight, targets, dtype)


class OutputLayer(nn.Module):
    """The decoder's last layer: logits, or the loss against targets without the logits.

    A module of its own, since under ZeRO 3 its weight is whole only within a call of the module that has it.
    """

    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = weight

    def forward(
        self, hidden: Tensor, targets: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Logits [..., vocabulary]; with targets [tokens], the mean loss of hidden [tokens, d] in nats."""
        if targets is None:
            return nn.functional.linear(hidden, self.weight)
        return linear_cross_entropy(hidden, self.weight, targets, dtype or hidden.dtype)
