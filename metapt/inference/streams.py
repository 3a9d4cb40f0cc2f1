"""Sentences from a file or a pipe, passed on as soon as they arrive; nothing is kept in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from metapt.data.columns import KEY_AND_VALUE, NO_WORD, TAG, counts_words, split_white_space
from metapt.data.documents import DOCUMENT_START
from metapt.data.json_labels import WORDS
from metapt.errors import UserError

CHUNK_BYTES = 1 << 16  # limit of one read; a read returns whatever is available
MAX_LINE_BYTES = 1 << 24
COLUMN_SUFFIXES = (".iob2", ".conll", ".conllu")
JSON_SUFFIXES = (".jsonl",)
COMMENT = re.compile(r"#+(\s*$|[^\t]*[ =][^\t]*$)")
ONLY_SIGNS = re.compile(r"#+")
Line = tuple[int, str]
"""(line number from 1, text without the line end)."""


@dataclass(frozen=True)
class InputSentence:
    """A sentence to be tagged.

    Attributes:
        content: a text, or words.
        comments: comment lines for IOB2 output.
        values: the JSON object that the sentence is from.
    """

    content: str | list[str]
    comments: tuple[str, ...]
    values: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_text(cls, text: str, values: Mapping[str, Any] | None = None) -> InputSentence:
        return cls(text, (f"# text = {' '.join(text.split())}",), values or {})


def available_lines(stream: BinaryIO, name: str) -> Iterator[list[Line]]:
    """Yield numbered lines, in lists of those that were available at the same time. Byte order marks are dropped.

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


def json_sentences(chunks: Iterable[list[Line]], name: str) -> Iterator[list[InputSentence]]:
    """Yield a sentence for each line of JSON that has a text, or a list of words or tokens; blank lines are left out.

    Args:
        name: of the file, for error messages.
    Raises:
        UserError: a line is no such object.
    """
    for chunk in chunks:
        yield [_of_json(line, f"{name}:{number}") for number, line in chunk if line.strip()]


def _of_json(line: str, where: str) -> InputSentence:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{where}: not a JSON object; expected one per line")
    if isinstance(values.get("text"), str):
        return InputSentence.of_text(values["text"], values)
    words = next((values[key] for key in WORDS if key in values), None)
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise UserError(f"{where}: has neither a text nor a list of words ({' or '.join(WORDS)})")
    return InputSentence(words, (), values)


class ColumnReader:
    """Reads sentences from IOB2 or CoNLL input: one word per line, and a blank line after each sentence.

    Columns are separated by tabs or, in a line without a tab, by spaces. Comments are lines above the words that
    start with `#` and have no tab, and keys with a value (`#id=3`, `# id 3<TAB>domain=en`). A single word (`#Cebu`) is none, nor is one
    in columns (`#Cebu NNP`): a line with as many cells as the first row, `# O` only if its last cell is a tag. A line that starts
    with -DOCSTART- ends a sentence and has no word. If column 1 counts the words (1, 2, 3, ...), the words are in column 2, otherwise in column 1; the first sentence decides. Where they are
    counted, ranges (`2-3 del`) and empty nodes (`3.1`) of CoNLL-U are left out: the words are the parts of a range.

    Args:
        name: of the file, for error messages.
        word_column: number of the column that holds the word, from 1; None: recognised.
        notify: receives a sentence that says which column was recognised.
    """

    def __init__(self, name: str, word_column: int | None, notify: Callable[[str], None] = lambda text: None):
        self._name, self._notify = name, notify
        self._word_column = word_column
        self._is_counted: bool | None = None  # not known before the end of the first sentence
        # of the sentence; with the words that begin with #, until its first row is known
        self._comments: list[Line] = []
        self._width = 0  # cells of the latest first row without tabs
        self._rows: list[tuple[int, list[str]]] = []

    def read(self, chunks: Iterable[list[Line]]) -> Iterator[list[InputSentence]]:
        """Yield the sentences of a stream, each as soon as it has ended.

        Raises:
            UserError: a line has too few columns.
        """
        for chunk in chunks:
            sentences: list[InputSentence] = []
            for number, line in chunk:
                if not line.strip() or line.startswith(DOCUMENT_START):
                    sentences += self._end_sentence()
                elif not self._rows and (COMMENT.match(line) or KEY_AND_VALUE.match(line)):
                    self._comments.append((number, line))
                else:
                    self._add_row(number, line)
            yield sentences
        yield self._end_sentence()

    def _add_row(self, number: int, line: str) -> None:
        cells = line.split("\t") if "\t" in line else split_white_space(line)
        if not self._rows:
            self._width = 0 if "\t" in line else len(cells)
            self._take_words_from_comments()
        self._rows.append((number, cells))

    def _take_words_from_comments(self) -> None:
        """Move the last comments that are words in columns to the rows."""
        while self._comments and is_row(self._comments[-1][1], self._width):
            number, line = self._comments.pop()
            self._rows.insert(0, (number, split_white_space(line)))

    def _end_sentence(self) -> list[InputSentence]:
        """The sentence that has ended, if it has words."""
        if not self._rows:
            self._take_words_from_comments()
        rows, comments = self._rows, tuple(line for _, line in self._comments)
        self._rows, self._comments = [], []
        if not rows:
            return []
        if self._is_counted is None:
            self._is_counted = counts_words([row for _, row in rows])
            if self._word_column is None:
                self._word_column = 2 if self._is_counted else 1
                self._notify(
                    f"{self._name}: the words are in column {self._word_column}; word_column= changes it"
                )
        words = [
            self._word(number, row)
            for number, row in rows
            if not (self._is_counted and NO_WORD.match(row[0]))
        ]
        return [InputSentence(words, comments)] if words else []

    def _word(self, number: int, row: list[str]) -> str:
        column = self._word_column or 1
        if len(row) < column or not row[column - 1].strip(" \t"):
            raise UserError(
                f"{self._name}:{number}: no word in column {column} (the line has {len(row)} columns); set word_column="
            )
        return row[column - 1]


def is_row(line: str, width: int) -> bool:
    """Whether a line that begins with # is a word in columns that spaces separate: `#Cebu B-LOC`.

    Args:
        width: number of cells of the rows.
    """
    cells = split_white_space(line)
    if "=" in line or not 1 < len(cells) == width:
        return False
    return bool(TAG.fullmatch(cells[-1])) or not ONLY_SIGNS.fullmatch(cells[0])


def _decode(raw: bytes, name: str, number: int) -> str:
    try:
        return raw.removesuffix(b"\r").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}:{number}: not UTF-8 at byte {error.start + 1} of the line") from None
