"""Next-token cross-entropy that never holds the [tokens, vocabulary] logits.

At the small scales the output layer is most of the work and of the memory. The loss is computed chunk by chunk,
and each chunk's gradient with it, while its logits are still in the cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metapt.models.cost import CHUNK_TOKENS


class _ChunkedCrossEntropy(torch.autograd.Function):
    """`linear_cross_entropy` with its gradients made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        types = hidden.dtype, weight.dtype
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        wants_gradient = any(ctx.needs_input_grad[:2])
        chunk = CHUNK_TOKENS.get(hidden.device.type, 1024)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        if wants_gradient:
            grad_hidden = torch.empty_like(hidden)
            grad_weight = torch.zeros(weight.shape, dtype=types[1], device=weight.device)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = (hidden[part] @ weight.T).float()
            log_z = logits.logsumexp(dim=-1, keepdim=True)
            total += (log_z - logits.gather(1, targets[part, None])).sum()
            if wants_gradient:
                # d loss / d logits = (softmax - one-hot) / tokens
                grad = logits.sub_(log_z).exp_()
                grad[torch.arange(len(grad), device=grad.device), targets[part]] -= 1.0
                grad = grad.div_(len(hidden)).to(dtype)
                grad_hidden[part] = grad @ weight
                grad_weight += grad.T @ hidden[part]
                del grad
            del logits  # else the next chunk's logits are made beside these
        if wants_gradient:
            ctx.save_for_backward(grad_hidden.to(types[0]), grad_weight)
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_loss, grad_weight * grad_loss, None, None


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
