"""Decoder sizes and initial weights; chunked loss, tiled attention and compiled parts equal torch's own."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

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
from metapt.meta.adaptation import Copies
from metapt.meta.objectives import next_token_objective
from metapt.meta.window_episodes import episode_objective
from metapt.models import attention, losses
from metapt.models.causal_lm import load_causal_lm
from metapt.models.decoder import build_decoder, llama_config
from metapt.models.episode_head import EpisodeHead
from metapt.models.meta_lm import build_meta_lm, slow_in_bf16
from metapt.training.dynamics import attention_entropy

PARAMETER_COUNTS = {"tiny": 11_282_784, "small": 64_595_328, "medium": 181_095_168, "large": 569_808_384}


@pytest.mark.parametrize(("scale", "expected"), PARAMETER_COUNTS.items())
def test_exact_parameter_counts(scale: str, expected: int):
    model = commandline.load("pretrain", [f"model={scale}"]).model
    with torch.device("meta"):
        decoder = LlamaForCausalLM(llama_config(model))
    assert sum(value.numel() for value in decoder.parameters()) == expected
    assert parameter_count(model) == expected


def test_both_objectives_have_the_same_initial_weights():
    vanilla, maml = (
        build_meta_lm(commandline.load("pretrain", [f"objective={name}", "train.seed=7"]))
        for name in ("vanilla", "maml_paper")
    )
    assert vanilla.episode_head is None
    for (name, left), right in zip(
        vanilla.decoder.named_parameters(), maml.decoder.parameters(), strict=True
    ):
        assert torch.equal(left, right), name


def test_the_end_of_text_embedding_is_trained_like_any_other(tmp_path: Path):
    """Also after a round trip through a model folder; a row for padding would be zero and have no gradient."""
    build_decoder(commandline.load("pretrain", []).model, 0, eos_id=3).save_pretrained(tmp_path)
    decoder = load_causal_lm(tmp_path)
    decoder(input_ids=torch.tensor([[5, 3, 7]])).logits.sum().backward()
    embedding = decoder.model.embed_tokens.weight
    lengths = embedding.detach().norm(dim=1)
    assert 0.5 < float(lengths[3] / lengths.mean()) < 2
    assert embedding.grad.norm(dim=1).nonzero().flatten().tolist() == [3, 5, 7]


def test_initial_weights_depend_on_the_seed():
    model = commandline.load("pretrain", []).model
    left, right = (build_decoder(model, seed) for seed in (0, 1))
    assert not torch.equal(left.lm_head.weight, right.lm_head.weight)


def test_flops_equal_those_of_the_profiler():
    model = commandline.load("pretrain", ["model.vocab_size=512"]).model
    decoder = build_decoder(model, 0)
    decoder.set_attn_implementation("eager")
    tokens = torch.zeros((1, 64), dtype=torch.long)
    with torch.profiler.profile(with_flops=True) as profiler, torch.no_grad():
        decoder(input_ids=tokens)
    measured = sum(event.flops for event in profiler.key_averages() if event.key in ("aten::mm", "aten::bmm"))
    cost = Cost.of(model, 64)
    # The profiler counts full attention matrices, Cost only their causal half.
    scores = 2 * model.num_layers * 2 * model.hidden_size * (64 - 65 / 2)
    expected = 64 * (cost.blocks + cost.output_layer + scores)
    assert measured == pytest.approx(expected, rel=0.02)


FUSED = (None, losses.replace_by_gradient)
"""The loss in passes, and the arithmetic that is compiled."""


@given(
    st.integers(1, 40),
    st.integers(1, 7),
    st.integers(2, 30),
    st.integers(1, 17),
    st.integers(0, 5),
    st.sampled_from(FUSED),
)
@settings(max_examples=40, deadline=None)
def test_chunked_loss_and_gradients_equal_torch(
    tokens: int, width: int, vocabulary: int, chunk: int, seed: int, fused: losses.Replace | None
):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, requires_grad=True)
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(losses.CHUNK_TOKENS, "cpu", chunk)
        loss = losses.linear_cross_entropy(hidden, weight, targets, torch.float32, fused)
        gradients = torch.autograd.grad(3 * loss, [hidden, weight])
    expected = cross_entropy(hidden @ weight.T, targets)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(3 * expected, [hidden, weight]))


@pytest.mark.parametrize("fused", FUSED)
def test_chunked_loss_in_bf16_keeps_fp32_gradients(fused: losses.Replace | None):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(600, 32, generator=generator, requires_grad=True)
    weight = torch.randn(300, 32, generator=generator, requires_grad=True)
    targets = torch.randint(0, 300, (600,), generator=generator)
    gradients = torch.autograd.grad(
        losses.linear_cross_entropy(hidden, weight, targets, torch.bfloat16, fused), [hidden, weight]
    )
    exact = torch.autograd.grad(cross_entropy(hidden @ weight.T, targets), [hidden, weight])
    for gradient, exact_gradient in zip(gradients, exact, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - exact_gradient).norm() < 0.02 * exact_gradient.norm()


@pytest.mark.nightly
def test_compiled_loss_equals_that_in_passes():
    """Two chunks of different length."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 8, generator=generator) for rows in (300, 100))
    targets = torch.randint(0, 100, (300,), generator=generator)
    found = []
    for is_compiled in (False, True):
        layer = losses.OutputLayer(torch.nn.Parameter(weight.clone()))
        if is_compiled:
            layer.compile_loss()
        states = hidden.clone().requires_grad_()
        loss = layer(states, targets, torch.float32)
        found.append((loss, *torch.autograd.grad(loss, [states, layer.weight])))
    torch.testing.assert_close(found[0], found[1])


