"""The CRF equals brute force over all tag sequences and another library; invariants of both NER heads."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchcrf import CRF

from metapt.data.iob2 import TAGS
from metapt.tagger.crf import LinearChainCRF, SoftmaxHead, iob2_transitions


def random_crf(num_tags: int, rng: torch.Generator, forbid: float) -> LinearChainCRF:
    """Random scores in float64; each transition is forbidden with probability `forbid`, but 0 -> 0 never is."""
    first, pairs = torch.rand(num_tags, generator=rng), torch.rand(num_tags, num_tags, generator=rng)
    first[0] = pairs[0, 0] = 1.0
    crf = LinearChainCRF(first >= forbid, pairs >= forbid).double()
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.copy_(2 * torch.randn(parameter.shape, generator=rng))
    return crf


@torch.no_grad()
def all_paths(crf: LinearChainCRF, emissions: Tensor) -> dict[tuple[int, ...], float]:
    """Score every allowed tag sequence by the definition. emissions: [T, C]."""
    found = {}
    for path in itertools.product(range(emissions.shape[1]), repeat=len(emissions)):
        pairs = list(itertools.pairwise(path))
        if crf.allowed_first[path[0]] and all(crf.allowed_pairs[a, b] for a, b in pairs):
            score = crf.start[path[0]] + crf.end[path[-1]] + sum(crf.transitions[a, b] for a, b in pairs)
            found[path] = float(score + sum(emissions[time, tag] for time, tag in enumerate(path)))
    return found


@st.composite
def batches(draw: st.DrawFn) -> tuple[LinearChainCRF, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    num_tags = draw(st.integers(1, 4))
    lengths = torch.tensor(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    crf = random_crf(num_tags, generator, draw(st.sampled_from([0.0, 0.3, 0.6])))
    padded = int(lengths.max()) + draw(st.integers(0, 2))
    scale = draw(st.sampled_from([1.0, 30.0]))
    emissions = torch.randn(len(lengths), padded, num_tags, generator=generator, dtype=torch.float64) * scale
    return crf, emissions, lengths


@settings(max_examples=60, deadline=None)
@given(batches())
def test_equals_brute_force(batch: tuple[LinearChainCRF, Tensor, Tensor]) -> None:
    crf, emissions, lengths = batch
    marginals, decoded = crf.log_marginals(emissions, lengths), crf.decode(emissions, lengths)
    for row, length in enumerate(lengths.tolist()):
        paths = all_paths(crf, emissions[row, :length])
        scores = torch.tensor(list(paths.values()), dtype=torch.float64)
        log_z = torch.logsumexp(scores, 0)
        assert paths[tuple(decoded[row])] == pytest.approx(float(scores.max()))
        for time, tag in itertools.product(range(length), range(emissions.shape[2])):
            through = [score for path, score in paths.items() if path[time] == tag]
            expected = torch.logsumexp(torch.tensor(through, dtype=torch.float64), 0) - log_z
            torch.testing.assert_close(marginals[row, time, tag], expected, atol=1e-9, rtol=1e-9)
        for path, score in list(paths.items())[:5]:
            tags = torch.zeros(1, emissions.shape[1], dtype=torch.long)
            tags[0, :length] = torch.tensor(path)
            found = crf.log_likelihood(emissions[row : row + 1], tags, lengths[row : row + 1])
            torch.testing.assert_close(found, score - log_z[None])


@settings(max_examples=30, deadline=None)
@given(batches(), st.booleans())
def test_marginals_and_conditionals_form_the_markov_chain(
    batch: tuple[LinearChainCRF, Tensor, Tensor], is_softmax: bool
) -> None:
    crf, emissions, lengths = batch
    head = SoftmaxHead() if is_softmax else crf
    marginals, steps = head.log_marginals(emissions, lengths), head.log_conditionals(emissions, lengths)
    for row, length in enumerate(lengths.tolist()):
        allowed = list(all_paths(crf, emissions[row, :length]))
        tags = torch.zeros(len(allowed), emissions.shape[1], dtype=torch.long)
        tags[:, :length] = torch.tensor(allowed)
        same = emissions[row].expand(len(allowed), -1, -1), lengths[row].expand(len(allowed))
        chain = torch.stack(
            [
                marginals[row, 0, path[0]]
                + sum(steps[row, t, path[t], path[t + 1]] for t in range(length - 1))
                for path in allowed
            ]
        )
        torch.testing.assert_close(chain, head.log_likelihood(same[0], tags, same[1]), atol=1e-8, rtol=1e-8)


def as_torchcrf(crf: LinearChainCRF) -> CRF:
    """The same model in pytorch-crf, which has no constraints: forbidden transitions get a very low score."""
    other = CRF(crf.start.numel(), batch_first=True).double()
    with torch.no_grad():
        other.start_transitions.copy_(crf.start - 1e6 * ~crf.allowed_first)
        other.transitions.copy_(crf.transitions - 1e6 * ~crf.allowed_pairs)
        other.end_transitions.copy_(crf.end)
    return other


@settings(max_examples=60, deadline=None)
@given(batches(), st.integers(0, 2**31))
def test_equals_pytorch_crf(batch: tuple[LinearChainCRF, Tensor, Tensor], seed: int) -> None:
    """Log-likelihood, gradients and best sequence agree, with and without forbidden transitions."""
    crf, emissions, lengths = batch
    other, rng = as_torchcrf(crf), torch.Generator().manual_seed(seed)
    mask = torch.arange(emissions.shape[1]) < lengths[:, None]
    noise = 50 * torch.randn(emissions.shape, generator=rng, dtype=torch.float64)
    tags = torch.zeros(emissions.shape[:2], dtype=torch.long)
    for row, path in enumerate(crf.decode(noise, lengths)):  # arbitrary allowed sequences
        tags[row, : len(path)] = torch.tensor(path)
    weights = torch.randn(len(lengths), generator=rng, dtype=torch.float64)
    ours, theirs = (emissions.clone().requires_grad_() for _ in range(2))
    ours_likelihood = crf.log_likelihood(ours, tags, lengths)
    their_likelihood = other(theirs, tags, mask=mask, reduction="none")
    torch.testing.assert_close(ours_likelihood, their_likelihood)
    gradients = [
        torch.autograd.grad(
            likelihood @ weights, inputs, materialize_grads=True
        )  # one word has no transition
        for likelihood, inputs in (
            (ours_likelihood, [ours, crf.start, crf.transitions, crf.end]),
            (their_likelihood, [theirs, other.start_transitions, other.transitions, other.end_transitions]),
        )
    ]
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right, atol=1e-9, rtol=1e-6)
    assert crf.decode(emissions, lengths) == other.decode(emissions, mask=mask)


class OperationCounter(TorchDispatchMode):
    """Counts torch operations."""

    number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.number += 1
        return function(*args, **(kwargs or {}))


def test_number_of_operations_does_not_depend_on_batch_size() -> None:
    """No code loops over the batch: 60 sentences take as many operations as 3."""
    crf, *batch = iob2_batch()
    counts = []
    for times in (1, 20):
        emissions, tags, lengths = (torch.cat([each] * times) for each in batch)
        with OperationCounter() as counter:
            crf.log_likelihood(emissions.requires_grad_(), tags, lengths).sum().backward()
            crf.log_marginals(emissions, lengths)
            crf.decode(emissions, lengths)
        counts.append(counter.number)
    assert counts[0] == counts[1] > 50


def test_fp32_is_accurate_for_a_thousand_words() -> None:
    """The log-likelihood has a relative error below 1e-5, marginals and gradients an absolute error below 1e-5."""
    exact, *_ = iob2_batch()
    rng = torch.Generator().manual_seed(5)
    emissions = 5 * torch.randn(2, 1000, len(TAGS), generator=rng, dtype=torch.float64)
    lengths, crf = torch.tensor([1000, 700]), iob2_batch(torch.float32)[0]
    tags = torch.zeros(2, 1000, dtype=torch.long)
    found = []
    for head, values in ((exact, emissions), (crf, emissions.float())):
        values = values.clone().requires_grad_()
        likelihood = head.log_likelihood(values, tags, lengths)
        likelihood.sum().backward()
        assert values.grad is not None
        found.append(
            (likelihood.double(), head.log_marginals(values, lengths).exp().double(), values.grad.double())
        )
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=0.0)
    for left, right in zip(found[1][1:], found[0][1:], strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


def iob2_batch(dtype: torch.dtype = torch.float64) -> tuple[LinearChainCRF, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(3)
    crf = LinearChainCRF(*iob2_transitions(TAGS)).to(dtype)
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    emissions = torch.randn(3, 6, len(TAGS), generator=rng, dtype=dtype)
    tags = torch.tensor([[0, 1, 2, 2, 0, 3], [5, 6, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    return crf, emissions, tags, torch.tensor([6, 3, 1])


def test_gradient_of_the_log_likelihood() -> None:
    crf, emissions, tags, lengths = iob2_batch()

    def likelihood(emissions: Tensor, *parameters: Tensor) -> Tensor:
        names = dict(zip(("start", "transitions", "end"), parameters, strict=True))
        return torch.func.functional_call(
            _Likelihood(crf), {f"crf.{k}": v for k, v in names.items()}, (emissions, tags, lengths)
        )

    inputs = [emissions, crf.start.detach(), crf.transitions.detach(), crf.end.detach()]
    assert torch.autograd.gradcheck(likelihood, [each.clone().requires_grad_() for each in inputs])


class _Likelihood(torch.nn.Module):
    def __init__(self, crf: LinearChainCRF):
        super().__init__()
        self.crf = crf

    def forward(self, *batch: Tensor) -> Tensor:
        return self.crf.log_likelihood(*batch)


def test_no_gradient_for_forbidden_transitions_and_padding() -> None:
    crf, emissions, tags, lengths = iob2_batch()
    emissions.requires_grad_()
    crf.log_likelihood(emissions, tags, lengths).sum().backward()
    assert crf.transitions.grad is not None
    assert crf.start.grad is not None
    assert emissions.grad is not None
    assert (crf.transitions.grad[~crf.allowed_pairs] == 0).all()
    assert (crf.start.grad[~crf.allowed_first] == 0).all()
    assert (emissions.grad[1, 3:] == 0).all()
    assert (emissions.grad[1, :3] != 0).any()


def test_iob2_constraints() -> None:
    first, pairs = iob2_transitions(TAGS)
    for index, tag in enumerate(TAGS):
        assert bool(first[index]) == (tag[0] in "OB")
        before = {TAGS[row] for row in torch.nonzero(pairs[:, index]).flatten().tolist()}
        assert before == (set(TAGS) if tag[0] in "OB" else {f"B{tag[1:]}", f"I{tag[1:]}"})


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_forbidden_sequences_are_never_decoded(scale: float) -> None:
    crf, emissions, _, lengths = iob2_batch()
    emissions = emissions * scale
    emissions[:, 0, 2] += 1e6  # a high score for I-PER on the first word, where it is forbidden
    for tags in crf.decode(emissions, lengths):
        assert crf.allowed_first[tags[0]]
        assert all(crf.allowed_pairs[a, b] for a, b in itertools.pairwise(tags))
    assert torch.isneginf(crf.log_marginals(emissions, lengths)[:, 0, [2, 4, 6]]).all()


def test_forbidden_gold_sequence_is_rejected() -> None:
    crf, emissions, tags, lengths = iob2_batch()
    for row in ([0, 2, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0], [1, 4, 0, 0, 0, 0]):
        tags[0] = torch.tensor(row)
        with pytest.raises(ValueError, match="forbidden transition"):
            crf.log_likelihood(emissions, tags, lengths)


@pytest.mark.parametrize("bad", [[0, 3, 1], [7, 3, 1], []])
def test_lengths_out_of_range_are_rejected(bad: list[int]) -> None:
    crf, emissions, tags, _ = iob2_batch()
    lengths = torch.tensor(bad, dtype=torch.long)
    with pytest.raises(ValueError, match="lengths"):
        crf.log_likelihood(emissions[: len(bad)], tags[: len(bad)], lengths)


@pytest.mark.parametrize("softmax", [False, True])
def test_padding_has_no_effect(softmax: bool) -> None:
    crf, emissions, tags, lengths = iob2_batch()
    head = SoftmaxHead() if softmax else crf
    junk = torch.full((3, 4, len(TAGS)), 1e30, dtype=torch.float64)
    padded, more_tags = torch.cat([emissions, junk], 1), torch.cat([tags, torch.full((3, 4), 6)], 1)
    together = head.log_likelihood(padded, more_tags, lengths)
    for row, length in enumerate(lengths.tolist()):
        part, only = slice(row, row + 1), torch.tensor([length])
        alone = emissions[part, :length]
        torch.testing.assert_close(together[part], head.log_likelihood(alone, tags[part, :length], only))
        torch.testing.assert_close(
            head.log_marginals(padded, lengths)[row, :length], head.log_marginals(alone, only)[0]
        )
        assert head.decode(padded, lengths)[row] == head.decode(alone, only)[0]


@pytest.mark.parametrize("softmax", [False, True])
def test_bf16_emissions_are_computed_in_fp32(softmax: bool) -> None:
    crf, emissions, tags, lengths = iob2_batch(torch.float32)
    head = SoftmaxHead() if softmax else crf
    low = emissions.bfloat16()
    for values in (head.log_likelihood(low, tags, lengths), head.log_marginals(low, lengths)):
        assert values.dtype == torch.float32
    torch.testing.assert_close(
        head.log_likelihood(low, tags, lengths), head.log_likelihood(low.float(), tags, lengths)
    )
    total = head.log_marginals(low, lengths)[0].exp().sum(-1)
    torch.testing.assert_close(total, torch.ones(6))


def test_crf_without_transitions_equals_softmax() -> None:
    _, emissions, tags, lengths = iob2_batch()
    size = len(TAGS)
    crf, softmax = (
        LinearChainCRF(torch.ones(size).bool(), torch.ones(size, size).bool()).double(),
        SoftmaxHead(),
    )
    torch.testing.assert_close(
        crf.log_likelihood(emissions, tags, lengths), softmax.log_likelihood(emissions, tags, lengths)
    )
    torch.testing.assert_close(
        crf.log_marginals(emissions, lengths), softmax.log_marginals(emissions, lengths)
    )
    assert crf.decode(emissions, lengths) == softmax.decode(emissions, lengths)
