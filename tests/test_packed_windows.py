"""Packed windows, truncated after their prediction position, equal full windows."""

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
from metapt.models.packed_windows import PackedWindows

CPU = torch.device("cpu")
SHAPE = ["model.num_layers=2", "model.vocab_size=300", "data.vocab_size=300"]


@pytest.fixture(scope="module")
def meta_lm() -> MetaLM:
    return build_meta_lm(commandline.load("pretrain", [*SHAPE, "train.precision=fp32"])).double()


def random_windows(count: int, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [count, length] and a prediction position in each window, [count]."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 300, (count, length)), generator.integers(0, length, count)


@given(st.integers(1, 12), st.integers(1, 30), st.integers(1, 20), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_packed_windows_end_at_their_prediction_position(count: int, length: int, groups: int, seed: int):
    tokens, positions = random_windows(count, length, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_windows, "MAX_GROUPS", groups)
        patch.setattr(packed_windows, "MIN_GROUP_WINDOWS", 1)
        packed = PackedWindows.pack(tokens, positions, CPU)
    row, position_ids = packed.tokens[0].numpy(), packed.position_ids[0].numpy()
    indices = packed.prediction_indices.numpy()
    for window, (index, position) in enumerate(zip(indices, positions, strict=True)):
        own = slice(index - position, index + 1)
        assert (row[own] == tokens[window, : position + 1]).all()
        assert (position_ids[own] == np.arange(position + 1)).all()
    sizes = [windows * group_length for windows, group_length in packed.groups]
    assert sum(windows for windows, _ in packed.groups) == count
    assert sum(sizes) == len(row) == len(position_ids)
    assert len(packed.groups) <= groups
    starts = np.cumsum([0, *sizes[:-1]])
    for start, size, (windows, group_length) in zip(starts, sizes, packed.groups, strict=True):
        own = indices[(indices >= start) & (indices < start + size)] - start
        assert sorted(own // group_length) == list(range(windows)), "each window has one prediction position"


@given(st.integers(1, 9), st.integers(1, 20), st.integers(1, 10), st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_states_and_gradients_equal_those_of_full_windows(
    meta_lm: MetaLM, count: int, length: int, groups: int, seed: int
):
    tokens, positions = random_windows(count, length, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_windows, "MAX_GROUPS", groups)
        patch.setattr(packed_windows, "MIN_GROUP_WINDOWS", 1)
        packed = PackedWindows.pack(tokens, positions, CPU)
    weights = torch.randn(count, meta_lm.decoder.config.hidden_size, dtype=torch.float64)
    parameters = list(meta_lm.decoder.model.parameters())
    states = meta_lm.prediction_states(packed)
    full = meta_lm.hidden_states(torch.from_numpy(tokens))[torch.arange(count), torch.from_numpy(positions)]
    torch.testing.assert_close(states, full, rtol=1e-9, atol=1e-9)
    gradients, expected = (
        torch.autograd.grad((hidden * weights).sum(), parameters) for hidden in (states, full)
    )
    torch.testing.assert_close(gradients, expected, rtol=1e-9, atol=1e-9)


def test_bf16_error_of_packed_windows_is_that_of_full_ones():
    tokens, positions = random_windows(12, 70, 0)
    windows = PackedWindows.pack(tokens, positions, CPU)
    states = {}
    for precision in ("fp32", "bf16"):
        meta_lm = build_meta_lm(commandline.load("pretrain", [*SHAPE, f"train.precision={precision}"]))
        full = meta_lm.hidden_states(torch.from_numpy(tokens))[torch.arange(12), torch.from_numpy(positions)]
        states[precision] = meta_lm.prediction_states(windows), full
    exact = states["fp32"][1]
    packed_error, full_error = ((hidden - exact).norm() for hidden in states["bf16"])
    assert packed_error <= 1.1 * full_error


def test_tokens_after_the_prediction_position_are_not_computed():
    tokens, positions = random_windows(64, 128, 0)
    packed = PackedWindows.pack(tokens, positions, CPU)
    # Positions are uniform, so that half of the tokens remain on average.
    assert packed.tokens.numel() < 0.6 * tokens.size
    at_end = PackedWindows.pack(tokens, np.full(64, 127), CPU)
    assert at_end.groups == ((64, 128),)
    assert torch.equal(at_end.tokens.view(64, 128), torch.from_numpy(tokens))


@pytest.mark.parametrize(
    ("scope", "support_passes"), [("head", 1), ("full", 1 + 10 * 3), ("last_n", 1 + 10 * 2)]
)
def test_flops_of_an_episode_count_truncated_windows(scope: str, support_passes: int):
    arguments = ["objective=maml_paper", "model.num_layers=4", "meta.last_n=2", "meta.inner_steps=10"]
    config = commandline.load("pretrain", [*arguments, f"meta.scope={scope}"])
    per_token = {length: Cost.of(config.model, length).blocks for length in (3, 9)}
    expected = support_passes * (2 * 3 * per_token[3] + 9 * per_token[9]) + 3 * 3 * per_token[3]
    assert flops_of_episode(config, [3, 9, 3], [3]) == expected
    shots = [
        [config.meta.window] * (config.meta.n_way * count)
        for count in (config.meta.k_shot, config.meta.q_query)
    ]
    assert flops_of_step(config, True) == config.meta.tasks_per_step * flops_of_episode(config, *shots)
