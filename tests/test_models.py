"""Decoder sizes, initial weights, and the chunked loss against torch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import LlamaForCausalLM

from metapt.config import commandline
from metapt.data.episodes import EpisodeSampler, WindowIndex
from metapt.errors import UserError
from metapt.estimate.flops import Cost, parameter_count
from metapt.meta.adaptation import adapt, adapt_by
from metapt.meta.objectives import episode, next_token
from metapt.models import attention, losses
from metapt.models.decoder import EpisodeHead, build_decoder, llama_config
from metapt.models.meta_lm import build_meta_lm, slow_in_bf16
from metapt.training.dynamics import attention_entropy

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
        build_meta_lm(commandline.load("pretrain", [f"objective={name}", "train.seed=7"]))
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


@given(st.integers(1, 30), st.integers(2, 40))
@settings(max_examples=10, deadline=None)
def test_the_loss_stands_extreme_logits(tokens: int, vocabulary: int):
    """Probabilities that underflow, of the target and of all but one class."""
    hidden = torch.linspace(-3e4, 3e4, tokens)[:, None].clone().requires_grad_()
    weight = torch.linspace(-1, 1, vocabulary)[:, None].clone().requires_grad_()
    targets = torch.arange(tokens) % vocabulary
    loss = losses.linear_cross_entropy(hidden, weight, targets, torch.float32)
    expected = cross_entropy(hidden @ weight.T, targets)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, weight), torch.autograd.grad(expected, weight), rtol=1e-4, atol=1e-3
    )


def attention_sides(
    windows: int, length: int, heads: int, kv_heads: int, width: int, dtype: torch.dtype = torch.float64
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = [(windows, length, count, width) for count in (heads, kv_heads, kv_heads)]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [side.to(dtype).transpose(1, 2).requires_grad_() for side in drawn]


@given(
    st.integers(1, 4), st.integers(1, 40), st.integers(1, 3), st.integers(1, 3), st.integers(1, 50), st.data()
)
@settings(max_examples=40, deadline=None)
def test_tiled_attention_and_gradients_equal_torch(
    windows: int, length: int, kv_heads: int, group: int, queries: int, data: st.DataObject
):
    sides = attention_sides(windows, length, kv_heads * group, kv_heads, 4)
    weights = torch.randn(windows, kv_heads * group, length, 4, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "QUERIES", queries)
        patch.setattr(attention, "SCORES", data.draw(st.integers(1, 3000)))
        found = attention.causal_attention(*sides, 0.3)
        gradients = torch.autograd.grad((found * weights).sum(), sides)
    expected = scaled_dot_product_attention(*sides, is_causal=True, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found, expected)
    # keys and values gather the gradients of many queries in fp32
    torch.testing.assert_close(
        gradients, torch.autograd.grad((expected * weights).sum(), sides), rtol=1e-5, atol=1e-5
    )


def test_tiled_attention_in_bf16_is_as_near_to_fp32_as_eager():
    sides = attention_sides(2, 150, 12, 4, 16, torch.float32)
    coarse = [side.detach().bfloat16().requires_grad_() for side in sides]
    exact = scaled_dot_product_attention(*sides, is_causal=True, scale=0.25, enable_gqa=True)
    tiled = attention.causal_attention(*coarse, 0.25)
    assert tiled.dtype == torch.bfloat16
    later = torch.ones(150, 150, dtype=torch.bool).triu(1)
    query, key, value = (side.repeat_interleave(12 // side.shape[1], dim=1) for side in coarse)
    scores = (query @ key.mT * 0.25).masked_fill(later, float("-inf"))
    eager = scores.softmax(dim=-1, dtype=torch.float32).bfloat16() @ value
    assert (tiled - exact).norm() <= 1.1 * (eager - exact).norm()
    gradients = [
        torch.autograd.grad(out.float().square().sum(), of) for out, of in ((tiled, coarse), (eager, coarse))
    ]
    for ours, theirs, right in zip(*gradients, torch.autograd.grad(exact.square().sum(), sides), strict=True):
        assert (ours - right).norm() <= 1.1 * (theirs - right).norm()


def test_attention_is_tiled_under_autocast_alone(monkeypatch: pytest.MonkeyPatch):
    called = []
    monkeypatch.setattr(
        attention,
        "causal_attention",
        lambda query, *rest: called.append(query.dtype) or torch.zeros_like(query),
    )
    for precision in ("fp32", "bf16"):
        meta_lm = build_meta_lm(commandline.load("pretrain", [f"train.precision={precision}"]))
        meta_lm.states(torch.zeros((1, 8), dtype=torch.long))
        assert called == [torch.bfloat16] * (len(meta_lm.decoder.model.layers) if precision == "bf16" else 0)


def test_lm_loss_is_the_librarys_loss():
    meta_lm = build_meta_lm(commandline.load("pretrain", []))
    sequences = torch.randint(0, 2048, (3, 33), generator=torch.Generator().manual_seed(0))
    expected = meta_lm.decoder(input_ids=sequences, labels=sequences).loss
    torch.testing.assert_close(meta_lm.lm_loss(sequences), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.nightly
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("scope", ["head", "full"])
def test_compiled_blocks_give_the_same(stream_of, scope: str, precision: str):
    """Losses and gradients of both objectives over windows of several lengths, and attention entropies, to rounding."""
    tokens = np.random.default_rng(0).integers(2, 50, 20_000)
    plain, compiled = ([], [])
    for found, switch in ((plain, "false"), (compiled, "true")):
        words = [
            "objective=maml",
            "meta.max_window_fraction=1",
            "meta.head_dropout=0",
            "meta.inner_steps=2",
            f"meta.scope={scope}",
        ]
        config = commandline.load(
            "pretrain", [*words, f"train.precision={precision}", f"train.compile={switch}"]
        )
        meta_lm = build_meta_lm(config)
        index = WindowIndex.build(tokens, 64, config.meta.window, config.meta.min_context)
        sampler = EpisodeSampler(stream_of(tokens), index, config.meta, 0, 1, 0)
        outcomes = [next_token(meta_lm, torch.from_numpy(tokens[: 2 * 33].reshape(2, 33)))]
        outcomes += [episode(meta_lm, sampler.episode(0, task), config.meta, 0, 0, task) for task in range(2)]
        for outcome in outcomes:
            meta_lm.zero_grad()
            outcome.loss.backward()
            gradient = torch.cat([value.grad.flatten() for value in meta_lm.parameters()])
            found.append((outcome.loss.item(), gradient))
        entropies = attention_entropy(meta_lm, torch.from_numpy(tokens[:40].reshape(1, 40)))
        found.append((0.0, torch.tensor(entropies["attention_entropy_nats"])))
        names = [name for name, _ in meta_lm.named_parameters()]
    assert names == [
        name for name, _ in build_meta_lm(commandline.load("pretrain", words)).named_parameters()
    ]
    bound = {"fp32": 1e-4, "bf16": 0.15}[precision]  # in bf16 rounded states flip ReLUs of the head
    for (ours, found_gradient), (theirs, gradient) in zip(compiled, plain, strict=True):
        assert ours == pytest.approx(theirs, rel=bound)
        assert (found_gradient - gradient).norm() <= bound * gradient.norm()


def test_the_inner_step_of_the_head_is_that_of_the_loop():
    """As a pure function, compiled and not, against autograd on adapted copies."""
    head = EpisodeHead(16, 24, 5, 4, 0.0, seed=0)
    generator = torch.Generator().manual_seed(0)
    states, labels = torch.randn(20, 16, generator=generator), torch.arange(5).repeat(4)
    start, losses = dict(head.named_parameters()), []

    def support_loss(values):
        losses.append(cross_entropy(head.logits(states, values), labels))
        return losses[-1]

    expected = adapt(support_loss, start, 3, 0.1).values
    for step in (head.inner_step, torch.compile(head.inner_step, fullgraph=True)):
        found = []

        def moved(values, step=step, found=found):
            values, loss, logits = step(values, states, labels, 0.1)
            found.append(loss)
            torch.testing.assert_close(cross_entropy(logits, labels), loss)
            return values

        torch.testing.assert_close(adapt_by(moved, start, 3).values, expected, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(torch.stack(found), torch.stack(losses).detach(), rtol=1e-6, atol=0)


def test_compiled_blocks_and_zero_3_exclude_each_other():
    with pytest.raises(UserError, match=r"train\.compile=true: ds=zero3"):
        commandline.load("pretrain", ["train.compile=true", "ds=zero3"])


@pytest.mark.parametrize(
    ("device", "has", "slow"),
    [
        ("cpu", {"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, True),
        ("cpu", {"avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, False),
        ("cpu", {"avx512_f": True, "avx512_bf16": False, "amx_bf16": True}, False),
        ("cpu", {"neon": True, "bf16": True}, False),
        ("cpu", {"neon": True, "bf16": False}, True),
        ("cuda", {}, False),
    ],
)
def test_processors_that_are_slow_in_bf16(
    device: str, has: dict[str, bool], slow: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert slow_in_bf16(torch.device(device)) is slow
