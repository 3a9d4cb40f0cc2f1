"""Labelled sentences: IOB2 tags, entity spans, and column files with one word per line.

Tags of any corpus are converted to TAGS. The files of Universal NER have five tab-separated columns: index, word, tag,
tag of the source corpus, annotator. In some sets the fourth column differs from the third; the third is the gold tag.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from metapt.data.documents import DOCUMENT_START, DocumentMarks, document_ids
from metapt.errors import UserError
from metapt.files import write_atomically

TYPES = ("PER", "ORG", "LOC")
TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")  # in the label order of the hub's data set
STANDARD_TYPES = {entity_type: entity_type for entity_type in TYPES}
# Universal NER's own loader reads OTH, and the stray B-O of en_ewt, as O.
UNER_TYPES = {**STANDARD_TYPES, "OTH": "O", "O": "O"}
# Tag prefixes: B and I of IOB2, the others of IOBES, BILOU and BMES.
PREFIXES = ("B", "I", "E", "L", "M", "S", "U")
START_PREFIXES, END_PREFIXES = frozenset("BSU"), frozenset("ELSU")
SEPARATORS = ("tab", "space", "whitespace")
BOM = b"\xef\xbb\xbf"
INDEX_COLUMNS = ("i", "id", "index")
NO_WORD = re.compile(r"\d+[-.]\d+$")  # the index of a range of words, or of an empty node, in CoNLL-U
SENT_ID = re.compile(r"#\s*sent_id\s*=\s*(.*)")


@dataclass(frozen=True)
class Sentence:
    """A sentence with one tag per word. The tags are from TAGS and are valid IOB2.

    document: id of the text that the sentence is from; None if the set marks no texts.
    """

    id: str
    words: tuple[str, ...]
    tags: tuple[str, ...]
    document: str | None = None


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
        INDEX_COLUMNS, lines with a range of words (`2-3`) or an empty node (`3.1`) there are left out, as in CoNLL-U.
    separator: one of SEPARATORS; `whitespace` is any sequence of spaces and tabs.
    comment: prefix of comment lines. In tab-separated files, lines that begin with # and have no tab are comments too.
    types: maps the file's entity types to one of TYPES, or to O.
    documents: the marks of documents that are used (`metapt.data.documents.document_ids`).
    """

    columns: tuple[str, ...]
    separator: str = "tab"
    comment: str | None = None
    types: Mapping[str, str] = field(default_factory=lambda: STANDARD_TYPES)
    documents: str = "auto"


UNER_LAYOUT = ColumnLayout(("index", "word", "tag", "source tag", "annotator"), types=UNER_TYPES)


def spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Entity spans (type, start, end exclusive) in strict IOB2: only B-X starts a span, only I-X continues it."""
    entities = []
    start = None
    for position, tag in enumerate([*tags, "O"]):
        if start is not None and tag != f"I-{tags[start][2:]}":
            entities.append((tags[start][2:], start, position))
            start = None
        if tag.startswith("B-"):
            start = position
    return entities


def check_tag(tag: str, types: Mapping[str, str], where: str) -> None:
    """Check that a tag is O, or a prefix of PREFIXES with one of `types`.

    Raises:
        UserError: it is not; the message names `where` and the allowed tags.
    """
    prefix, _, entity_type = tag.partition("-")
    if tag != "O" and (prefix not in PREFIXES or entity_type not in types):
        known = ", ".join(
            entity_type if target == entity_type else f"{entity_type} (read as {target})"
            for entity_type, target in types.items()
        )
        others = ", ".join(f"{prefix}-" for prefix in PREFIXES[2:])
        raise UserError(
            f"{where}: unknown tag {tag!r}; allowed are O, and B- or I- (or {others}) with {known}"
        )


def to_iob2(tags: Iterable[str], types: Mapping[str, str] = STANDARD_TYPES) -> tuple[str, ...]:
    """Convert tags of IOB1, IOB2, IOBES, BILOU or BMES to valid IOB2.

    One rule suffices for all these schemes: a tag that does not continue an open span of its type starts a new span.
    So an I-X that continues no X becomes B-X. This is its meaning in IOB1. In IOB2 it is an annotation error; Universal
    NER's published counts and seqeval's default mode read it in the same way, while strict IOB2, which all scores here
    use, would drop the span.

    Args:
        tags: tags that `check_tag` accepts.
        types: maps the entity types of `tags` to one of TYPES, or to O.
    """
    converted, open_type = [], None
    for tag in tags:
        prefix, _, entity_type = tag.partition("-")
        target = types.get(entity_type, "O")
        if target == "O":
            converted.append("O")
            open_type = None
        else:
            continues = entity_type == open_type and prefix not in START_PREFIXES
            converted.append(f"{'I' if continues else 'B'}-{target}")
            open_type = None if prefix in END_PREFIXES else entity_type
    return tuple(converted)


def with_unique_ids(sentences: Iterable[Sentence]) -> list[Sentence]:
    """Rename repeated sentence ids: the second x becomes x~2, and so on. Predictions are looked up by id."""
    repeats: Counter[str] = Counter()
    used: set[str] = set()
    unique = []
    for sentence in sentences:
        name = sentence.id
        while name in used:
            repeats[sentence.id] += 1
            name = f"{sentence.id}~{repeats[sentence.id] + 1}"
        used.add(name)
        unique.append(sentence if name == sentence.id else replace(sentence, id=name))
    return unique


def read_iob2(path: Path, layout: ColumnLayout = UNER_LAYOUT) -> list[Sentence]:
    """Read a file with one word per line and a blank line after each sentence.

    A byte order mark is dropped. Lines may end with LF or CRLF. The last blank line may be missing. In tab-separated
    files a line that begins with `#` and has no tab is a comment (a word may be `#` or begin with it), and a word may
    contain spaces. A line that begins with -DOCSTART- ends a sentence and has no word. The id of a sentence is that of
    its comment `# sent_id = `, or else its number in the file; ids are made unique (`with_unique_ids`). Tags are
    converted by `to_iob2`. Documents are those that `# newdoc` or -DOCSTART- mark (`metapt.data.documents`).

    Raises:
        UserError: with file and line: not UTF-8, wrong number of columns, empty word, unknown tag, no sentence; with the
            file: `layout.documents` names a mark that does not divide it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    sentences = list(column_sentences(path, layout))
    if not sentences:
        raise UserError(f"{path}:1: contains no sentence")
    return with_unique_ids(_converted(path, sentences, layout))


