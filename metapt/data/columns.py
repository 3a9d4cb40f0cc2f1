"""Files with one word per line and a blank line after each sentence (CoNLL, IOB, CoNLL-U): lines to words and tags.

Rules by which lines are read that are not quite regular:

- a line of white space, tabs included, is blank; a byte order mark at the start of any line is dropped;
- white space at the end of a line is no column, and columns after the word and the tag may be missing;
- a word may be any white space other than spaces and tabs (U+3000);
- a line such as `# id 7<TAB>domain=en`, with `#`, a space and a key with a value, is a comment;
- a first line such as `TOKEN  NE-COARSE-LIT` is a header: its word is one of HEADER_WORDS, and its tag is not a tag;
- `-DOCSTART-` ends a sentence; of CoNLL-U, ranges (`2-3`) and empty nodes (`3.1`) are left out.

Any other irregular line is malformed, and with it its sentence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

from metapt.data.bad_input import BadInput, refusing
from metapt.data.documents import DOCUMENT_START, DocumentMarks
from metapt.errors import UserError

# Tag prefixes: B and I of IOB2, the others of IOBES, BILOU and BMES.
PREFIXES = ("B", "I", "E", "L", "M", "S", "U")
# A type may contain spaces where the columns are separated by tabs, and in JSON.
TAG = re.compile(rf"O|[{''.join(PREFIXES)}]-\S([^\t]*\S)?")
# Universal NER's own loader reads OTH, and the stray B-O of en_ewt, as O.
UNER_TYPES = {"OTH": "O", "O": "O"}
SEPARATORS = ("tab", "space", "whitespace")
BOM = b"\xef\xbb\xbf"
INDEX_COLUMNS = ("i", "id", "index")
NO_WORD = re.compile(r"\d+[-.]\d+$")  # the index of a range of words, or of an empty node, in CoNLL-U
KEY_AND_VALUE = re.compile(r"#+ +\w[^=]*=")  # a comment in files of any separator: no word
SENT_ID = re.compile(r"#\s*sent_id\s*=\s*(.*)")
HEADER_WORDS = ("token", "tokens", "word", "words", "form", "text")
HEADER_TAGS = ("ne-coarse-lit", "ner", "ner_tag", "ner_tags", "tag", "tags", "label", "labels")
SAMPLE = 100  # sentences by which a layout is recognized
RARE = 0.05  # a fraction of the lines of a sample that does not decide about its layout


@dataclass(frozen=True)
class ColumnSentence:
    """A sentence of a file with one word per line.

    Attributes:
        tags: as the file spells them.
        lines: the number of the line of each word, from 1.
        marks: the document by each kind of mark (`DocumentMarks.current`).
    """

    id: str
    words: tuple[str, ...]
    tags: tuple[str, ...]
    lines: tuple[int, ...]
    marks: Mapping[str, str]


@dataclass(frozen=True)
class ColumnLayout:
    """The layout of a file with one word per line.

    columns: names of the columns, from left to right; only `word` and `tag` are used. If the first is one of
        INDEX_COLUMNS, lines with a range of words (`2-3`) or an empty node (`3.1`) there are left out, as in CoNLL-U, and
        lines that begin with # and lack the word or the tag are comments.
    separator: one of SEPARATORS; `whitespace` is any sequence of spaces and tabs.
    comment: prefix of comment lines. In tab-separated files, lines that begin with # and have no tab are comments too.
    types: maps entity types of the file to others, or to O; types that it lacks keep their names.
    documents: the marks of documents that are used (`metapt.data.documents.document_ids`).
    word_prefix: what is removed from the beginning of each word, a regular expression; empty: nothing.
    """

    columns: tuple[str, ...]
    separator: str = "tab"
    comment: str | None = None
    types: Mapping[str, str] = field(default_factory=dict)
    documents: str = "auto"
    word_prefix: str = ""

    @cached_property
    def has_index(self) -> bool:
        return self.columns[0] in INDEX_COLUMNS

    @cached_property
    def used(self) -> tuple[int, int]:
        """The positions of the word and of the tag, from 0."""
        return self.columns.index("word"), self.columns.index("tag")

    @cached_property
    def needed(self) -> int:
        """The number of columns that no line may lack: those up to the word and the tag."""
        return 1 + max(self.used)

    def __str__(self) -> str:
        word, tag = self.used
        return f"word in column {word + 1}, tag in column {tag + 1} of {len(self.columns)}"


UNER_LAYOUT = ColumnLayout(("index", "word", "tag", "source tag", "annotator"), types=UNER_TYPES)


class _MalformedError(Exception):
    """A line that no rule covers."""


def column_sentences(path: Path, layout: ColumnLayout, bad_input: BadInput) -> Iterator[ColumnSentence]:
    """The sentences of a file, one at a time, with unchecked tags; ids may repeat.

    Lines may end with LF or CRLF. The last blank line may be missing. The id of a sentence is that of its comment
    `# sent_id = `, or else its number in the file.

    Raises:
        UserError: with file and line, if `bad_input` refuses it: not UTF-8, wrong number of columns, no word.
    """
    identifier, count, is_malformed = "", 0, False
    marks = DocumentMarks()
    rows: list[tuple[str, str, int]] = []
    is_first = True
    for number, line in numbered_lines(path, bad_input):
        if line is not None and sentence_breaks_at(line):
            count += bool(rows) or is_malformed
            if rows and not is_malformed:
                words, tags, lines = zip(*rows, strict=True)
                yield ColumnSentence(identifier or str(count), words, tags, lines, marks.current)
            identifier, rows, is_malformed = "", [], False
            if line.startswith(DOCUMENT_START):
                marks.read_docstart()
        elif line is None:
            is_malformed = True
        elif is_comment(line, layout):
            marks.read_comment(line)
            if match := SENT_ID.match(line):
                identifier = match[1].strip()
        else:
            cells = split_cells(line, layout)
            if layout.has_index and NO_WORD.match(cells[0]):
                continue
            try:
                word, tag = _word_and_tag(cells, layout)
            except _MalformedError as error:
                bad_input.report(f"{path}:{number}", str(error))
                is_malformed = True
            else:
                if not (is_first and is_header(word, tag)):
                    rows.append((word, tag, number))
            is_first = False


def numbered_lines(path: Path, bad_input: BadInput) -> Iterator[tuple[int, str | None]]:
    """Pairs (number from 1, text of the line without a byte order mark); a blank line is added at the end.

    The text of a line that is not UTF-8 is None, if `bad_input` does not refuse it.
    """
    number = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                text = raw.removeprefix(BOM).decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                bad_input.report(f"{path}:{number}", f"not UTF-8 at byte {error.start + 1} of the line")
                yield number, None
            else:
                yield number, text
    yield number + 1, ""


def sentence_breaks_at(line: str) -> bool:
    """Whether a line ends a sentence: a blank one, or a -DOCSTART-."""
    return not line.strip() or line.startswith(DOCUMENT_START)


def is_comment(line: str, layout: ColumnLayout) -> bool:
    """Whether a line that is not blank is a comment."""
    if layout.comment and line.startswith(layout.comment):
        return True
    if KEY_AND_VALUE.match(line):
        return True
    if not line.startswith("#"):
        return False
    if layout.has_index and len(split_cells(line, layout)) < layout.needed:
        return True
    return layout.separator == "tab" and "\t" not in line


def is_header(word: str, tag: str) -> bool:
    """Whether the first row of a file names its columns."""
    return word.casefold() in HEADER_WORDS and not TAG.fullmatch(tag)


def split_cells(line: str, layout: ColumnLayout) -> list[str]:
    """The cells of a line, with at most as many blank ones at its end as the layout has columns for."""
    if layout.separator == "whitespace":
        return split_white_space(line)
    cells = line.split("\t" if layout.separator == "tab" else " ")
    while len(cells) > len(layout.columns) and not cells[-1].strip():
        cells.pop()
    return cells


def split_white_space(line: str) -> list[str]:
    """The cells of a line between spaces and tabs; other white space is part of a cell."""
    return re.split(r"[ \t]+", line.strip(" \t"))


def counts_words(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first column counts the words of a sentence from 1, or from 0. A word `1` and its tag alone do not count."""
    numbers = [row[0] for row in rows if not NO_WORD.match(row[0])]
    first = 0 if numbers[:1] == ["0"] else 1
    is_count = numbers == [str(number) for number in range(first, first + len(numbers))]
    return bool(numbers) and is_count and (len(rows) > 1 or len(rows[0]) > 2)


