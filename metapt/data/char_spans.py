"""Entities by the characters of a text, and the words and tags they correspond to.

Characters are counted without white space ("solid" positions) wherever words and texts meet, so that spaces between
words, and a text that was joined from words, make no difference.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from metapt.data.iob2 import spans
from metapt.data.word_splitting import word_offsets
from metapt.errors import listed

LISTED = 3  # entities that a notice names

Entity = tuple[int, int, str]
"""(first character, one past the last character, type)."""


@dataclass
class Adjustments:
    """The entities of texts that were changed because tags of words cannot express them, each with its place.

    Attributes:
        extended: entities that began or ended inside a word, and were extended to whole words.
        dropped: entities that overlapped a longer one, or an earlier one as long, which was kept; nested ones among them.
    """

    extended: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def notices(self) -> Iterator[str]:
        """What was changed, how often, and where first."""
        if self.extended:
            yield (
                f"entities that begin or end inside a word, extended to whole words: {len(self.extended)} "
                f"({listed(self.extended, LISTED)})"
            )
        if self.dropped:
            yield (
                f"entities that overlap a longer or earlier one, left out: {len(self.dropped)} "
                f"({listed(self.dropped, LISTED)})"
            )


def solid(parts: Iterable[str]) -> str:
    """The characters without white space."""
    return "".join("".join(parts).split())


def bounds_of(words: Iterable[str]) -> list[int]:
    """The solid position at which each word begins, and the end of the last: [words + 1]."""
    return [0, *accumulate(len(solid([word])) for word in words)]


def split_words(text: str, entities: Sequence[Entity]) -> tuple[str, ...]:
    """The words of a text, cut where an entity begins or ends."""
    cuts = {position for start, end, _ in entities for position in (start, end)}
    words = []
    for start, end in word_offsets(text):
        edges = [start, *sorted(cut for cut in cuts if start < cut < end), end]
        words += [text[left:right] for left, right in pairwise(edges)]
    return tuple(words)


def solid_entities(text: str, entities: Sequence[Entity], renames: Mapping[str, str]) -> list[Entity]:
    """The entities of a text in solid positions, with renamed types; those renamed to O are left out."""
    before = [0, *accumulate(not character.isspace() for character in text)]
    renamed = ((start, end, renames.get(kind, kind)) for start, end, kind in entities)
    return [(before[start], before[end], kind) for start, end, kind in renamed if kind != "O"]


def solid_spans(tags: Sequence[str], words: Sequence[str]) -> list[Entity]:
    """The entities of tagged words in solid positions."""
    bounds = bounds_of(words)
    return [(bounds[start], bounds[end], kind) for kind, start, end in spans(tags)]


def tags_of_entities(
    entities: Sequence[Entity], words: Sequence[str], adjustments: Adjustments, where: str
) -> tuple[str, ...]:
    """IOB2 tags of words with these entities.

    Args:
        entities: in solid positions.
        adjustments: receives what tags cannot express, and is changed.
        where: the place of the sentence, `file:line`.
    """
    bounds = bounds_of(words)
    found = []
    for start, end, kind in entities:
        first, last = bisect_right(bounds, start) - 1, bisect_left(bounds, end)
        if (bounds[first], bounds[last]) != (start, end):
            adjustments.extended.append(f"{where} {' '.join(words[first:last])}")
        found.append((first, last, kind))
    tags = ["O"] * len(words)
    for first, last, kind in sorted(found, key=lambda item: (item[0] - item[1], item[0])):
        if any(tag != "O" for tag in tags[first:last]):
            adjustments.dropped.append(f"{where} {' '.join(words[first:last])}")
        else:
            tags[first:last] = [f"B-{kind}", *[f"I-{kind}"] * (last - first - 1)]
    return tuple(tags)
