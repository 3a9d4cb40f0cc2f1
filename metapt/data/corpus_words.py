"""Words of a token stream, found from the tokens alone: which tokens begin a word, which continue one, and which stand alone.

A token of letters begins a word if it has a leading space or follows a token that is not part of a word; otherwise it
continues the word before it. Every other token (digits, punctuation, white space, special tokens) is a unit by itself. So is a token that
begins with a character of a script without spaces (Han, kana, Thai, Lao, Khmer, Myanmar, Tibetan): there a run of letters is no word, and
such tokens count as words of one token.

Case and the leading space belong to a word: `Hill`, ` Hill` and ` hill` are three word types.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import regex
from tokenizers import Tokenizer

MAX_SUBWORDS = 8  # a longer run of letters is no word type
SPACES = ("\N{LOWER ONE EIGHTH BLOCK}", " ")  # a leading space as SentencePiece writes it, and as it is
UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]")
LETTER = regex.compile(r"[\p{L}\p{M}\N{REPLACEMENT CHARACTER}]")  # the last: some bytes of a longer character
HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class TokenKind(IntEnum):
    """What a token is to the words of a text."""

    ALONE = 0
    """digits, punctuation, white space or a special token: a unit, never a word"""
    BEGINS = 1
    """a leading space and then a letter"""
    LETTERS = 2
    """letters without a leading space"""
    UNSPACED = 3
    """begins with a character of a script without spaces: a word of one token"""


def token_texts(tokenizer: Tokenizer) -> list[str]:
    """The text of each token id, with its leading space; "" for added tokens. Bytes that are no whole character become U+FFFD.

    Byte-level vocabularies (GPT-2, Llama 3, OLMo) spell bytes by printable characters; SentencePiece ones (Llama 2, XLM-R)
    write a space as U+2581 and a byte as <0x0A>.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    added = tokenizer.get_added_tokens_decoder()
    texts = [""] * (max(vocabulary.values()) + 1)
    is_byte_level = '"ByteLevel"' in tokenizer.to_str().partition('"model"')[0]
    for token, token_id in vocabulary.items():
        if token_id in added:
            continue
        if is_byte_level and all(character in BYTES for character in token):
            texts[token_id] = bytes(BYTES[character] for character in token).decode("utf-8", errors="replace")
        elif match := regex.fullmatch(r"<0x([0-9A-F]{2})>", token):
            texts[token_id] = bytes([int(match[1], 16)]).decode("utf-8", errors="replace")
        else:
            texts[token_id] = " " + token[1:] if token[:1] == SPACES[0] else token
    return texts


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte (Radford et al. 2019), as character to byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + index): byte for index, byte in enumerate(others)
    }


BYTES = _byte_alphabet()


def token_kinds(texts: list[str]) -> np.ndarray:
    """`TokenKind` of each token text. uint8 [V]."""
    kinds = np.zeros(len(texts), dtype=np.uint8)
    for token_id, text in enumerate(texts):
        bare = text.lstrip(" ")
        if not bare:
            continue
        if UNSPACED.match(bare):
            kinds[token_id] = TokenKind.UNSPACED
        elif LETTER.match(bare):
            has_space = len(bare) < len(text)
            kinds[token_id] = TokenKind.BEGINS if has_space else TokenKind.LETTERS
    return kinds


@dataclass(frozen=True)
class Units:
    """The units of a stretch of tokens, in order: words, and tokens that stand alone.

    starts: int64 [n], position of the first token of each unit;
    lengths: int64 [n], tokens;
    keys: uint64 [n], a hash of the unit's tokens, equal for equal units (0 for a run of more than MAX_SUBWORDS tokens);
    is_word: bool [n], whether the unit is a word of at most MAX_SUBWORDS tokens.
    """

    starts: np.ndarray
    lengths: np.ndarray
    keys: np.ndarray
    is_word: np.ndarray


def find_units(tokens: np.ndarray, kinds: np.ndarray) -> Units:
    """Cuts tokens into words and single tokens.

    Args:
        tokens: integers [T], below len(kinds).
        kinds: `token_kinds` of the vocabulary, uint8 [V].
    """
    tokens = np.asarray(tokens)
    kind = kinds[tokens]
    in_word = (kind == TokenKind.BEGINS) | (kind == TokenKind.LETTERS)
    continues = np.zeros(len(tokens), dtype=bool)
    continues[1:] = (kind[1:] == TokenKind.LETTERS) & in_word[:-1]
    starts = np.flatnonzero(~continues)
    lengths = np.diff(np.append(starts, len(tokens)))
    is_word = (kind[starts] != TokenKind.ALONE) & (lengths <= MAX_SUBWORDS)
    return Units(starts, lengths, _keys(tokens, starts, lengths), is_word)


def _keys(tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """A 64-bit hash of the tokens of each unit, by mixing one token after the other into it."""
    keys = np.zeros(len(starts), dtype=np.uint64)
    short = np.flatnonzero(lengths <= MAX_SUBWORDS)
    with np.errstate(over="ignore"):
        for offset in range(MAX_SUBWORDS):
            rows = short[lengths[short] > offset]
            mixed = (
                keys[rows] + tokens[starts[rows] + offset].astype(np.uint64) + np.uint64(1)
            ) * HASH_FACTOR
            keys[rows] = mixed ^ (mixed >> np.uint64(29))
    return keys
