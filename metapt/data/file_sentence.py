"""A labelled sentence as a file has it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from metapt.data.char_spans import Entity


@dataclass(frozen=True)
class FileSentence:
    """A sentence as a file has it: words with tags, or a text with entities.

    Attributes:
        lines: the line of each word, from 1; of a JSON line, that line alone.
        words, tags: as the file spells them; empty where it has a text.
        text: None where the file has words.
        entities: of `text`, by its characters.
        document: id of the text that the sentence is from; None if the file marks no texts.
    """

    path: Path
    id: str
    lines: tuple[int, ...]
    words: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    text: str | None = None
    entities: tuple[Entity, ...] = ()
    document: str | None = None

    def where(self, word: int = 0) -> str:
        """`file:line` of a word; of the last word for a number that is too large."""
        return f"{self.path}:{self.lines[min(word, len(self.lines) - 1)]}"
