"""Episodes of word classes on windows: what is sampled, from where, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_adaptation import configuration, word_classes

from metapt.config import MetaConfig, commandline
from metapt.data.corpus_words import TokenKind, find_units
from metapt.data.word_classes import WordClasses, evenly_spread_stretches
from metapt.data.word_windows import WordIndex, WordWindowSampler
from metapt.errors import UserError

MASK, KINDS = (
    1,
    np.array([TokenKind.ALONE] * 2 + [TokenKind.BEGINS] * 48 + [TokenKind.LETTERS] * 14, dtype=np.uint8),
)


def meta(**settings: object) -> MetaConfig:
    shape = {"task": "word_classes", "n_way": 4, "k_shot": 2, "q_query": 2, "window": 10, "min_context": 2}
    return configuration(**{**shape, **settings}).meta


@pytest.fixture
def tokens() -> np.ndarray:
    """Words of one token (2 to 49), some followed by a letter token (50 to 63), which makes another word of them."""
    return np.random.default_rng(0).integers(2, 64, 6000)


def sampler(stream_of, tokens: np.ndarray, **settings: object) -> WordWindowSampler:
    config, stream, classes = meta(**settings), stream_of(tokens), word_classes()
    index = WordIndex.build(stream, KINDS, classes, config.window, len(tokens))
    return WordWindowSampler(stream, index, classes, config, 0, MASK)


def words_at(tokens: np.ndarray, classes: WordClasses) -> dict[int, int]:
    """The known word type that begins at each position, found word by word."""
    found, start = {}, 0
    while start < len(tokens):
        stop = start + 1
        while stop < len(tokens) and tokens[stop] >= 50:
            stop += 1
        kind = (
            classes.types_of(find_units(tokens[start:stop], KINDS).keys[:1])[0] if stop - start <= 8 else -1
        )
        if kind >= 0 and start > 0 and stop < len(tokens):
            found[start] = int(kind)
        start = stop
    return found


def test_the_index_has_every_word_that_is_not_held_out(stream_of, tokens: np.ndarray) -> None:
    classes = word_classes()
    index = WordIndex.build(stream_of(tokens), KINDS, classes, 10, len(tokens))
    expected = {
        place: kind
        for place, kind in words_at(tokens, classes).items()
        if place >= 9 and not classes.is_held_out[kind]
    }
    types = np.repeat(np.arange(len(classes.keys)), index.counts)
    assert dict(zip(index.starts.tolist(), types.tolist(), strict=True)) == expected
    assert len(expected) > 1000


@pytest.mark.parametrize("part", [0.001, 0.1, 0.9])
def test_a_part_of_a_corpus_is_spread_over_all_of_it(stream_of, tokens: np.ndarray, part: float) -> None:
    """In stretches of equal length from the first token to the last, no matter how small the part is."""
    limit = int(part * len(tokens))
    stretches = list(evenly_spread_stretches(stream_of(tokens), limit))
    starts = np.array([start for start, _ in stretches])
    ends = starts + [len(stretch) for _, stretch in stretches]
    assert (starts[0], ends[-1]) == (0, len(tokens))
    assert np.ptp(np.diff(starts)) <= 1
    assert len(starts) == min(16, limit)
    assert limit <= (ends - starts).sum() < limit + 16


def test_a_window_ends_with_a_word_of_its_class(stream_of, tokens: np.ndarray) -> None:
    source, classes = sampler(stream_of, tokens, mask_fraction=0.5), word_classes()
    words, masked, partitions = words_at(tokens, classes), [], set()
    for number in range(20):
        episode = source.episode(3, number)
        types: list[int] = []
        for side in (episode.support, episode.query):
            assert side.tokens.shape == (8, 10)
            assert (side.positions == 9).all()
            for row, label, start in zip(side.tokens, side.labels, side.windows.tolist(), strict=True):
                assert row[:-1].tolist() == tokens[start - 9 : start].tolist()
                masked.append(row[-1] == MASK)
                assert masked[-1] or row[-1] == tokens[start]
                number_of_class = int(episode.classes[label])
                partition, own = (0, number_of_class) if number_of_class < 6 else (1, number_of_class - 6)
                partitions.add(partition)
                types.append(words[start])
                assert classes.partitions[partition, types[-1]] == own
        assert len(set(types)) == len(types) == 16, "a word type occurs twice"
        assert not classes.is_held_out[types].any()
    assert partitions == {0, 1}
    assert 0.3 < np.mean(masked) < 0.7


def test_an_episode_is_a_function_of_seed_step_and_task(stream_of, tokens: np.ndarray) -> None:
    source = sampler(stream_of, tokens)
    again = sampler(stream_of, tokens).episode(5, 1)
    assert source.episode(5, 1).query.windows.tolist() == again.query.windows.tolist()
    assert source.episode(5, 2).query.windows.tolist() != again.query.windows.tolist()
    assert source.episode(6, 1).query.windows.tolist() != again.query.windows.tolist()


def test_an_index_is_kept(stream_of, tokens: np.ndarray, tmp_path: Path) -> None:
    index = WordIndex.build(stream_of(tokens), KINDS, word_classes(), 10, len(tokens))
    index.save(tmp_path / "words")
    loaded = WordIndex.load(tmp_path / "words")
    assert loaded.starts.tolist() == index.starts.tolist()
    assert loaded.offsets.tolist() == index.offsets.tolist()


def test_too_few_classes_are_refused_with_numbers(stream_of, tokens: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"meta.n_way=4 classes with 40 word types .* one has 0"):
        sampler(stream_of, tokens, k_shot=20, q_query=20)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["meta.task=word_classes"], "needs at least two partitions"),
        (
            ["meta.task=word_classes", "classes.sizes=[6,5]", "meta.prediction_position=end"],
            "windows of meta.task=word_classes end with the word itself",
        ),
        (["meta.initial_head=zero", "meta.inner_steps=0"], "learns nothing"),
        (["meta.initial_head=prototypes", "meta.algorithm=meta_sgd"], "makes anew in each episode"),
        (["meta.inner_steps=0", "meta.algorithm=reptile", "meta.scope=full"], "learns from inner steps"),
    ],
)
def test_what_does_not_combine_is_refused_in_one_line(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        commandline.load("pretrain", ["model=nano", "objective=maml_paper", "run_dir=run", *settings])
