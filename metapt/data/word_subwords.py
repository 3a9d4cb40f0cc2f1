"""The subwords of single words, and the first of them at which a character of the word is known.

A tagger classifies a word at one of its subwords. This must not be one that comes before every letter of the word, such
as the space of byte-level BPE before a Chinese word, or the first byte of a Chinese character. Works with every
tokenizer that reports the characters of its subwords (`tokenizers` offsets). Does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

Offsets = Sequence[tuple[int, int]]
"""Begin and end of each subword in the text, in characters."""
Encode = Callable[[list[str]], Iterable[tuple[list[int], Offsets]]]
"""Maps texts to their subword ids and offsets, without special tokens."""


@dataclass(frozen=True)
class WordSubwords:
    """A word as subwords.

    Attributes:
        ids: of the subwords; may be empty if the tokenizer drops every character of the word.
        first: index of the first subword that completes a character of the word (`first_subword`); 0 if there is none.
        holds_character: whether there is such a subword.
    """

    ids: list[int]
    first: int
    holds_character: bool


def split_words(words: Sequence[str], encode: Encode, prefix_space: bool) -> list[WordSubwords]:
    """Split words into subwords, each word on its own.

    Args:
        words: any strings.
        encode: the tokenizer.
        prefix_space: put a space before each word, as inside a text. It is left out before words of which it would not
            become a part: where it would be a subword of its own, and where the tokenizer adds a space itself.
    Returns: one entry for each word.
    """
    space = " " * prefix_space
    spaces = [space] * len(words)
    encoded = list(encode([space + word for word in words])) if words else []
    alone = [index for index, (_, offsets) in enumerate(encoded) if prefix_space and _is_alone(offsets)]
    if alone:
        for index, without_space in zip(alone, encode([words[index] for index in alone]), strict=True):
            encoded[index], spaces[index] = without_space, ""
    found = []
    for word, before, (ids, offsets) in zip(words, spaces, encoded, strict=True):
        first = first_subword(before + word, offsets)
        found.append(WordSubwords(list(ids), first or 0, first is not None))
    return found


def first_subword(text: str, offsets: Offsets) -> int | None:
    """Find the first subword that completes a character of a text, white space aside.

    Of several subwords that overlap the first character (its bytes, or a space that the tokenizer has put before it and
    that has the offsets of the character), it is the last. Characters that the tokenizer drops are passed over.

    Returns: its index; None if no subword overlaps a character that is not white space.
    """
    for position, character in enumerate(text):
        if not character.isspace():
            overlapping = [index for index, (begin, end) in enumerate(offsets) if begin <= position < end]
            if overlapping:
                return overlapping[-1]
    return None


def _is_alone(offsets: Offsets) -> bool:
    """Whether no subword holds the space at the start of a text together with what follows it."""
    return len(offsets) == 0 or offsets[0][1] <= 1