def _word_and_tag(cells: Sequence[str], layout: ColumnLayout) -> tuple[str, str]:
    if not layout.needed <= len(cells) <= len(layout.columns):
        raise _MalformedError(
            f"{len(cells)} {layout.separator}-separated columns; "
            f"expected {len(layout.columns)} ({', '.join(layout.columns)})"
        )
    word_column, tag_column = layout.used
    word, tag = cells[word_column], cells[tag_column].strip()
    if layout.word_prefix:
        word = re.sub(f"^(?:{layout.word_prefix})", "", word)
    if not word.strip(" \t"):
        raise _MalformedError(f"the word (column {word_column + 1}) is empty")
    if not tag:
        raise _MalformedError(f"the tag (column {tag_column + 1}) is empty")
    return word, tag


def recognized_layout(path: Path) -> ColumnLayout:
    """The layout of a file by its first SAMPLE sentences.

    The word is in column 2 if column 1 counts the words (1, 2, 3, ...) of all sentences but for RARE ones, otherwise in
    column 1. The tag is in the column that a header calls so (HEADER_TAGS), or else in the last column of tags.

    Raises:
        UserError: there are no two columns; or there are more, and what would be the words are numbers.
    """
    separator, blocks = _first_rows(path)
    header = [cell.strip().casefold() for cell in blocks[0][0]] if blocks else []
    if header and header[header[0] in INDEX_COLUMNS and len(header) > 1] in HEADER_WORDS:
        blocks = [block for block in (blocks[0][1:], *blocks[1:]) if block]
    else:
        header = []
    rows = [row for block in blocks for row in block]
    widths = Counter(map(len, rows))
    width = max((size for size, count in widths.items() if count >= RARE * len(rows)), default=0)
    if width < 2:
        raise UserError(
            f"{path}:1: neither JSON lines nor columns with a word and a tag; its lines have {width} column(s)"
        )
    counted = sum(map(counts_words, blocks))
    is_counted = counted >= (1 - RARE) * len(blocks) and width > 2
    if not is_counted and width > 2 and sum(row[0].isdecimal() for row in rows) > (1 - RARE) * len(rows):
        raise UserError(
            f"{path}: column 1 has numbers that do not count the words of {len(blocks) - counted} of {len(blocks)} sentences; "
            "describe its columns (a .yaml file in data.corpora)"
        )
    tag_columns = _tag_columns(rows, range(2 if is_counted else 1, width))
    if separator == "tab" and is_counted and width == len(UNER_LAYOUT.columns) and 2 in tag_columns:
        return UNER_LAYOUT
    named = [column for column in range(1, min(width, len(header))) if header[column] in HEADER_TAGS]
    names = [f"column {number}" for number in range(1, width + 1)]
    names[0] = "word"
    if is_counted:
        names[:2] = ["index", "word"]
    names[(named or tag_columns or [width - 1])[0]] = "tag"
    return ColumnLayout(tuple(names), separator)


