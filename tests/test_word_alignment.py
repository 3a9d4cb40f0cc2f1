"""Words, subwords and windows agree with the alignment of transformers (`word_ids`) on arbitrary Unicode words."""

from __future__ import annotations

import os
from functools import cache
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from ner_world import NOTHING, make_tokenizer, write_checkpoint
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast

from metapt.data.iob2 import TAGS, Sentence
from metapt.models.base_model import load_base_model
from metapt.tagger.encoding import WordTokenizer, encode, word_features
from metapt.tagger.model import Tagger, TagLayer

ODD = [
    "\x00",
    "\x07\x1b[0m",
    "\u200d",
    "\u200b",
    "\ufeff",
    "👩🏽\u200d🚀",
    "🇵🇭",
    "e\u0301",
    "\u0301",
    "न्दी",
    "日本",
    "Ñ",
    "a b",
    "'s",
    "<eos>",
]
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8) | st.sampled_from(
    [*ODD, "Maria", "Davao", "ang"]
)


def starts_without_space(word: str) -> bool:
    """transformers adds no prefix space to a word that starts with white space."""
    return not word[0].isspace()


SENTENCES = st.lists(WORDS.filter(starts_without_space), min_size=1, max_size=12)


@cache
def tokenizer_of(name: str, prefix_space: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE, with or without a prefix space before each word."""
    if name == "small":
        tokenizer = make_tokenizer()
    else:
        file = os.environ.get("METAPT_TOKENIZER")
        if not file:
            pytest.skip("METAPT_TOKENIZER is not set")
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=file, eos_token="<|endoftext|>")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    return tokenizer


def by_word(tokenizer: PreTrainedTokenizerFast, words: list[str]) -> dict[int, list[int]]:
    """Map word numbers to subwords as transformers aligns them; words without subwords are missing."""
    batch = tokenizer([words], is_split_into_words=True, add_special_tokens=False, split_special_tokens=True)
    paired = zip(batch.word_ids(0), batch["input_ids"][0], strict=True)
    return {
        word: [subword for _, subword in pairs] for word, pairs in groupby(paired, key=lambda pair: pair[0])
    }


@pytest.mark.parametrize("name", ["small", pytest.param("published", marks=pytest.mark.real_data)])
@pytest.mark.parametrize("prefix_space", [True, False])
def test_subwords_agree_with_word_ids(name: str, prefix_space: bool) -> None:
    reference, plain = tokenizer_of(name, prefix_space), tokenizer_of(name, False)
    word_tokenizer = WordTokenizer(plain, prefix_space, max_subwords=10_000)
    bare_space = plain.encode(" ", add_special_tokens=False)

    @settings(max_examples=150, deadline=None)
    @given(SENTENCES)
    def check(words: list[str]) -> None:
        expected = by_word(reference, words)
        for index, found in enumerate(word_tokenizer(words)):
            subwords = expected.get(index, [])
            if prefix_space and subwords[:1] == bare_space:  # a space of its own is left out
                subwords = plain.encode(words[index], add_special_tokens=False, split_special_tokens=True)
            assert found.ids == (subwords or [plain.eos_token_id])

    check()


def test_special_token_as_a_word_is_plain_text() -> None:
    """Even after a call with the default of the tokenizer, which would give the special token."""
    tokenizer = tokenizer_of("small", False)
    assert tokenizer.encode("<eos>", add_special_tokens=False) == [tokenizer.eos_token_id]
    (found,) = WordTokenizer(tokenizer, False, max_subwords=99)(["<eos>"])
    assert tokenizer.eos_token_id not in found.ids
    assert tokenizer.decode(found.ids) == "<eos>"


def test_dropped_word_does_not_shift_the_others() -> None:
    words = ["Maria", NOTHING, "Davao"]
    assert by_word(tokenizer_of("small", False), words).keys() == {0, 2}
    found = WordTokenizer(tokenizer_of("small", False), False, max_subwords=99)(words)
    assert [len(each.ids) > 0 for each in found] == [True, True, True]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(WORDS, min_size=1, max_size=20), min_size=1, max_size=3), st.integers(4, 40))
def test_every_word_occurs_once_with_left_context(texts: list[list[str]], max_len: int) -> None:
    word_tokenizer = WordTokenizer(tokenizer_of("small", False), True, max_subwords=max_len // 2)
    sentences = [Sentence(str(n), tuple(words), ("O",) * len(words)) for n, words in enumerate(texts)]
    encoded = encode(sentences, word_tokenizer, max_len, TAGS, split=False)
    assert encoded.lengths.tolist() == [len(words) for words in texts]
    windows = iter(encoded.windows)
    for words in texts:
        subwords = word_tokenizer(words)
        flat = [subword for word in subwords for subword in word.ids]
        borders = np.cumsum([0, *(len(word.ids) for word in subwords)])
        index = 0
        while index < len(words):
            window = next(windows)
            assert 0 < len(window.subwords) <= max_len
            for first, last in zip(window.firsts, window.lasts, strict=True):
                start, stop = borders[index] + subwords[index].first, borders[index + 1]
                assert window.subwords[: last + 1].tolist() == flat[start - first : stop]
                assert first >= min(start, max_len // 2 - max(len(word.ids) for word in subwords) + 1)
                index += 1
    assert next(windows, None) is None


def first_complete(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> int:
    """Index of the first subword with which the decoded text has a character other than a replacement character."""
    return next(index for index in range(len(ids)) if tokenizer.decode(ids[: index + 1]).strip("\ufffd "))


@pytest.mark.parametrize("prefix_space", [True, False])
@pytest.mark.parametrize("subword_pooling", ["first", "last", "mean"])
def test_features_are_the_states_at_word_ids(
    tmp_path: Path, subword_pooling: str, prefix_space: bool
) -> None:
    """Compared with one decoder pass over the input that transformers builds from the list of words.

    With a space before each word, only words whose first subword includes it are compared: elsewhere it is left out.
    """
    decoder = load_base_model(write_checkpoint(tmp_path))
    tagger = Tagger(decoder, TagLayer(32, TAGS, "crf", dropout=0.1), subword_pooling).eval()
    words = ["Maria", "lives", "in", *(word for word in ODD if word != NOTHING), "Davao"]
    reference, plain = tokenizer_of("small", prefix_space), tokenizer_of("small", False)
    if prefix_space:
        bare_space = plain.encode(" ", add_special_tokens=False)
        words = [word for word in words if by_word(reference, [word])[0][:1] != bare_space]
    batch = reference(
        [words],
        is_split_into_words=True,
        add_special_tokens=False,
        split_special_tokens=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        states = decoder(batch["input_ids"]).last_hidden_state[0]
    word_ids = np.array(batch.word_ids(0))
    pick = {"first": lambda rows: rows[0], "last": lambda rows: rows[-1], "mean": lambda rows: rows.mean(0)}[
        subword_pooling
    ]
    own = [np.flatnonzero(word_ids == word) for word in range(len(words))]
    complete = [first_complete(plain, batch["input_ids"][0, rows].tolist()) for rows in own]
    expected = torch.stack([pick(states[rows[first:]]) for rows, first in zip(own, complete, strict=True)])
    assert (max(complete) > 0) == (not prefix_space)
    word_tokenizer = WordTokenizer(plain, prefix_space, max_subwords=64)
    encoded = encode(
        [Sentence("1", tuple(words), ("O",) * len(words))], word_tokenizer, 256, TAGS, split=False
    )
    torch.testing.assert_close(
        word_features(tagger, encoded, 4, Accelerator()), expected, rtol=1e-4, atol=1e-5
    )
