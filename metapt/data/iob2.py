"""Labelled sentences: IOB2 tags and the spans they stand for, and files with a word a line in columns.

Whatever a corpus calls its tags, here they are those of TAGS. Universal NER's own files have five tab-separated columns:
index, form, tag, a source's own tag, annotator; the fourth differs from the third in some sets and is not the gold tag.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from metapt.errors import UserError
from metapt.files import write_atomically

TYPES = ("PER", "ORG", "LOC")
TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")  # the hub's label order
OWN_TYPES = {kind: kind for kind in TYPES}
UNER_TYPES = {
    **OWN_TYPES,
    "OTH": "O",
    "O": "O",
}  # as its loader has it: OTH, and the stray B-O of en_ewt, are O
PREFIXES = ("B", "I", "E", "L", "M", "S", "U")  # of IOB2; and of IOBES, BILOU, BMES
STARTS, ENDS = frozenset("BSU"), frozenset("ELSU")
SEPARATORS = ("tab", "space", "whitespace")
BOM = b"\xef\xbb\xbf"
DOCUMENT = "-DOCSTART-"
SENT_ID = re.compile(r"#\s*sent_id\s*=\s*(.*)")


@dataclass(frozen=True)
class Sentence:
    """One sentence: as many tags (of TAGS, valid IOB2) as words."""

    id: str
    words: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """How a file has its words and tags.

    columns: names, from left to right; `word` and `tag` are read, others are not.
    separator: of SEPARATORS; `whitespace` is any run of spaces and tabs.
    comment: lines that begin with it hold no word; between tabs also every line that begins with # and has no tab.
    types: entity types as the file spells them, to one of TYPES or to O.
    """

    columns: tuple[str, ...]
    separator: str = "tab"
    comment: str | None = None
    types: Mapping[str, str] = field(default_factory=lambda: OWN_TYPES)


UNER = Layout(("index", "word", "tag", "source tag", "annotator"), types=UNER_TYPES)


def spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Entity spans (type, start, end exclusive) in strict IOB2: only B-X starts one, only I-X goes on with it."""
    found = []
    start = None
    for position, tag in enumerate([*tags, "O"]):
        if start is not None and tag != f"I-{tags[start][2:]}":
            found.append((tags[start][2:], start, position))
            start = None
        if tag.startswith("B-"):
            start = position
    return found


def check_tag(tag: str, types: Mapping[str, str], where: str) -> None:
    """Refuses a tag that is neither O nor a prefix of PREFIXES with a type of `types`.

    Raises:
        UserError: naming `where`, and the tags that exist.
    """
    prefix, _, kind = tag.partition("-")
    if tag != "O" and (prefix not in PREFIXES or kind not in types):
        known = ", ".join(
            kind if meant == kind else f"{kind} (read as {meant})" for kind, meant in types.items()
        )
        others = ", ".join(f"{prefix}-" for prefix in PREFIXES[2:])
        raise UserError(f"{where}: unknown tag {tag!r}; tags are O, and B- or I- (or {others}) with {known}")


def repaired(tags: Iterable[str], types: Mapping[str, str] = OWN_TYPES) -> tuple[str, ...]:
    """Checked tags (`check_tag`) of IOB1, IOB2, IOBES, BILOU or BMES as valid IOB2 with the types that `types` says.

    Their prefixes tell these schemes apart well enough to read them all by one rule: what continues no open span of its
    type starts one. So an I-X that continues no X is read as B-X, which is what IOB1 means by it; in IOB2, where it is a
    mistake, Universal NER's published counts and seqeval's default mode read it so too, while strict IOB2, in
    which everything is scored, would drop it.
    """
    found, open_type = [], None
    for tag in tags:
        prefix, _, kind = tag.partition("-")
        meant = types.get(kind, "O")
        if meant == "O":
            found.append("O")
            open_type = None
        else:
            goes_on = kind == open_type and prefix not in STARTS
            found.append(f"{'I' if goes_on else 'B'}-{meant}")
            open_type = None if prefix in ENDS else kind
    return tuple(found)


