"""Words found in token streams, and their classes: against naive code, numpy's own algebra, and planted classes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from sklearn.metrics import adjusted_rand_score
from tokenizers import Tokenizer, decoders, models, normalizers

from metapt.data import word_classes
from metapt.data.corpus_words import MAX_SUBWORDS, TokenKind, find_units, token_kinds, token_texts
from metapt.data.tokenizers import train_tokenizer
from metapt.data.word_classes import ClassSettings, WordClasses, label_words, make_word_classes
from metapt.errors import UserError

KINDS = np.array([kind for kind in TokenKind for _ in range(3)], dtype=np.uint8)  # three tokens of each kind


def naive_units(tokens: list[int]) -> list[tuple[int, ...]]:
    """The units of a text, one token after the other."""
    units: list[list[int]] = []
    for place, token in enumerate(tokens):
        before = KINDS[tokens[place - 1]] if place else TokenKind.ALONE
        if KINDS[token] == TokenKind.LETTERS and before in (TokenKind.BEGINS, TokenKind.LETTERS):
            units[-1].append(token)
        else:
            units.append([token])
    return [tuple(unit) for unit in units]


@given(st.lists(st.integers(0, len(KINDS) - 1), min_size=1, max_size=60))
def test_units_are_those_of_naive_code(tokens: list[int]) -> None:
    units, expected = find_units(np.array(tokens), KINDS), naive_units(tokens)
    assert [
        tuple(tokens[start : start + length])
        for start, length in zip(units.starts, units.lengths, strict=True)
    ] == expected
    short = [len(unit) <= MAX_SUBWORDS for unit in expected]
    assert units.is_word.tolist() == [
        fits and KINDS[unit[0]] != TokenKind.ALONE for unit, fits in zip(expected, short, strict=True)
    ]
    for (one, key), (other, other_key) in product(zip(expected, units.keys.tolist(), strict=True), repeat=2):
        if len(one) <= MAX_SUBWORDS and len(other) <= MAX_SUBWORDS:
            assert (one == other) == (key == other_key)
    assert [key == 0 for key in units.keys] == [not fits for fits in short]


def test_tokens_of_a_byte_level_vocabulary_spell_the_text() -> None:
    text = "The hills of Davao, 12 km away: ang bató ay maliit. \n Ünïcode 日本"
    tokenizer = train_tokenizer([text] * 3, 400).backend_tokenizer
    texts = token_texts(tokenizer)
    ids = tokenizer.encode("The hills of Davao, 12 km away.").ids
    assert "".join(texts[token] for token in ids) == "The hills of Davao, 12 km away."
    kinds = token_kinds(texts)
    assert all(
        kinds[token] == TokenKind.ALONE
        for token in range(len(texts))
        if texts[token].strip(" .,:0123456789\n") == ""
    )


def test_tokens_of_a_sentencepiece_vocabulary_have_their_leading_space() -> None:
    vocabulary = {"<unk>": 0, "\u2581hill": 1, "s": 2, ".": 3, "<0x0A>": 4, "\u2581": 5, "\u65e5": 6}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Replace("\u2581", " ")
    texts = token_texts(tokenizer)
    assert texts[1:] == [" hill", "s", ".", "\n", " ", "\u65e5"]
    expected = ["BEGINS", "LETTERS", "ALONE", "ALONE", "ALONE", "UNSPACED"]
    assert [TokenKind(kind).name for kind in token_kinds(texts)[1:]] == expected


def planted(
    seed: int, classes: int = 6, words_per_class: int = 12, sentences: int = 12_000
) -> tuple[np.ndarray, list[str]]:
    """Token ids of sentences `function-word word-of-its-class full-stop`; each class has two function words of its own."""
    draw = np.random.default_rng(seed)
    texts = ["."] + [f" f{chr(97 + index)}" for index in range(2 * classes)]
    texts += [
        f" w{chr(97 + group)}{chr(97 + word)}" for group in range(classes) for word in range(words_per_class)
    ]
    group = draw.integers(0, classes, sentences)
    before = 1 + 2 * group + draw.integers(0, 2, sentences)
    word = 1 + 2 * classes + words_per_class * group + draw.integers(0, words_per_class, sentences)
    return np.stack([before, word, np.zeros(sentences, np.int64)], axis=1).ravel(), texts


SMALL = ClassSettings(tokens=10**6, words=200, contexts=30, dimensions=8, sizes=(6, 9, 6))


def test_planted_classes_are_found(stream_of: Callable) -> None:
    tokens, texts = planted(0)
    classes = make_word_classes(stream_of(tokens), texts, SMALL)
    assert classes.sizes == [6, 9, 6]
    words = [number for number, text in enumerate(classes.texts) if text.startswith(" w")]
    truth = [classes.texts[number][2] for number in words]
    for partition in (0, 2):
        assert adjusted_rand_score(truth, classes.partitions[partition][words]) > 0.9
    assert classes.counts.sum() == 2 * 12_000
    label = int(classes.partitions[0][words[0]])
    assert classes.texts[words[0]] in classes.members(0, label, 100)


def test_shuffled_classes_keep_sizes_and_frequencies_but_no_meaning(stream_of: Callable) -> None:
    """Every band of like frequency keeps its classes; the partition that nothing trains on is untouched."""
    tokens, texts = planted(0)
    plain, mixed = (
        make_word_classes(stream_of(tokens), texts, replace(SMALL, shuffle_band=band)) for band in (0, 50)
    )
    assert mixed.sha256 != plain.sha256
    assert (mixed.partitions[-1] == plain.partitions[-1]).all()
    order = np.argsort(-plain.counts, kind="stable")
    for before, after in zip(plain.partitions[:-1], mixed.partitions[:-1], strict=True):
        assert abs(adjusted_rand_score(before, after)) < 0.1
        for start in range(0, len(order), 50):
            band = order[start : start + 50]
            assert Counter(before[band].tolist()) == Counter(after[band].tolist())


def test_contexts_are_counted_as_by_naive_code(stream_of: Callable) -> None:
    draw = np.random.default_rng(1)
    tokens = draw.integers(0, len(KINDS), 3000)
    units = naive_units(tokens.tolist())
    found = find_units(tokens, KINDS)
    known = np.unique(found.keys[found.keys != 0])
    counts = word_classes._count_contexts(lambda: iter([(0, tokens)]), KINDS, known, known)
    expected: Counter[tuple[int, int]] = Counter()
    number = {
        unit: int(np.searchsorted(known, key)) for unit, key in zip(units, found.keys, strict=True) if key
    }
    for place, unit in enumerate(units):
        for distance in (-2, -1, 1, 2):
            other = place + distance
            if unit in number and 0 <= other < len(units) and units[other] in number:
                expected[number[unit], number[units[other]] + (len(known) if distance > 0 else 0)] += 1
    coo = counts.tocoo()
    assert {
        (r, c): v for r, c, v in zip(coo.row.tolist(), coo.col.tolist(), coo.data.tolist(), strict=True)
    } == expected


def test_ppmi_and_vectors_are_those_of_dense_algebra() -> None:
    counts = np.random.default_rng(2).poisson(0.7, (40, 24))
    smoothed = counts.sum(0) ** 0.75 / (counts.sum(0) ** 0.75).sum()
    with np.errstate(divide="ignore"):
        pmi = np.log((counts / counts.sum()) / ((counts.sum(1, keepdims=True) / counts.sum()) * smoothed))
    expected = np.maximum(pmi, 0)
    matrix = word_classes._ppmi(sparse.csr_matrix(counts))
    np.testing.assert_allclose(matrix.toarray(), expected, atol=1e-12)
    left, values, _ = np.linalg.svd(expected, full_matrices=False)
    dense = left[:, :7] * np.sqrt(values[:7])
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    vectors = word_classes._vectors(matrix, 7)
    np.testing.assert_allclose(
        vectors @ vectors.T, dense @ dense.T, atol=1e-8
    )  # signs of columns do not matter


def small_classes() -> WordClasses:
    """Two classes of the one-token words of KINDS that begin with a space."""
    keys = np.sort(find_units(np.array([3, 4, 5]), KINDS).keys)
    return WordClasses(keys, np.ones(3, np.int64), np.array([[0, 1, 0]], np.int16), (" a", " b", " c"))


def test_words_at_the_edges_of_a_sequence_have_no_label() -> None:
    sequences = np.array([[3, 0, 3, 6, 4, 0, 5], [6, 4, 0, 5, 5, 0, 4]])  # 6 continues the word before it
    examples = label_words(sequences, KINDS, small_classes())
    assert list(zip(examples.rows.tolist(), examples.positions.tolist(), strict=True)) == [
        (0, 4),
        (1, 1),
        (1, 3),
        (1, 4),
    ]
    assert [small_classes().keys[number] for number in examples.types] == find_units(
        np.array([4, 4, 5, 5]), KINDS
    ).keys.tolist()


def test_a_tenth_of_the_word_types_is_held_out_by_the_word_alone() -> None:
    keys = np.sort(np.random.default_rng(3).integers(0, 2**63, 20_000).astype(np.uint64))
    whole = WordClasses(keys, np.ones(len(keys), np.int64), np.zeros((1, len(keys)), np.int16), ())
    half = WordClasses(keys[::2], whole.counts[::2], whole.partitions[:, ::2], ())
    assert 0.09 < whole.is_held_out.mean() < 0.11
    assert (half.is_held_out == whole.is_held_out[::2]).all()


def test_a_corpus_that_is_too_small_is_refused_with_numbers(stream_of: Callable) -> None:
    tokens, texts = planted(0, sentences=2000)
    with pytest.raises(
        UserError, match=r"84 word types occur at least 8 times.*100 classes need 400.*classes\.sizes"
    ):
        make_word_classes(stream_of(tokens), texts, ClassSettings(sizes=(100,), dimensions=8))


def test_classes_are_the_same_bits_at_any_number_of_threads(tmp_path: Path) -> None:
    script = tmp_path / "make.py"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_word_classes import SMALL, planted\n"
        "from metapt.data.word_classes import make_word_classes\n"
        "class Stream:\n"
        "    def __init__(self, tokens): self.all = tokens\n"
        "    def __len__(self): return len(self.all)\n"
        "    def tokens(self, start, stop): return self.all[start:stop]\n"
        "tokens, texts = planted(0)\n"
        "print(make_word_classes(Stream(tokens), texts, SMALL).sha256)\n"
    )
    found = set()
    for threads in ("1", "2"):
        environment = os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
        command = [sys.executable, str(script), str(Path(__file__).parent)]
        found.add(subprocess.check_output(command, env=environment, cwd=Path(__file__).parents[1], text=True))
    assert len(found) == 1
