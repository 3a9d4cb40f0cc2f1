"""The IOB2 format of labelled sentences: reading, writing, and the spans that tags stand for.

Files are UTF-8 with five tab-separated columns: index, form, tag, a source's own tag, annotator. The fourth column
differs from the third in some sets of Universal NER and is not the gold tag.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from metapt.errors import UserError
from metapt.runs import write_atomically

TYPES = ("PER", "ORG", "LOC")
TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")  # the hub's label order
COLUMNS = 5
SENT_ID = re.compile(r"#\s*sent_id\s*=\s*(.*)")


@dataclass(frozen=True)
class Sentence:
    """One sentence: as many tags (of TAGS, valid IOB2) as words."""

    id: str
    words: tuple[str, ...]
    tags: tuple[str, ...]


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


def read_iob2(path: Path) -> list[Sentence]:
    """Reads an IOB2 file as Universal NER has them.

    A line that starts with `#` and holds no tab is a comment (a form may be or begin with `#`); a form may hold
    spaces. Line ends may be LF or CRLF, and the last blank line may be missing. As in the hub's loader, a tag that
    holds OTH, and the stray B-O of en_ewt, are read as O. An I-X that does not continue an X is read as B-X:
    Universal NER's published counts are seqeval's default mode, which lets it start a span, and strict IOB2, in
    which everything is scored, would drop it.

    Raises:
        UserError: with file and line: not UTF-8, not five columns, an empty form, an unknown tag, no sentence.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    sentences = list(_sentences(path))
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


def _sentences(path: Path) -> Iterator[Sentence]:
    """The sentences of a file, one at a time; sentences without a sent_id are numbered."""
    identifier = ""
    words: list[str] = []
    tags: list[str] = []
    count = 0
    for where, line in _lines(path):
        if not line.strip(" "):
            if words:
                count += 1
                yield Sentence(identifier or str(count), tuple(words), repaired(tags))
            identifier, words, tags = "", [], []
        elif line.startswith("#") and "\t" not in line:
            if match := SENT_ID.match(line):
                identifier = match[1].strip()
        else:
            word, tag = _word_and_tag(line, where)
            words.append(word)
            tags.append(tag)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Pairs `file:line`, line without its end; after the last one an empty line, which closes the last sentence."""
    number = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                yield f"{path}:{number}", raw.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}:{number}: not UTF-8 at byte {error.start + 1} of the line") from None
    yield f"{path}:{number + 1}", ""


def _word_and_tag(line: str, where: str) -> tuple[str, str]:
    columns = line.split("\t")
    if len(columns) != COLUMNS:
        raise UserError(
            f"{where}: {len(columns)} tab-separated columns; {COLUMNS} are expected (index, form, tag, source tag, annotator)"
        )
    if not columns[1].strip():
        raise UserError(f"{where}: the form (column 2) is empty")
    return columns[1], known_tag(columns[2], where)


def known_tag(tag: str, where: str) -> str:
    """A tag of TAGS, with OTH and B-O read as O."""
    if "OTH" in tag or tag == "B-O":
        return "O"
    if tag not in TAGS:
        raise UserError(
            f"{where}: unknown tag {tag!r}; tags are {', '.join(TAGS)}, and B-OTH, I-OTH and B-O (read as O)"
        )
    return tag


def repaired(tags: Sequence[str]) -> tuple[str, ...]:
    """The tags with every I-X that does not continue an X turned into B-X."""
    previous = ("O", *tags)
    return tuple(
        f"B-{tag[2:]}" if tag.startswith("I-") and before[2:] != tag[2:] else tag
        for before, tag in zip(previous, tags, strict=False)
    )
