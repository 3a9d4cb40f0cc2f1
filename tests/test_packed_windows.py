"""Windows cut behind the state that is read, against whole windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metapt.config import commandline
from metapt.estimate.flops import Cost, flops_of_episode, flops_of_step
from metapt.models import packed_windows
from metapt.models.meta_lm import MetaLM, build_meta_lm
from metapt.models.packed_windows import Windows

CPU = torch.device("cpu")
SHAPE = ["model.num_layers=2", "model.vocab_size=300", "data.vocab_size=300"]


@pytest.fixture(scope="module")
def meta_lm() -> MetaLM:
    return build_meta_lm(commandline.load("pretrain", [*SHAPE, "train.precision=fp32"])).double()


def drawn(count: int, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [count, length] and a position in each window."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 300, (count, length)), generator.integers(0, length, count)


@given(st.integers(1, 12), st.integers(1, 30), st.integers(1, 20), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_every_window_is_there_up_to_what_is_read(count: int, length: int, groups: int, seed: int):
    tokens, positions = drawn(count, length, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_windows, "GROUPS", groups)
        patch.setattr(packed_windows, "SMALLEST", 1)
        cut = Windows.cut(tokens, positions, CPU)
    laid, places, reads = cut.tokens[0].numpy(), cut.places[0].numpy(), cut.reads.numpy()
    for row, (read, position) in enumerate(zip(reads, positions, strict=True)):
        own = slice(read - position, read + 1)
        assert (laid[own] == tokens[row, : position + 1]).all()
        assert (places[own] == np.arange(position + 1)).all()
    assert sum(number for number, _ in cut.groups) == count
    assert sum(number * long for number, long in cut.groups) == len(laid) == len(places)
    assert len(cut.groups) <= groups
    starts = np.cumsum([0] + [number * long for number, long in cut.groups[:-1]])
    for start, (number, long) in zip(starts, cut.groups, strict=True):
        own = reads[(reads >= start) & (reads < start + number * long)] - start
        assert sorted(own // long) == list(range(number)), "a window of its own for each state"


@given(st.integers(1, 9), st.integers(1, 20), st.integers(1, 10), st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_states_and_gradients_are_those_of_whole_windows(
    meta_lm: MetaLM, count: int, length: int, groups: int, seed: int
):
    tokens, positions = drawn(count, length, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_windows, "GROUPS", groups)
        patch.setattr(packed_windows, "SMALLEST", 1)
        cut = Windows.cut(tokens, positions, CPU)
    weights = torch.randn(count, meta_lm.decoder.config.hidden_size, dtype=torch.float64)
    parameters = list(meta_lm.decoder.model.parameters())
    found = meta_lm.states_read(cut)
    whole = meta_lm.states(torch.from_numpy(tokens))[torch.arange(count), torch.from_numpy(positions)]
    torch.testing.assert_close(found, whole, rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(
        *(torch.autograd.grad((states * weights).sum(), parameters) for states in (found, whole)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_in_bf16_cut_windows_are_as_near_to_fp32_as_whole_ones():
    tokens, positions = drawn(12, 70, 0)
    cut = Windows.cut(tokens, positions, CPU)
    states = {}
    for precision in ("fp32", "bf16"):
        meta_lm = build_meta_lm(commandline.load("pretrain", [*SHAPE, f"train.precision={precision}"]))
        whole = meta_lm.states(torch.from_numpy(tokens))[torch.arange(12), torch.from_numpy(positions)]
        states[precision] = meta_lm.states_read(cut), whole
    exact = states["fp32"][1]
    ours, theirs = ((found - exact).norm() for found in states["bf16"])
    assert ours <= 1.1 * theirs


def test_what_stands_behind_the_state_is_not_computed():
    tokens, positions = drawn(64, 128, 0)
    assert Windows.cut(tokens, positions, CPU).tokens.numel() < 0.6 * tokens.size  # the mean is a half
    at_end = Windows.cut(tokens, np.full(64, 127), CPU)
    assert at_end.groups == ((64, 128),)
    assert torch.equal(at_end.tokens.view(64, 128), torch.from_numpy(tokens))


@pytest.mark.parametrize(
    ("scope", "over_support"), [("head", 1), ("full", 1 + 10 * 3), ("last_n", 1 + 10 * 2)]
)
def test_operations_of_an_episode_are_those_of_what_is_read(scope: str, over_support: int):
    words = ["objective=maml", "model.num_layers=4", "meta.last_n=2", "meta.inner_steps=10"]
    config = commandline.load("pretrain", [*words, f"meta.scope={scope}"])
    per_token = {length: Cost.of(config.model, length).blocks for length in (3, 9)}
    expected = over_support * (2 * 3 * per_token[3] + 9 * per_token[9]) + 3 * 3 * per_token[3]
    assert flops_of_episode(config, [3, 9, 3], [3]) == expected
    shots = [
        [config.meta.window] * (config.meta.n_way * count)
        for count in (config.meta.k_shot, config.meta.q_query)
    ]
    assert flops_of_step(config, True) == config.meta.tasks_per_step * flops_of_episode(config, *shots)