def distinct_ids(sentences: Iterable[Sentence]) -> list[Sentence]:
    """The sentences, the second of the same id x as x~2 and so on: an id is what predictions are found by."""
    times: Counter[str] = Counter()
    taken: set[str] = set()
    found = []
    for sentence in sentences:
        name = sentence.id
        while name in taken:
            times[sentence.id] += 1
            name = f"{sentence.id}~{times[sentence.id] + 1}"
        taken.add(name)
        found.append(sentence if name == sentence.id else replace(sentence, id=name))
    return found


def read_iob2(path: Path, layout: Layout = UNER) -> list[Sentence]:
    """Reads a file with a word a line and a blank line after a sentence: Universal NER's, or of another layout.

    A byte order mark is dropped; line ends may be LF or CRLF; the last blank line may be missing. Between tabs a line
    that starts with `#` and holds no tab is a comment (a form may be or begin with `#`), and a form may hold spaces.
    A line that begins with -DOCSTART- ends a sentence and holds no word. A sentence is called by its comment
    `# sent_id = `, or by its number; of two equal ids the second is changed (`distinct_ids`). `repaired` says how tags are read.

    Raises:
        UserError: with file and line: not UTF-8, a wrong number of columns, an empty form, an unknown tag, no sentence.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    sentences = distinct_ids(_sentences(path, layout))
    if not sentences:
        raise UserError(f"{path}:1: holds no sentence")
    return sentences


def write_iob2(path: Path, sentences: Iterable[Sentence]) -> None:
    """Writes a file that `read_iob2` reads back to equal sentences."""
    blocks = []
    for sentence in sentences:
        rows = zip(sentence.words, sentence.tags, strict=True)
        lines = [f"# sent_id = {sentence.id}", f"# text = {' '.join(sentence.words)}"]
        lines += [f"{index}\t{word}\t{tag}\t-\t-" for index, (word, tag) in enumerate(rows, 1)]
        blocks.append("\n".join(lines) + "\n\n")
    write_atomically(path, "".join(blocks))


def _sentences(path: Path, layout: Layout) -> Iterator[Sentence]:
    """The sentences of a file, one at a time; sentences without a sent_id are numbered."""
    identifier = ""
    words: list[str] = []
    tags: list[str] = []
    count = 0
    for where, line in _lines(path):
        if not line.strip(" " if layout.separator == "tab" else " \t") or line.startswith(DOCUMENT):
            if words:
                count += 1
                yield Sentence(identifier or str(count), tuple(words), repaired(tags, layout.types))
            identifier, words, tags = "", [], []
        elif _is_comment(line, layout):
            if match := SENT_ID.match(line):
                identifier = match[1].strip()
        else:
            word, tag = _word_and_tag(line, layout, where)
            words.append(word)
            tags.append(tag)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Pairs `file:line`, line without its end; after the last one an empty line, which closes the last sentence."""
    number = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            line = raw.removeprefix(BOM) if number == 1 else raw
            try:
                yield f"{path}:{number}", line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}:{number}: not UTF-8 at byte {error.start + 1} of the line") from None
    yield f"{path}:{number + 1}", ""


def _is_comment(line: str, layout: Layout) -> bool:
    if layout.comment and line.startswith(layout.comment):
        return True
    return layout.separator == "tab" and line.startswith("#") and "\t" not in line


def _word_and_tag(line: str, layout: Layout, where: str) -> tuple[str, str]:
    if layout.separator == "whitespace":
        cells = re.split(r"[ \t]+", line.strip(" \t"))
    else:
        cells = line.split("\t" if layout.separator == "tab" else " ")
    if len(cells) != len(layout.columns):
        kind = f"{layout.separator}-separated columns"
        raise UserError(
            f"{where}: {len(cells)} {kind}; {len(layout.columns)} are expected ({', '.join(layout.columns)})"
        )
    place = layout.columns.index("word")
    word, tag = cells[place], cells[layout.columns.index("tag")]
    if not word.strip():
        raise UserError(f"{where}: the form (column {place + 1}) is empty")
    check_tag(tag, layout.types, where)
    return word, tag