def write_iob2(path: Path, sentences: Iterable[Sentence]) -> None:
    """Write a file in the layout of Universal NER that `read_iob2` reads back to equal sentences."""
    blocks = []
    document = None
    for sentence in sentences:
        rows = zip(sentence.words, sentence.tags, strict=True)
        lines = [] if sentence.document == document else [f"# newdoc id = {sentence.document}"]
        document = sentence.document
        lines += [f"# sent_id = {sentence.id}", f"# text = {' '.join(sentence.words)}"]
        lines += [f"{index}\t{word}\t{tag}\t-\t-" for index, (word, tag) in enumerate(rows, 1)]
        blocks.append("\n".join(lines) + "\n\n")
    write_atomically(path, "".join(blocks))


def column_sentences(path: Path, layout: ColumnLayout) -> Iterator[ColumnSentence]:
    """The sentences of a file as `read_iob2` describes it, one at a time, with unchecked tags; ids may repeat.

    Raises:
        UserError: with file and line: not UTF-8, wrong number of columns, empty word.
    """
    identifier = ""
    marks = DocumentMarks()
    rows: list[tuple[str, str, int]] = []
    count = 0
    has_index = layout.columns[0] in INDEX_COLUMNS
    for number, line in numbered_lines(path):
        if sentence_breaks_at(line, layout):
            if rows:
                count += 1
                words, tags, lines = zip(*rows, strict=True)
                yield ColumnSentence(identifier or str(count), words, tags, lines, marks.current)
            identifier, rows = "", []
            if line.startswith(DOCUMENT_START):
                marks.read_docstart()
        elif is_comment(line, layout):
            marks.read_comment(line)
            if match := SENT_ID.match(line):
                identifier = match[1].strip()
        elif not (has_index and NO_WORD.match(line.split("\t" if layout.separator == "tab" else None, 1)[0])):
            word, tag = _word_and_tag(line, layout, f"{path}:{number}")
            rows.append((word, tag, number))


def _converted(path: Path, sentences: Sequence[ColumnSentence], layout: ColumnLayout) -> Iterator[Sentence]:
    """The sentences with their tags checked and converted, and with their documents."""
    documents = document_ids([sentence.marks for sentence in sentences], layout.documents, str(path))
    for sentence, document in zip(sentences, documents, strict=True):
        for number, tag in zip(sentence.lines, sentence.tags, strict=True):
            check_tag(tag, layout.types, f"{path}:{number}")
        yield Sentence(sentence.id, sentence.words, to_iob2(sentence.tags, layout.types), document)


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Pairs (number from 1, text of the line); an empty line is added at the end to close the last sentence.

    Raises:
        UserError: a line is not UTF-8.
    """
    number = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            line = raw.removeprefix(BOM) if number == 1 else raw
            try:
                yield number, line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}:{number}: not UTF-8 at byte {error.start + 1} of the line") from None
    yield number + 1, ""


def sentence_breaks_at(line: str, layout: ColumnLayout) -> bool:
    """Whether a line ends a sentence: a blank one, or a -DOCSTART-."""
    return not line.strip(" " if layout.separator == "tab" else " \t") or line.startswith(DOCUMENT_START)


def is_comment(line: str, layout: ColumnLayout) -> bool:
    """Whether a line that is not blank is a comment."""
    if layout.comment and line.startswith(layout.comment):
        return True
    return layout.separator == "tab" and line.startswith("#") and "\t" not in line


def split_cells(line: str, layout: ColumnLayout) -> list[str]:
    """The cells of a line."""
    if layout.separator == "whitespace":
        return re.split(r"[ \t]+", line.strip(" \t"))
    return line.split("\t" if layout.separator == "tab" else " ")


def counts_words(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first column counts the words of a sentence from 1. A word `1` and its tag alone do not count."""
    numbers = [row[0] for row in rows if not NO_WORD.match(row[0])]
    is_count = numbers == [str(number) for number in range(1, len(numbers) + 1)]
    return bool(numbers) and is_count and (len(rows) > 1 or len(rows[0]) > 2)


def _word_and_tag(line: str, layout: ColumnLayout, where: str) -> tuple[str, str]:
    cells = split_cells(line, layout)
    if len(cells) != len(layout.columns):
        raise UserError(
            f"{where}: {len(cells)} {layout.separator}-separated columns; "
            f"expected {len(layout.columns)} ({', '.join(layout.columns)})"
        )
    column = layout.columns.index("word")
    word, tag = cells[column], cells[layout.columns.index("tag")]
    if not word.strip():
        raise UserError(f"{where}: the word (column {column + 1}) is empty")
    return word, tag
