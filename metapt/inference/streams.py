"""Sentences from a file or a pipe, as they come: whatever has arrived is handed on at once, and nothing is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from metapt.errors import UserError

CHUNK_BYTES = 1 << 16  # of one read, which returns what there is
LONGEST_LINE_BYTES = 1 << 24
COLUMN_SUFFIXES = (".iob2", ".conll", ".conllu")
Line = tuple[int, str]


@dataclass(frozen=True)
class InputSentence:
    """A text, or the words of a block of columns; and the comment lines that belong above it in IOB2."""

    content: str | list[str]
    comments: tuple[str, ...]

    @classmethod
    def of_text(cls, text: str) -> InputSentence:
        return cls(text, (f"# text = {' '.join(text.split())}",))


def lines_as_they_come(stream: BinaryIO, name: str) -> Iterator[list[Line]]:
    """Numbered lines without their ends, in lists of those that were there to be read; a byte order mark is dropped.

    Raises:
        UserError: a line is not UTF-8, or longer than LONGEST_LINE_BYTES.
    """
    rest, number = b"", 0
    while chunk := stream.read1(CHUNK_BYTES):  # type: ignore[attr-defined]
        *whole, rest = (rest + chunk).split(b"\n")
        yield [(number + place, _decoded(raw, name, number + place)) for place, raw in enumerate(whole, 1)]
        number += len(whole)
        if len(rest) > LONGEST_LINE_BYTES:
            raise UserError(f"{name}:{number + 1}: a line of more than {LONGEST_LINE_BYTES >> 20} MiB")
    if rest:
        yield [(number + 1, _decoded(rest, name, number + 1))]


def text_sentences(chunks: Iterable[list[Line]]) -> Iterator[list[InputSentence]]:
    """A sentence a line; a blank line is a sentence without words."""
    for chunk in chunks:
        yield [InputSentence.of_text(line) for _, line in chunk]


def column_sentences(
    chunks: Iterable[list[Line]], name: str, word_column: int
) -> Iterator[list[InputSentence]]:
    """Blocks of a word a line with a blank line after each, as in IOB2 and CoNLL files.

    Columns are parted by tabs or, in a line without a tab, by white space. Comments are lines above the words that start with
    `#` and have no tab.

    Args:
        word_column: which column is the word, from 1.
    Raises:
        UserError: a line has too few columns.
    """
    comments: list[str] = []
    words: list[str] = []
    for chunk in chunks:
        found = []
        for number, line in chunk:
            if not line.strip():
                if words:
                    found.append(InputSentence(words, tuple(comments)))
                comments, words = [], []
            elif line.startswith("#") and "\t" not in line and not words:
                comments.append(line)
            else:
                words.append(_word(line, word_column, f"{name}:{number}"))
        yield found
    if words:
        yield [InputSentence(words, tuple(comments))]


def _word(line: str, column: int, where: str) -> str:
    columns = line.split("\t") if "\t" in line else line.split()
    if len(columns) < column or not columns[column - 1].strip():
        raise UserError(
            f"{where}: no word in column {column} of {len(columns)}; word_column= says which it is"
        )
    return columns[column - 1]


def _decoded(raw: bytes, name: str, number: int) -> str:
    try:
        return raw.removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}:{number}: not UTF-8 at byte {error.start + 1} of the line") from None
