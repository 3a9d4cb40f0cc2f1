"""Sentences to windows: what a tagger processes together of a sentence that has more subwords than it can process.

A causal decoder sees only the left context. At evaluation each word is taken from the window that gives it the most, and
windows overlap by half; in training no entity is divided that fits into a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metapt.data.word_subwords import WordSubwords


@dataclass(frozen=True)
class SubwordWindow:
    """Subwords that the model processes together, and the words whose features are taken from them.

    Attributes:
        subwords: int64 [P].
        firsts: int64 [m], position of the first subword of each of the m words that completes a character of the word
            (`WordSubwords.first`).
        lasts: int64 [m], positions of their last subwords.
    """

    subwords: np.ndarray
    firsts: np.ndarray
    lasts: np.ndarray


def split_into_windows(
    words: Sequence[WordSubwords], max_len: int, tags: Sequence[str] = ()
) -> list[SubwordWindow]:
    """Split a sentence into windows of at most `max_len` subwords, at word boundaries.

    Each word belongs to exactly one window: the earliest that contains it completely. The next window starts at most
    max_len // 2 subwords before its first own word, so that its words have nearly that much left context; later if an
    entity needs the room.

    Args:
        words: the words of the sentence, with 1 to max_len // 2 subwords each.
        tags: of the words; if given, no entity is divided, unless it is longer than a window.
    """
    borders = np.concatenate([[0], np.cumsum([len(word.ids) for word in words])])
    flat = np.fromiter((subword for word in words for subword in word.ids), dtype=np.int64, count=borders[-1])
    all_firsts = borders[:-1] + np.array([word.first for word in words])
    windows, begin, done = [], 0, 0
    while done < len(words):
        stop = int(np.searchsorted(borders, borders[begin] + max_len, side="right")) - 1
        stop = _before_entity(stop, done, tags)
        firsts, lasts = (
            all_firsts[done:stop] - borders[begin],
            borders[done + 1 : stop + 1] - 1 - borders[begin],
        )
        windows.append(SubwordWindow(flat[borders[begin] : borders[stop]], firsts, lasts))
        begin, done = int(np.searchsorted(borders, borders[stop] - max_len // 2)), stop
        end = _end_of_entity(done, tags)
        if borders[end] - borders[done] <= max_len:  # it has less context, but is not divided
            begin = max(begin, int(np.searchsorted(borders, borders[end] - max_len)))
    return windows


def _end_of_entity(begin: int, tags: Sequence[str]) -> int:
    """The word after the entity that begins at word `begin`; `begin` if there is none."""
    end = begin
    if begin < len(tags) and tags[begin] != "O":
        end += 1
        while end < len(tags) and tags[end].startswith("I-"):
            end += 1
    return end


def _before_entity(stop: int, done: int, tags: Sequence[str]) -> int:
    """The first word of the entity that continues at word `stop`; `stop` if there is none, or if that is word `done` or earlier."""
    begin = stop
    while done < begin < len(tags) and tags[begin].startswith("I-"):
        begin -= 1
    return begin if begin > done else stop
