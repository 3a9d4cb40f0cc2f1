"""NER heads over per-word emissions: a linear-chain CRF with forbidden transitions, and a softmax per word.

Both heads have the same methods on right-padded batches (emissions [B, T, C], lengths [B]): `log_likelihood`,
`log_marginals`, `log_conditionals` and `decode`. They compute in fp32 whatever the dtype of the emissions (float64
stays float64).

The CRF (Lafferty et al. 2001; Sutton and McCallum 2012, section 4.1):
  log p(y | x) = s(y) - log Z,  s(y) = start[y_1] + sum_t emissions[t, y_t] + sum_t transitions[y_t, y_t+1] + end[y_T]
with s(y) = -inf if y uses a forbidden transition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

FORBIDDEN = float("-inf")


def iob2_transitions(tags: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The transitions that strict IOB2 allows: I-X only after B-X or I-X, and never on the first word.

    Returns: bool [C] for the tag of the first word, bool [C, C] for (tag, next tag).
    """
    can_start = [not tag.startswith("I-") for tag in tags]
    pairs = [
        [starts or previous[1:] == tag[1:] for tag, starts in zip(tags, can_start, strict=True)]
        for previous in tags
    ]
    return torch.tensor(can_start), torch.tensor(pairs)


class LinearChainCRF(nn.Module):
    """A linear-chain CRF. All scores start at zero, so that all allowed sequences are equally likely.

    Args:
        allowed_first: bool [C], tags allowed on the first word.
        allowed_pairs: bool [C, C], allowed pairs (tag, next tag).
    """

    allowed_first: Tensor
    allowed_pairs: Tensor

    def __init__(self, allowed_first: Tensor, allowed_pairs: Tensor):
        super().__init__()
        num_tags = len(allowed_first)
        if allowed_pairs.shape != (num_tags, num_tags):
            raise ValueError(f"{num_tags} tags need allowed_pairs [{num_tags}, {num_tags}]")
        self.start = nn.Parameter(torch.zeros(num_tags))
        self.transitions = nn.Parameter(torch.zeros(num_tags, num_tags))
        self.end = nn.Parameter(torch.zeros(num_tags))
        self.register_buffer("allowed_first", allowed_first, persistent=False)
        self.register_buffer("allowed_pairs", allowed_pairs, persistent=False)

    def log_likelihood(self, emissions: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """Compute log p(tags | emissions) of each sequence, in nats.

        Args:
            emissions: [B, T, C].
            tags: int64 [B, T]; values in the padding are ignored.
            lengths: int64 [B], each in 1..T.
        Returns: [B].
        Raises:
            ValueError: a sequence uses a forbidden transition, or a length is out of range.
        """
        mask = _length_mask(emissions, lengths)
        scores, start, transitions, end = self._scores(emissions)
        tags = tags.masked_fill(~mask, 0)
        steps = transitions[tags[:, :-1], tags[:, 1:]].masked_fill(~mask[:, 1:], 0)
        path = start[tags[:, 0]] + steps.sum(1)
        if torch.isneginf(path.detach()).any():
            raise ValueError("a tag sequence uses a forbidden transition (I-X not after B-X or I-X)")
        last = tags.gather(1, lengths[:, None] - 1).squeeze(1)
        unary = scores.gather(2, tags[:, :, None]).squeeze(2).masked_fill(~mask, 0)
        return path + unary.sum(1) + end[last] - _LogPartition.apply(scores, lengths, start, transitions, end)

    @torch.no_grad()
    def log_marginals(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """Compute log p(y_t = c | emissions), in nats.

        Returns: [B, T, C]; -inf where no allowed sequence has tag c at word t, 0 in the padding.
        """
        mask = _length_mask(emissions, lengths)
        scores, start, transitions, end = self._scores(emissions)
        alpha, _ = _forward(scores, lengths, start, transitions, end)
        beta = _backward(scores, lengths, transitions, end)
        return (alpha + beta).log_softmax(dim=2).transpose(0, 1).masked_fill(~mask[:, :, None], 0)

    @torch.no_grad()
    def log_conditionals(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """Compute log p(y_t+1 = c' | y_t = c, emissions), in nats.

        Given the emissions, the tags form a Markov chain. The probability of any tags on a span follows from these
        conditionals and from `log_marginals` of the first word of the span.

        Returns: [B, T - 1, C, C]; values in the padding are undefined.
        """
        _length_mask(emissions, lengths)
        scores, _, transitions, end = self._scores(emissions)
        beta = _backward(scores, lengths, transitions, end).transpose(0, 1)
        return (transitions + (scores + beta)[:, 1:, None, :]).log_softmax(dim=3)

    @torch.no_grad()
    def decode(self, emissions: Tensor, lengths: Tensor) -> list[list[int]]:
        """Find the most likely tag sequence of each sentence (Viterbi).

        Ties go to the lowest tag, decided from the last word backwards.
        """
        _length_mask(emissions, lengths)
        scores, start, transitions, end = self._scores(emissions)
        by_time = scores.transpose(0, 1)
        best = start + by_time[0]
        pointers = []
        identity = torch.arange(scores.shape[2], device=scores.device)
        for time in range(1, len(by_time)):
            value, pointer = (best[:, :, None] + transitions).max(dim=1)
            active = (time < lengths)[:, None]
            best = torch.where(active, value + by_time[time], best)
            pointers.append(torch.where(active, pointer, identity))
        path = [(best + end).argmax(dim=1)]
        for pointer in reversed(pointers):
            path.append(pointer.gather(1, path[-1][:, None]).squeeze(1))
        rows = torch.stack(path[::-1], dim=1).tolist()
        return [row[:length] for row, length in zip(rows, lengths.tolist(), strict=True)]

    def _scores(self, emissions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Emissions, start, transitions and end in the compute dtype, -inf for what is forbidden."""
        dtype = torch.promote_types(emissions.dtype, torch.float32)
        start = self.start.to(dtype).masked_fill(~self.allowed_first, FORBIDDEN)
        transitions = self.transitions.to(dtype).masked_fill(~self.allowed_pairs, FORBIDDEN)
        return emissions.to(dtype), start, transitions, self.end.to(dtype)


class SoftmaxHead(nn.Module):
    """Tags each word independently: no transitions, no parameters. It may predict an I-X that no B-X precedes."""

    def log_likelihood(self, emissions: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """Sum log softmax(emissions)[tag] over the words; arguments as in LinearChainCRF. [B]."""
        mask = _length_mask(emissions, lengths)
        tags = tags.masked_fill(~mask, 0)
        log_probs = _log_softmax(emissions).gather(2, tags[:, :, None]).squeeze(2)
        return log_probs.masked_fill(~mask, 0).sum(1)

    @torch.no_grad()
    def log_marginals(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """Compute log softmax(emissions), 0 in the padding. [B, T, C]."""
        return _log_softmax(emissions).masked_fill(~_length_mask(emissions, lengths)[:, :, None], 0)

    @torch.no_grad()
    def log_conditionals(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """Compute log p(y_t+1 = c'), which does not depend on y_t. [B, T - 1, C, C]."""
        marginals = self.log_marginals(emissions, lengths)
        return marginals[:, 1:, None, :].expand(-1, -1, emissions.shape[2], -1)

    @torch.no_grad()
    def decode(self, emissions: Tensor, lengths: Tensor) -> list[list[int]]:
        """Find the most likely tag of each word; ties go to the lowest tag."""
        _length_mask(emissions, lengths)
        rows = emissions.argmax(dim=2).tolist()
        return [row[:length] for row, length in zip(rows, lengths.tolist(), strict=True)]


class _LogPartition(torch.autograd.Function):
    """log Z [B]; its gradient is the expected counts, from forward-backward without a graph over the time loop.

    Autograd through the loop would give the same numbers at several times the cost, and NaN where a tag is
    unreachable (the gradient of a log-sum-exp in which every term is -inf).
    """

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, lengths: Tensor, start: Tensor, transitions: Tensor, end: Tensor
    ) -> Tensor:
        alpha, log_z = _forward(scores, lengths, start, transitions, end)
        ctx.save_for_backward(scores, lengths, transitions, end, alpha)
        return log_z

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scores, lengths, transitions, end, alpha = ctx.saved_tensors
        beta = _backward(scores, lengths, transitions, end)
        weight = torch.where(_length_mask(scores, lengths), grad[:, None], 0).T  # [T, B]
        unary = (alpha + beta).softmax(dim=2) * weight[:, :, None]
        incoming = scores.transpose(0, 1)[1:] + beta[1:]
        pairs = alpha[:-1, :, :, None] + transitions + incoming[:, :, None, :]  # [T - 1, B, C, C]
        pairs = pairs.flatten(2).softmax(dim=2).view_as(pairs) * weight[1:, :, None, None]
        last = unary.gather(0, (lengths - 1)[None, :, None].expand(1, *unary.shape[1:])).squeeze(0)
        return unary.transpose(0, 1), None, unary[0].sum(0), pairs.sum((0, 1)), last.sum(0)


def _forward(
    scores: Tensor, lengths: Tensor, start: Tensor, transitions: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    """The forward pass over the words.

    Each alpha is shifted so that its maximum over the tags is 0: without the shift, the scores of a long sentence would
    leave fp32 too few digits for the differences between tags.

    Returns: alpha [T, B, C], the log-sum-exp of all prefixes that end in tag c at word t, less a shift that is the
        same for all c (past the end of a sentence: the value of its last word); and log Z [B].
    """
    by_time = scores.transpose(0, 1)
    active = (torch.arange(len(by_time), device=scores.device)[:, None] < lengths)[:, :, None]
    alpha: list[Tensor] = []
    shifts: list[Tensor] = []
    value = start + by_time[0]
    for time in range(len(by_time)):
        if time:
            value = torch.logsumexp(alpha[-1][:, :, None] + transitions, dim=1) + by_time[time]
            value = torch.where(active[time], value, alpha[-1])
        shifts.append(_finite_max(value))
        alpha.append(value - shifts[-1])
    log_z = torch.stack(shifts).sum((0, 2)) + torch.logsumexp(alpha[-1] + end, dim=-1)
    return torch.stack(alpha), log_z


def _backward(scores: Tensor, lengths: Tensor, transitions: Tensor, end: Tensor) -> Tensor:
    """The backward pass: beta [T, B, C], the log-sum-exp of all suffixes after tag c at word t, shifted like alpha."""
    by_time = scores.transpose(0, 1)
    beta = [end.expand(by_time.shape[1:])]
    active = (torch.arange(len(by_time), device=scores.device)[:, None] < lengths)[:, :, None]
    for time in range(len(by_time) - 1, 0, -1):
        value = torch.logsumexp(transitions + (by_time[time] + beta[-1])[:, None, :], dim=2)
        beta.append(torch.where(active[time], value - _finite_max(value), beta[-1]))
    return torch.stack(beta[::-1])


def _finite_max(values: Tensor) -> Tensor:
    """The maximum over the tags; the lowest finite number if all values are -inf. [B, C] to [B, 1]."""
    return values.amax(dim=1, keepdim=True).clamp(min=torch.finfo(values.dtype).min)


def _length_mask(emissions: Tensor, lengths: Tensor) -> Tensor:
    """True at words, False in the padding. bool [B, T]."""
    if len(lengths) == 0 or int(lengths.min()) < 1 or int(lengths.max()) > emissions.shape[1]:
        raise ValueError(f"lengths must be 1..{emissions.shape[1]}, one per sentence: {lengths.tolist()}")
    return torch.arange(emissions.shape[1], device=emissions.device) < lengths[:, None]


def _log_softmax(emissions: Tensor) -> Tensor:
    dtype = torch.promote_types(emissions.dtype, torch.float32)
    return emissions.to(dtype).log_softmax(dim=-1)
