"""Next-token cross-entropy that never stores the full [tokens, vocabulary] logits.

At the small scales the output layer takes most of the computation and of the memory. The loss and its gradient are
computed chunk by chunk. The logits of a chunk are overwritten by their gradient, a few rows at a time while these are
in the cache. Buffers are allocated once per call, since page faults cost a CPU more than the arithmetic. Compiled
(`OutputLayer.compile_loss`), the logits of a chunk are read twice and written once, without fp32 copies.

torch's own chunked F.linear_cross_entropy moves more bytes, and in bf16 rounds the loss to bf16 and adds up the gradient
of the weight in bf16 (docs/gpu.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metapt.estimate.flops import CHUNK_TOKENS, TILE_TOKENS

Replace = Callable[[Tensor, Tensor], Tensor]
"""`replace_by_gradient`, compiled."""


class _ChunkedCrossEntropy(torch.autograd.Function):
    """`linear_cross_entropy`; the gradients are computed in the forward pass and scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        dtype: torch.dtype,
        compiled: Replace | None,
    ) -> Tensor:
        hidden_dtype, weight_dtype = hidden.dtype, weight.dtype
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        needs_gradient = any(ctx.needs_input_grad[:2])
        device = hidden.device
        chunk_tokens = min(len(hidden), CHUNK_TOKENS[device.type])
        tile_tokens = min(chunk_tokens, TILE_TOKENS[device.type])
        logits = torch.empty((chunk_tokens, len(weight)), dtype=dtype, device=device)
        has_buffer = dtype is not torch.float32 and compiled is None
        buffer = torch.empty((tile_tokens, len(weight)), device=device) if has_buffer else None
        total = torch.zeros((), dtype=torch.float32, device=device)
        if needs_gradient:
            grad_hidden = torch.empty_like(hidden)
            grad_weight = torch.zeros(weight.shape, dtype=weight_dtype, device=device)
            chunk_grad_weight = torch.empty_like(weight) if weight_dtype is not dtype else None
        for start in range(0, len(hidden), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            rows = logits[: len(hidden[chunk])]
            torch.mm(hidden[chunk], weight.T, out=rows)
            if compiled is not None:
                total += compiled(rows, targets[chunk, None])
            else:
                tiles = zip(rows.split(tile_tokens), targets[chunk, None].split(tile_tokens), strict=True)
                for tile_logits, tile_targets in tiles:
                    total += _replace_in_passes(tile_logits, tile_targets, buffer)
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
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad_loss / ctx.tokens
        return grad_hidden * scale, grad_weight * scale, None, None, None


def replace_by_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """Overwrite logits by the gradient of their summed loss, softmax - one-hot, and return that loss in nats.

    Meant to be compiled: the compiler fuses it into one pass that reads the logits for log Z, and one that reads them again and
    writes their gradient.

    Args:
        logits: [n, vocabulary].
        targets: [n, 1], token ids.
    """
    values = logits.float()
    log_z = values.logsumexp(dim=-1, keepdim=True)
    loss = (log_z - values.gather(1, targets)).sum()
    columns = torch.arange(logits.shape[1], device=logits.device)
    logits.copy_(torch.where(columns == targets, (values - log_z).exp() - 1.0, (values - log_z).exp()))
    return loss


def _replace_in_passes(logits: Tensor, targets: Tensor, buffer: Tensor | None) -> Tensor:
    """`replace_by_gradient` without a compiler, in as few operations as possible.

    Args:
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


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, compiled: Replace | None = None
) -> Tensor:
    """Mean cross-entropy of the logits `hidden @ weight.T`, in nats; differentiable once.

    The log-sum-exp and the sum over tokens are computed in fp32 whatever `dtype` is.

    Args:
        hidden: [tokens, d].
        weight: [vocabulary, d].
        targets: [tokens], token ids.
        dtype: precision of the matrix products.
        compiled: `replace_by_gradient`, compiled; None: not compiled.
    Returns: fp32 scalar.
    """
    return _ChunkedCrossEntropy.apply(hidden, weight, targets, dtype, compiled)


class OutputLayer(nn.Module):
    """The decoder's output layer, which returns logits or, given targets, the loss without storing the logits.

    It is a module because ZeRO 3 gathers a weight only while its module is called.
    """

    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = weight
        self._compiled: Replace | None = None

    def compile_loss(self, backend: str = "inductor") -> None:
        """Compile the part of the loss between the matrix products, by a backend of torch.compile."""
        self._compiled = torch.compile(replace_by_gradient, fullgraph=True, dynamic=False, backend=backend)

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor | None = None,
        dtype: torch.dtype | None = None,
        is_compiled: bool = True,
    ) -> Tensor:
        """Logits, or the mean loss.

        Args:
            hidden: [..., d]; [tokens, d] with targets.
            targets: [tokens], token ids.
            dtype: precision of the matrix products of the loss, by default that of `hidden`.
            is_compiled: whether to use the compiled loss, if there is one (`compile_loss`).
        Returns: logits [..., vocabulary] without targets, else the mean loss in nats.
        """
        if targets is None:
            return nn.functional.linear(hidden, self.weight)
        compiled = self._compiled if is_compiled else None
        return linear_cross_entropy(hidden, self.weight, targets, dtype or hidden.dtype, compiled)
