"""The subword at which a word is read: in the layouts of published tokenizers, against a decoder of bytes, in taggers."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_layouts import KNOWN, LAYOUTS, fast
from tokenizers import Tokenizer, pre_tokenizers

from metapt.data.iob2 import Sentence, read_iob2
from metapt.data.tokenizer_stats import read_tokenizer, subword_statistics
from metapt.data.word_subwords import WordSubwords, first_subword
from metapt.errors import UserError
from metapt.tagger.encoding import WordTokenizer, encode

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6) | st.sampled_from(
    [*KNOWN, "北京", "京在", "Ñe", "👩🏽", "'s", "\u200dMaria"]
)
BYTE_LEVEL = ("gpt2", "roberta", "llama3", "own")


@cache
def layout(name: str) -> Tokenizer:
    return LAYOUTS[name]()


def split(name: str, words: list[str], prefix_space: bool = True) -> list[WordSubwords]:
    return WordTokenizer(fast(layout(name)), prefix_space, max_subwords=64)(words)


def tokens(name: str, word: WordSubwords) -> list[str]:
    return [layout(name).id_to_token(subword) for subword in word.ids]


@pytest.mark.parametrize("name", LAYOUTS)
def test_words_of_the_vocabulary_are_one_subword_read_at_itself(name: str) -> None:
    """In particular, no space comes before one that the tokenizer adds itself (Llama-2, RoBERTa)."""
    found = split(name, list(KNOWN))
    space = {"bert": "", **dict.fromkeys(BYTE_LEVEL, "Ġ")}.get(name, "▁")
    assert [tokens(name, word) for word in found] == [[space + word] for word in KNOWN]
    assert all((word.first, word.holds_character) == (0, True) for word in found)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2", (3 * 2, "Ĺ")),
        ("roberta", (1 + 3 * 2, "Ĺ")),  # its own space stays alone, which nobody can prevent
        ("llama3", (3 * 2, "Ĺ")),
        ("own", (3 * 2, "Ĺ")),
        ("llama2", (1 + 3 + 1, "<0x97>")),
        ("mistral", (1 + 3 + 1, "<0x97>")),
        ("xlm_roberta", (3, "北")),
        ("t5", (1 + 3 + 1, "<0x97>")),
        ("bert", (2, "[UNK]")),
    ],
)
def test_chinese_words_are_read_where_their_first_character_is_complete(
    name: str, expected: tuple[int, str]
) -> None:
    (word,) = split(name, ["北京"])
    read = "北" if name == "xlm_roberta" else tokens(name, word)[word.first]
    assert (len(word.ids), read) == expected
    if name == "xlm_roberta":  # an unknown character has the id of <unk>
        assert word.ids[word.first] == layout(name).token_to_id("<unk>")
    assert word.holds_character


@pytest.mark.parametrize("name", ["llama2", "mistral", "t5", "xlm_roberta"])
def test_known_chinese_character_after_a_bare_space(name: str) -> None:
    (word,) = split(name, ["京"])
    assert (tokens(name, word), word.first) == (["▁", "京"], 1)


@pytest.mark.parametrize("prefix_space", [True, False])
@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_first_subword_agrees_with_decoded_bytes(name: str, prefix_space: bool) -> None:
    """Independent of offsets: the shortest prefix of the subwords whose bytes contain a whole visible character."""
    bytes_of = {character: byte for byte, character in enumerate(_byte_alphabet())}

    @settings(max_examples=200, deadline=None)
    @given(WORDS)
    def check(word: str) -> None:
        (found,) = split(name, [word], prefix_space)
        if not found.holds_character:
            return
        content = [bytes(bytes_of[character] for character in token) for token in tokens(name, found)]
        for index in range(len(content)):
            known = b"".join(content[: index + 1]).decode("utf-8", errors="ignore")
            if any(not character.isspace() for character in known):
                assert found.first == index
                return
        raise AssertionError("no character is complete")

    check()


def _byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes in byte-level BPE, by byte (Radford et al. 2019, encoder.py)."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    alphabet = [chr(byte) if byte in visible else chr(next(others)) for byte in range(256)]
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    return alphabet


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_space_never_stands_alone_because_it_was_added(name: str) -> None:
    """A word has at most the bare space that it has without `prefix_space`, and reading it passes over that space."""

    @settings(max_examples=100, deadline=None)
    @given(WORDS.filter(lambda word: not any(character.isspace() for character in word)))
    def check(word: str) -> None:
        (found,), (plain,) = split(name, [word]), split(name, [word], prefix_space=False)
        bare = ("Ġ", "▁")
        if found.ids != plain.ids:
            assert tokens(name, found)[0] not in bare
        if found.holds_character and len(found.ids) > 1:
            assert tokens(name, found)[found.first] not in bare or word[0] in "Ġ▁"

    check()


def test_characters_that_are_dropped_or_white_space_are_passed_over() -> None:
    assert first_subword(" ab", [(0, 1), (1, 3)]) == 1
    assert first_subword("北", [(0, 1), (0, 1), (0, 1)]) == 2
    assert first_subword("\u200dab", [(1, 2), (2, 3)]) == 0
    assert first_subword("\u3000a", [(0, 1), (1, 2)]) == 1
    assert first_subword("  ", [(0, 1), (1, 2)]) is None
    assert first_subword("a", []) is None


def test_words_without_a_character_are_counted() -> None:
    sentence = Sentence("1", ("Maria", " ", "北京"), ("O", "O", "O"))
    encoded = encode([sentence], WordTokenizer(fast(layout("gpt2")), True, 64), 128, ("O",), split=False)
    assert encoded.words_without_character == 1
    assert encoded.pooled_character_fraction == pytest.approx(2 / 3)
    assert subword_statistics([sentence], layout("gpt2"))["pooled_character_fraction"] == pytest.approx(2 / 3)
    cut = WordTokenizer(fast(layout("gpt2")), True, max_subwords=2)(["北京"])[0]
    assert (len(cut.ids), cut.first, cut.holds_character) == (2, 1, False)


def test_tokenizers_without_offsets_are_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match=r"Slow has no tokenizer\.json"):
        WordTokenizer(Slow(), True, 64)  # type: ignore[arg-type]


@pytest.mark.real_data
def test_words_of_real_sets_are_read_at_a_letter() -> None:
    """With the tokenizer of the paper, 95 % of Chinese words were read at a bare space in version 0.1."""
    root, tokenizer_file = os.environ.get("METAPT_UNER_DIR"), os.environ.get("METAPT_TOKENIZER")
    if not root or not tokenizer_file:
        pytest.skip("METAPT_UNER_DIR and METAPT_TOKENIZER are not both set")
    tokenizer = read_tokenizer(tokenizer_file)
    for name in ("zh_gsd", "zh_pud", "en_ewt", "tl_trg"):
        path = Path(root) / name / "test.iob2"
        if path.is_file():
            found = subword_statistics(read_iob2(path), tokenizer)
            assert found["pooled_character_fraction"] == 1
