"""Properties of SMLMT episodes and of the window index."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metapt.config import MetaConfig
from metapt.data.episodes import Episode, EpisodeSampler, WindowIndex, corpus_index
from metapt.errors import UserError

MASK, EOS, VOCABULARY = 1, 0, 80


def make_meta(**changes: object) -> MetaConfig:
    defaults = {
        "objective": "maml",
        "n_way": 4,
        "k_shot": 2,
        "q_query": 3,
        "window": 12,
        "min_context": 3,
        "max_window_fraction": 0.6,
    }
    return MetaConfig(**{**defaults, **changes})


def make_tokens(seed: int, size: int = 6000) -> np.ndarray:
    """Zipf-distributed tokens without the mask token."""
    ranks = np.random.default_rng(seed).zipf(1.3, size)
    return np.where(ranks < VOCABULARY - 2, ranks + 1, EOS)


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
def test_properties_of_episodes(
    stream_of, seed: int, n_way: int, k_shot: int, q_query: int, window: int, step: int
):
    meta = make_meta(n_way=n_way, k_shot=k_shot, q_query=q_query, window=window)
    tokens = make_tokens(seed)
    sampler = make_sampler(stream_of, tokens, meta)
    episode = sampler.episode(step, 0)
    grid = tokens[: len(tokens) // window * window].reshape(-1, window)

    used = np.concatenate([episode.support.windows, episode.query.windows])
    assert len(set(used.tolist())) == len(used), "a window is used twice"
    assert len(set(episode.classes.tolist())) == n_way
    for examples, per_class in ((episode.support, k_shot), (episode.query, q_query)):
        assert np.bincount(examples.labels, minlength=n_way).tolist() == [per_class] * n_way
        types = episode.classes[examples.labels]
        original = grid[examples.windows]
        # Every occurrence of the class token is masked, nothing else is changed.
        assert (examples.tokens == np.where(original == types[:, None], MASK, original)).all()
        # Only the mask reveals the label.
        assert not (examples.tokens == types[:, None]).any()
        # The prediction position is the last mask, after enough context.
        last = window - 1 - np.argmax((examples.tokens == MASK)[:, ::-1], axis=1)
        assert (examples.positions == last).all()
        assert (examples.positions >= meta.min_context).all()


def test_prediction_position_at_the_end_of_the_window(stream_of):
    tokens = make_tokens(0)
    at_mask, at_end = (
        make_sampler(stream_of, tokens, make_meta(prediction_position=position))
        for position in ("mask", "end")
    )
    expected, query = (sampler.episode(3, 1).query for sampler in (at_mask, at_end))
    assert (query.positions == 11).all()
    for name in ("tokens", "labels", "windows"):
        assert np.array_equal(getattr(query, name), getattr(expected, name))


def test_frequency_limits_of_classes(stream_of):
    meta = make_meta(min_windows=9, max_window_fraction=0.1)
    tokens = make_tokens(0)
    sampler = make_sampler(stream_of, tokens, meta)
    grid = tokens[: len(tokens) // 12 * 12].reshape(-1, 12)
    for step in range(50):
        for token_type in sampler.episode(step, 0).classes:
            windows = int((grid[:, meta.min_context :] == token_type).any(axis=1).sum())
            assert 9 <= windows <= 0.1 * len(grid)
            assert token_type not in (MASK, EOS)


def are_equal(left: Episode, right: Episode) -> bool:
    return all(
        np.array_equal(getattr(first, name), getattr(second, name))
        for first, second in ((left.support, right.support), (left.query, right.query))
        for name in ("tokens", "positions", "labels", "windows")
    )


def test_an_episode_is_a_function_of_seed_step_and_task(stream_of):
    tokens, meta = make_tokens(0), make_meta()
    one, other, reseeded = (make_sampler(stream_of, tokens, meta, seed) for seed in (0, 0, 1))
    late = [other.episode(step, task) for step in (5, 0, 3) for task in (1, 0)]
    early = [one.episode(step, task) for step in (5, 0, 3) for task in (1, 0)]
    assert all(are_equal(left, right) for left, right in zip(early, late, strict=True))
    assert not are_equal(early[0], early[1])
    assert not are_equal(early[0], early[2])
    assert not are_equal(one.episode(0, 0), reseeded.episode(0, 0))


def test_class_numbers_are_shuffled(stream_of):
    """Over many episodes a frequent type has every label about equally often."""
    meta = make_meta(n_way=4, min_windows=30)
    sampler = make_sampler(stream_of, make_tokens(0), meta)
    token_type = sampler.eligible_types[0]
    labels = [np.flatnonzero(sampler.episode(step, 0).classes == token_type) for step in range(1500)]
    counts = np.bincount(np.concatenate(labels), minlength=4)
    expected = counts.sum() / 4
    assert ((counts - expected) ** 2 / expected).sum() < 16.3  # chi-squared, 3 degrees of freedom, p = 0.001


def test_index_against_a_naive_implementation():
    tokens = make_tokens(3, 500)
    index = WindowIndex.build(tokens, VOCABULARY, 12, 3)
    for token_type in range(VOCABULARY):
        expected = {}
        for number in range(500 // 12):
            positions = [position for position in range(12) if tokens[number * 12 + position] == token_type]
            if positions and positions[-1] >= 3:
                expected[number] = positions[-1]
        entries = slice(index.offsets[token_type], index.offsets[token_type + 1])
        windows, positions = index.windows[entries].tolist(), index.last_positions[entries].tolist()
        assert dict(zip(windows, positions, strict=True)) == expected


def test_save_and_load_the_index(tmp_path):
    index = WindowIndex.build(make_tokens(0), VOCABULARY, 12, 3)
    index.save(tmp_path / "index")
    loaded = WindowIndex.load(tmp_path / "index")
    assert all(
        np.array_equal(getattr(index, name), getattr(loaded, name))
        for name in ("offsets", "windows", "last_positions")
    )
    assert loaded.num_windows == index.num_windows


def test_too_small_corpus(stream_of):
    with pytest.raises(UserError, match=r"4-way.*it has 8 windows of 12 tokens, 20 are needed"):
        make_sampler(stream_of, make_tokens(0, 100), make_meta())
    with pytest.raises(UserError, match=r"\d+ token types occur in 8 to \d+ windows, 4 are needed"):
        make_sampler(stream_of, np.full(6000, 5), make_meta())


def test_the_index_of_a_part_of_a_corpus_is_spread_over_all_of_it(stream_of, tmp_path):
    """A corpus of five files, of which each has a token type of its own; a fifth of the windows is indexed."""
    window, windows_per_file = 12, 100
    tokens = np.repeat(np.arange(2, 7), windows_per_file * window)
    tokens[::2] = make_tokens(0, len(tokens) // 2) % 40 + 10
    corpus = SimpleNamespace(
        train=stream_of(tokens), folder=tmp_path, tokenizer=SimpleNamespace(size=VOCABULARY)
    )
    whole = corpus_index(corpus, make_meta(index_tokens=len(tokens)))
    part = corpus_index(corpus, make_meta(index_tokens=len(tokens) // 5))
    assert whole.num_windows == 5 * windows_per_file
    assert part.num_windows == windows_per_file
    assert part.counts[2:7].tolist() == [windows_per_file // 5] * 5
    for token_type in range(
        VOCABULARY
    ):  # what is indexed is what the index of everything says about these windows
        of_part, of_whole = (
            slice(index.offsets[token_type], index.offsets[token_type + 1]) for index in (part, whole)
        )
        last = dict(
            zip(whole.windows[of_whole].tolist(), whole.last_positions[of_whole].tolist(), strict=True)
        )
        windows = part.windows[of_part].tolist()
        assert [last[number] for number in windows] == part.last_positions[of_part].tolist()