def _tag_columns(rows: Sequence[Sequence[str]], candidates: Sequence[int]) -> list[int]:
    """The columns whose cells are tags, but for RARE ones, from right to left."""
    found = []
    for column in reversed(candidates):
        cells = [row[column].strip() for row in rows if len(row) > column]
        if sum(TAG.fullmatch(cell) is not None for cell in cells) > (1 - RARE) * len(cells):
            found.append(column)
    return found


def _first_rows(path: Path) -> tuple[str, list[list[list[str]]]]:
    """The separator, and the cells of the first SAMPLE sentences without blank cells at the end of a line."""
    for separator in ("tab", "whitespace"):
        layout = ColumnLayout(("word", "tag"), separator)
        rows = list(islice(_blocks(path, layout), SAMPLE))
        if any(len(row) > 1 for block in rows for row in block):
            break
    return separator, rows


def _blocks(path: Path, layout: ColumnLayout) -> Iterator[list[list[str]]]:
    block: list[list[str]] = []
    for _, line in numbered_lines(path, BadInput("skip")):
        if line is None or is_comment(line, layout):
            continue
        if not sentence_breaks_at(line):
            block.append(split_cells(line.rstrip(" \t"), layout))
        elif block:
            yield block
            block = []


def layout_of(path: Path, columns: Sequence[str]) -> ColumnLayout:
    """The layout with these columns; the separator is recognized.

    Raises:
        UserError: the columns do not include `word` and `tag`.
    """
    if not {"word", "tag"} <= set(columns):
        raise UserError(f"columns of {path}: {', '.join(columns)}; must name the columns `word` and `tag`")
    separator, _ = _first_rows(path)
    return ColumnLayout(tuple(columns), separator)


def has_sentences(path: Path) -> bool:
    """Whether a file has a line with text."""
    return any(line is None or line.strip() for _, line in numbered_lines(path, refusing()))