@given(st.integers(1, 30), st.integers(2, 40), st.sampled_from(FUSED))
@settings(max_examples=20, deadline=None)
def test_chunked_loss_with_extreme_logits(tokens: int, vocabulary: int, fused: losses.Replace | None):
    """The probabilities of the target and of all but one token underflow."""
    hidden = torch.linspace(-3e4, 3e4, tokens)[:, None].clone().requires_grad_()
    weight = torch.linspace(-1, 1, vocabulary)[:, None].clone().requires_grad_()
    targets = torch.arange(tokens) % vocabulary
    loss = losses.linear_cross_entropy(hidden, weight, targets, torch.float32, fused)
    expected = cross_entropy(hidden @ weight.T, targets)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, weight), torch.autograd.grad(expected, weight), rtol=1e-4, atol=1e-3
    )


def random_query_key_value(
    sequences: int, length: int, heads: int, kv_heads: int, width: int, dtype: torch.dtype = torch.float64
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = [(sequences, length, count, width) for count in (heads, kv_heads, kv_heads)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.to(dtype).transpose(1, 2).requires_grad_() for tensor in tensors]


@given(
    st.integers(1, 4), st.integers(1, 40), st.integers(1, 3), st.integers(1, 3), st.integers(1, 50), st.data()
)
@settings(max_examples=40, deadline=None)
def test_tiled_attention_and_gradients_equal_torch(
    sequences: int, length: int, kv_heads: int, group: int, tile_queries: int, data: st.DataObject
):
    inputs = random_query_key_value(sequences, length, kv_heads * group, kv_heads, 4)
    weights = torch.randn(sequences, kv_heads * group, length, 4, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "TILE_QUERIES", tile_queries)
        patch.setattr(attention, "TILE_SCORES", data.draw(st.integers(1, 3000)))
        out = attention.causal_attention(*inputs, 0.3)
        gradients = torch.autograd.grad((out * weights).sum(), inputs)
    expected = scaled_dot_product_attention(*inputs, is_causal=True, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(out, expected)
    # Gradients of keys and values sum over many queries in fp32.
    torch.testing.assert_close(
        gradients, torch.autograd.grad((expected * weights).sum(), inputs), rtol=1e-5, atol=1e-5
    )


def test_bf16_error_of_tiled_attention_is_that_of_eager():
    inputs = random_query_key_value(2, 150, 12, 4, 16, torch.float32)
    rounded = [tensor.detach().bfloat16().requires_grad_() for tensor in inputs]
    exact = scaled_dot_product_attention(*inputs, is_causal=True, scale=0.25, enable_gqa=True)
    tiled = attention.causal_attention(*rounded, 0.25)
    assert tiled.dtype == torch.bfloat16
    future = torch.ones(150, 150, dtype=torch.bool).triu(1)
    query, key, value = (tensor.repeat_interleave(12 // tensor.shape[1], dim=1) for tensor in rounded)
    scores = (query @ key.mT * 0.25).masked_fill(future, float("-inf"))
    eager = scores.softmax(dim=-1, dtype=torch.float32).bfloat16() @ value
    assert (tiled - exact).norm() <= 1.1 * (eager - exact).norm()
    tiled_gradients, eager_gradients = (
        torch.autograd.grad(out.float().square().sum(), rounded) for out in (tiled, eager)
    )
    exact_gradients = torch.autograd.grad(exact.square().sum(), inputs)
    for ours, theirs, expected in zip(tiled_gradients, eager_gradients, exact_gradients, strict=True):
        assert (ours - expected).norm() <= 1.1 * (theirs - expected).norm()


def test_attention_is_tiled_under_autocast_only(monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(
        attention,
        "causal_attention",
        lambda query, *others: calls.append(query.dtype) or torch.zeros_like(query),
    )
    for precision in ("fp32", "bf16"):
        meta_lm = build_meta_lm(commandline.load("pretrain", [f"train.precision={precision}"]))
        meta_lm.hidden_states(torch.zeros((1, 8), dtype=torch.long))
        assert calls == [torch.bfloat16] * (len(meta_lm.decoder.model.layers) if precision == "bf16" else 0)


def test_lm_loss_equals_that_of_transformers():
    meta_lm = build_meta_lm(commandline.load("pretrain", []))
    sequences = torch.randint(0, 2048, (3, 33), generator=torch.Generator().manual_seed(0))
    expected = meta_lm.decoder(input_ids=sequences, labels=sequences).loss
    torch.testing.assert_close(meta_lm.lm_loss(sequences), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.nightly
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("scope", ["head", "full"])
def test_compiled_blocks_equal_eager_ones(stream_of, scope: str, precision: str):
    """Losses, gradients and attention entropies are equal up to rounding, over windows of several lengths."""
    eager, compiled = (
        results_of_objectives(stream_of, scope, precision, compile=flag) for flag in ("false", "true")
    )
    assert compiled.parameter_names == eager.parameter_names
    bound = {"fp32": 1e-4, "bf16": 0.15}[precision]  # in bf16, rounded states flip ReLUs of the episode head
    assert compiled.losses == pytest.approx(eager.losses, rel=bound)
    for vector, expected in zip(compiled.vectors, eager.vectors, strict=True):
        assert (vector - expected).norm() <= bound * expected.norm()


class Results(NamedTuple):
    parameter_names: list[str]
    losses: list[float]
    vectors: list[torch.Tensor]
    """The gradient of each loss, and the attention entropies."""


def results_of_objectives(stream_of, scope: str, precision: str, compile: str) -> Results:
    """One next-token loss and two episodes."""
    tokens = np.random.default_rng(0).integers(2, 50, 20_000)
    arguments = [
        "objective=maml_paper",
        "meta.max_window_fraction=1",
        "meta.head_dropout=0",
        "meta.inner_steps=2",
        f"meta.scope={scope}",
        f"train.precision={precision}",
    ]
    config = commandline.load("pretrain", arguments)
    meta_lm = build_meta_lm(config)
    if compile == "true":
        meta_lm.compile_parts((2, 32))
    index = WindowIndex.build(tokens, 64, config.meta.window, config.meta.min_context)
    sampler = EpisodeSampler(stream_of(tokens), index, config.meta, 0, 1, 0)
    outputs = [next_token_objective(meta_lm, torch.from_numpy(tokens[: 2 * 33].reshape(2, 33)))]
    outputs += [
        episode_objective(meta_lm, sampler.episode(0, number), config.meta, 0, 0, number)
        for number in range(2)
    ]
    vectors = []
    for output in outputs:
        meta_lm.zero_grad()
        output.loss.backward()
        vectors.append(torch.cat([value.grad.flatten() for value in meta_lm.parameters()]))
    entropies = attention_entropy(meta_lm, torch.from_numpy(tokens[:40].reshape(1, 40)))
    vectors.append(torch.tensor(entropies["attention_entropy_nats"]))
    names = [name for name, _ in meta_lm.named_parameters()]
    return Results(names, [output.loss.item() for output in outputs], vectors)


def test_functional_inner_step_equals_autograd():
    """EpisodeHead.inner_step, compiled and not, against the inner loop on copies of the parameters."""
    head = EpisodeHead(16, 24, 5, 4, 0.0, seed=0)
    generator = torch.Generator().manual_seed(0)
    hidden, labels = torch.randn(20, 16, generator=generator), torch.arange(5).repeat(4)
    initial = dict(head.named_parameters())

    def support_loss(parameters):
        return cross_entropy(head.logits(hidden, parameters), labels)

    copies = Copies(initial, 0.1)
    expected_losses = torch.stack([copies.step(support_loss) for _ in range(3)])
    for inner_step in (head.inner_step, torch.compile(head.inner_step, fullgraph=True)):
        parameters, losses = {name: value.detach() for name, value in initial.items()}, []
        for _ in range(3):
            parameters, loss, logits = inner_step(parameters, hidden, labels, 0.1)
            losses.append(loss)
            torch.testing.assert_close(cross_entropy(logits, labels), loss)
        torch.testing.assert_close(parameters, copies.detached(), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(torch.stack(losses), expected_losses, rtol=1e-6, atol=0)


def test_train_compile_is_rejected_with_zero3():
    with pytest.raises(UserError, match=r"train\.compile=true: not supported with ds=zero3"):
        commandline.load("pretrain", ["train.compile=true", "ds=zero3"])


@pytest.mark.parametrize(
    ("device", "capabilities", "slow"),
    [
        ("cpu", {"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, True),
        ("cpu", {"avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, False),
        ("cpu", {"avx512_f": True, "avx512_bf16": False, "amx_bf16": True}, False),
        ("cpu", {"neon": True, "bf16": True}, False),
        ("cpu", {"neon": True, "bf16": False}, True),
        ("cuda", {}, False),
    ],
)
def test_slow_in_bf16(
    device: str, capabilities: dict[str, bool], slow: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert slow_in_bf16(torch.device(device)) is slow
