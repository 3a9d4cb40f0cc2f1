"""What an SMLMT episode must be, whatever the corpus."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metapt.config import MetaConfig
from metapt.data.episodes import Episode, EpisodeSampler, WindowIndex
from metapt.errors import UserError

MASK, EOS, VOCABULARY = 1, 0, 80


def make_meta(**changes: object) -> MetaConfig:
    values = {
        "objective": "maml",
        "n_way": 4,
        "k_shot": 2,
        "q_query": 3,
        "window": 12,
        "min_context": 3,
        "max_window_fraction": 0.6,
    }
    return MetaConfig(**{**values, **changes})


def make_tokens(seed: int, size: int = 6000) -> np.ndarray:
    """Zipf-like text without the mask."""
    draws = np.random.default_rng(seed).zipf(1.3, size)
    return np.where(draws < VOCABULARY - 2, draws + 1, EOS)


def make_sampler(stream_of: Callable, tokens: np.ndarray, meta: MetaConfig, seed: int = 0) -> EpisodeSampler:
    index = WindowIndex.build(tokens, VOCABULARY, meta.window, meta.min_context)
    return EpisodeSampler(stream_of(tokens), index, meta, seed, MASK, EOS)


@given(
    st.integers(0, 1000),
    st.integers(2, 6),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(4, 20),
    st.integers(0, 50),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_properties(stream_of, seed: int, n_way: int, k_shot: int, q_query: int, window: int, step: int):
    meta = make_meta(n_way=n_way, k_shot=k_shot, q_query=q_query, window=window)
    tokens = make_tokens(seed)
    sampler = make_sampler(stream_of, tokens, meta)
    task = sampler.episode(step, 0)
    grid = tokens[: len(tokens) // window * window].reshape(-1, window)

    used = np.concatenate([task.support.windows, task.query.windows])
    assert len(set(used.tolist())) == len(used), "a window is used twice"
    assert len(set(task.classes.tolist())) == n_way
    for side, per_class in ((task.support, k_shot), (task.query, q_query)):
        assert np.bincount(side.labels, minlength=n_way).tolist() == [per_class] * n_way
        kinds = task.classes[side.labels]
        original = grid[side.windows]
        # Every occurrence of the class token is masked, nothing else is changed.
        assert (side.tokens == np.where(original == kinds[:, None], MASK, original)).all()
        # The label is recoverable through the mask only.
        assert not (side.tokens == kinds[:, None]).any()
        # The mask that is read is the last one, and has seen enough.
        last = window - 1 - np.argmax((side.tokens == MASK)[:, ::-1], axis=1)
        assert (side.positions == last).all()
        assert (side.positions >= meta.min_context).all()


def test_at_the_end_of_the_window_the_same_windows_are_read(stream_of):
    tokens = make_tokens(0)
    at_mask, at_end = (
        make_sampler(stream_of, tokens, make_meta(prediction_position=place)) for place in ("mask", "end")
    )
    for left, right in zip(
        *(sampler.episode(3, 1).query.__dict__.items() for sampler in (at_mask, at_end)), strict=True
    ):
        name, value = right
        assert (value == 11).all() if name == "positions" else np.array_equal(left[1], value)


def test_classes_stay_within_the_bounds(stream_of):
    meta = make_meta(min_windows=9, max_window_fraction=0.1)
    tokens = make_tokens(0)
    sampler = make_sampler(stream_of, tokens, meta)
    grid = tokens[: len(tokens) // 12 * 12].reshape(-1, 12)
    for step in range(50):
        for kind in sampler.episode(step, 0).classes:
            windows = int((grid[:, meta.min_context :] == kind).any(axis=1).sum())
            assert 9 <= windows <= 0.1 * len(grid)
            assert kind not in (MASK, EOS)


def same(left: Episode, right: Episode) -> bool:
    return all(
        np.array_equal(getattr(left_side, name), getattr(right_side, name))
        for left_side, right_side in ((left.support, right.support), (left.query, right.query))
        for name in ("tokens", "positions", "labels", "windows")
    )


def test_an_episode_is_a_function_of_seed_step_and_task(stream_of):
    tokens, meta = make_tokens(0), make_meta()
    one, other, reseeded = (make_sampler(stream_of, tokens, meta, seed) for seed in (0, 0, 1))
    late = [other.episode(step, task) for step in (5, 0, 3) for task in (1, 0)]
    early = [one.episode(step, task) for step in (5, 0, 3) for task in (1, 0)]
    assert all(same(left, right) for left, right in zip(early, late, strict=True))
    assert not same(early[0], early[1])
    assert not same(early[0], early[2])
    assert not same(one.episode(0, 0), reseeded.episode(0, 0))


def test_class_numbers_are_shuffled(stream_of):
    """Over many episodes a frequent type takes every label about equally often."""
    meta = make_meta(n_way=4, min_windows=30)
    sampler = make_sampler(stream_of, make_tokens(0), meta)
    kind = sampler.eligible[0]
    places = [np.flatnonzero(sampler.episode(step, 0).classes == kind) for step in range(1500)]
    counts = np.bincount(np.concatenate(places), minlength=4)
    expected = counts.sum() / 4
    assert ((counts - expected) ** 2 / expected).sum() < 16.3  # chi-squared, 3 degrees of freedom, p = 0.001


def test_index_equals_a_slow_one():
    tokens = make_tokens(3, 500)
    index = WindowIndex.build(tokens, VOCABULARY, 12, 3)
    for kind in range(VOCABULARY):
        found = {}
        for number in range(500 // 12):
            places = [place for place in range(12) if tokens[number * 12 + place] == kind]
            if places and places[-1] >= 3:
                found[number] = places[-1]
        part = slice(index.offsets[kind], index.offsets[kind + 1])
        assert dict(zip(index.windows[part].tolist(), index.last[part].tolist(), strict=True)) == found


def test_index_survives_the_disk(tmp_path):
    index = WindowIndex.build(make_tokens(0), VOCABULARY, 12, 3)
    index.save(tmp_path / "index")
    loaded = WindowIndex.load(tmp_path / "index")
    assert all(
        np.array_equal(getattr(index, name), getattr(loaded, name)) for name in ("offsets", "windows", "last")
    )
    assert loaded.num_windows == index.num_windows


def test_too_small_a_corpus_is_refused_with_the_numbers(stream_of):
    with pytest.raises(UserError, match=r"4-way.*20 windows of 12 tokens are needed, there are 8"):
        make_sampler(stream_of, make_tokens(0, 100), make_meta())
    with pytest.raises(UserError, match=r"4 token types must occur in 8 to .* and \d+ do"):
        make_sampler(stream_of, np.full(6000, 5), make_meta())
