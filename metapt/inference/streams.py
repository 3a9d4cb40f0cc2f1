"""Sentences from a file or a pipe, passed on as soon as they arrive; nothing is kept in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from metapt.errors import UserError

CHUNK_BYTES = 1 << 16  # limit of one read; a read returns whatever is available
MAX_LINE_BYTES = 1 << 24
COLUMN_SUFFIXES = (".iob2", ".conll", ".conllu")
Line = tuple[int, str]
"""(line number from 1, text without the line end)."""


@dataclass(frozen=True)
class InputSentence:
    """A sentence to be tagged.

    Attributes:
        content: a text, or the words of a block of columns.
        comments: comment lines for IOB2 output.
    """

    content: str | list[str]
    comments: tuple[str, ...]

    @classmethod
    def of_text(cls, text: str) -> InputSentence:
        return cls(text, (f"# text = {' '.join(text.split())}",))


def available_lines(stream: BinaryIO, name: str) -> Iterator[list[Line]]:
    """Yield numbered lines, in lists of those that were available at the same time. A byte order mark is dropped.

    Raises:
        UserError: a line is not UTF-8, or longer than MAX_LINE_BYTES.
    """
    rest, number = b"", 0
    while chunk := stream.read1(CHUNK_BYTES):  # type: ignore[attr-defined]
        *complete, rest = (rest + chunk).split(b"\n")
        yield [(index, _decode(raw, name, index)) for index, raw in enumerate(complete, number + 1)]
        number += len(complete)
        if len(rest) > MAX_LINE_BYTES:
            raise UserError(f"{name}:{number + 1}: the line is longer than {MAX_LINE_BYTES >> 20} MiB")
    if rest:
        yield [(number + 1, _decode(rest, name, number + 1))]


def text_sentences(chunks: Iterable[list[Line]]) -> Iterator[list[InputSentence]]:
    """Yield one sentence per line; a blank line is a sentence without words."""
    for chunk in chunks:
        yield [InputSentence.of_text(line) for _, line in chunk]


def column_sentences(
    chunks: Iterable[list[Line]], name: str, word_column: int
) -> Iterator[list[InputSentence]]:
    """Yield sentences from IOB2 or CoNLL input: one word per line, and a blank line after each sentence.

    Columns are separated by tabs or, in a line without a tab, by white space. Comments are lines above the words that
    start with `#` and have no tab.

    Args:
        word_column: number of the column that holds the word, from 1.
    Raises:
        UserError: a line has too few columns.
    """
    comments: list[str] = []
    words: list[str] = []
    for chunk in chunks:
        sentences = []
        for number, line in chunk:
            if not line.strip():
                if words:
                    sentences.append(InputSentence(words, tuple(comments)))
                comments, words = [], []
            elif line.startswith("#") and "\t" not in line and not words:
                comments.append(line)
            else:
                words.append(_word(line, word_column, f"{name}:{number}"))
        yield sentences
    if words:
        yield [InputSentence(words, tuple(comments))]


def _word(line: str, column: int, where: str) -> str:
    columns = line.split("\t") if "\t" in line else line.split()
    if len(columns) < column or not columns[column - 1].strip():
        raise UserError(
            f"{where}: no word in column {column} (the line has {len(columns)} columns); set word_column="
        )
    return columns[column - 1]


def _decode(raw: bytes, name: str, number: int) -> str:
    try:
        return raw.removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}:{number}: not UTF-8 at byte {error.start + 1} of the line") from None
