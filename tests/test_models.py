"""Decoder sizes, initial weights, and the chunked loss against torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from metapt import commandline
from metapt.models import losses
from metapt.models.cost import Cost, parameter_count
from metapt.models.decoder import build_decoder, llama_config
from metapt.models.learner import build_learner

EXACT = {"tiny": 11_282_784, "small": 64_595_328, "medium": 181_095_168, "large": 569_808_384}


@pytest.mark.parametrize(("scale", "expected"), EXACT.items())
def test_exact_parameter_counts(scale: str, expected: int):
    model = commandline.load("pretrain", [f"model={scale}"]).model
    with torch.device("meta"):
        decoder = LlamaForCausalLM(llama_config(model))
    assert sum(value.numel() for value in decoder.parameters()) == expected
    assert parameter_count(model) == expected


def test_same_seed_same_initial_weights_for_both_objectives():
    vanilla, maml = (
        build_learner(commandline.load("pretrain", [f"objective={name}", "train.seed=7"]))
        for name in ("vanilla", "maml")
    )
    assert vanilla.head is None
    for (name, left), right in zip(
        vanilla.decoder.named_parameters(), maml.decoder.parameters(), strict=True
    ):
        assert torch.equal(left, right), name


def test_another_seed_gives_other_weights():
    model = commandline.load("pretrain", []).model
    left, right = (build_decoder(model, seed) for seed in (0, 1))
    assert not torch.equal(left.lm_head.weight, right.lm_head.weight)


def test_flops_agree_with_the_profiler():
    model = commandline.load("pretrain", ["model.vocab_size=512"]).model
    decoder = build_decoder(model, 0)
    decoder.set_attn_implementation("eager")
    tokens = torch.zeros((1, 64), dtype=torch.long)
    with torch.profiler.profile(with_flops=True) as profiler, torch.no_grad():
        decoder(input_ids=tokens)
    measured = sum(event.flops for event in profiler.key_averages() if event.key in ("aten::mm", "aten::bmm"))
    cost = Cost.of(model, 64)
    # The profiler sees whole attention matrices, the count their causal half.
    scores = 2 * model.num_layers * 2 * model.hidden_size * (64 - 65 / 2)
    expected = 64 * (cost.blocks + cost.output_layer + scores)
    assert measured == pytest.approx(expected, rel=0.02)


@given(st.integers(1, 40), st.integers(1, 7), st.integers(2, 30), st.integers(1, 17), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_chunked_loss_and_gradients_equal_torch(
    tokens: int, width: int, vocabulary: int, chunk: int, seed: int
):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, requires_grad=True)
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    before = losses.CHUNK_TOKENS["cpu"]
    losses.CHUNK_TOKENS["cpu"] = chunk
    try:
        loss = losses.linear_cross_entropy(hidden, weight, targets, torch.float32)
        gradients = torch.autograd.grad(3 * loss, [hidden, weight])
    finally:
        losses.CHUNK_TOKENS["cpu"] = before
    expected = cross_entropy(hidden @ weight.T, targets)
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(gradients, torch.autograd.grad(3 * expected, [hidden, weight]), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_chunked_loss_in_bf16_keeps_fp32_gradients():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(600, 32, generator=generator, requires_grad=True)
    weight = torch.randn(300, 32, generator=generator, requires_grad=True)
    targets = torch.randint(0, 300, (600,), generator=generator)
    gradients = torch.autograd.grad(
        losses.linear_cross_entropy(hidden, weight, targets, torch.bfloat16), [hidden, weight]
    )
    exact = torch.autograd.grad(cross_entropy(hidden @ weight.T, targets), [hidden, weight])
    for ours, theirs in zip(gradients, exact, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_lm_loss_is_the_librarys_loss():
    learner = build_learner(commandline.load("pretrain", []))
    sequences = torch.randint(0, 2048, (3, 33), generator=torch.Generator().manual_seed(0))
    expected = learner.decoder(input_ids=sequences, labels=sequences).loss
    torch.testing.assert_close(learner.lm_loss(sequences), expected, rtol=1e-5, atol=1e-5)
