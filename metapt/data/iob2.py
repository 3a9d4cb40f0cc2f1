"""Labelled sentences: IOB2 tags, entity spans, and files with one word per line.

Tags of any scheme are converted to IOB2. Entity types come from the data: any name is one. The files of Universal NER have
five tab-separated columns: index, word, tag, tag of the source corpus, annotator. In some sets the fourth column differs
from the third; the third is the gold tag.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from metapt.data.bad_input import BadInput, refusing
from metapt.data.columns import PREFIXES, TAG, UNER_LAYOUT, ColumnLayout, ColumnSentence, column_sentences
from metapt.data.documents import document_ids
from metapt.errors import UserError
from metapt.files import write_atomically

TYPES = ("PER", "ORG", "LOC")  # of Universal NER
TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")  # in the label order of the hub's data set
START_PREFIXES, END_PREFIXES = frozenset("BSU"), frozenset("ELSU")


@dataclass(frozen=True)
class Sentence:
    """A sentence with one tag per word. The tags are valid IOB2.

    document: id of the text that the sentence is from; None if the set marks no texts.
    """

    id: str
    words: tuple[str, ...]
    tags: tuple[str, ...]
    document: str | None = None


def entity_types(found: Iterable[str]) -> tuple[str, ...]:
    """Entity types in a fixed order: TYPES if there are no others; otherwise those found, TYPES first, then by name."""
    names = set(found)
    if names <= set(TYPES):
        return TYPES
    return (*(name for name in TYPES if name in names), *sorted(names - set(TYPES)))


def types_of(sentences: Iterable[Sentence]) -> tuple[str, ...]:
    """The entity types of some sentences (`entity_types`)."""
    return entity_types(types_in(sentences))


def types_in(sentences: Iterable[Sentence]) -> set[str]:
    """The entity types that occur in some sentences."""
    return {tag[2:] for sentence in sentences for tag in sentence.tags if tag != "O"}


def tags_of(types: Iterable[str]) -> tuple[str, ...]:
    """All IOB2 tags of some entity types: O, then B and I of each."""
    return ("O", *(f"{prefix}-{name}" for name in types for prefix in "BI"))


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


def tag_problem(tag: str) -> str | None:
    """Why a tag is none, if so: it is neither O, nor a prefix of PREFIXES with a type."""
    if TAG.fullmatch(tag):
        return None
    others = ", ".join(f"{prefix}-" for prefix in PREFIXES[2:])
    return f"unknown tag {tag!r}; allowed are O, and B- or I- (or {others}) with a type"


def to_iob2(tags: Iterable[str], types: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Convert tags of IOB1, IOB2, IOBES, BILOU or BMES to valid IOB2.

    One rule suffices for all these schemes: a tag that does not continue an open span of its type starts a new span.
    So an I-X that continues no X becomes B-X. This is its meaning in IOB1. In IOB2 it is an annotation error; Universal
    NER's published counts and seqeval's default mode read it in the same way, while strict IOB2, which all scores here
    use, would drop the span.

    Args:
        tags: tags without a `tag_problem`.
        types: maps entity types of `tags` to others, or to O; types that it lacks keep their names.
    """
    types = types or {}
    converted, open_type = [], None
    for tag in tags:
        prefix, _, entity_type = tag.partition("-")
        target = types.get(entity_type, entity_type) or "O"
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


def read_iob2(
    path: Path, layout: ColumnLayout = UNER_LAYOUT, bad_input: BadInput | None = None
) -> list[Sentence]:
    """Read a file with one word per line and a blank line after each sentence (`metapt.data.columns`).

    Ids are made unique (`with_unique_ids`). Tags are converted by `to_iob2`. Documents are those that `# newdoc` or
    -DOCSTART- mark (`metapt.data.documents`).

    Args:
        bad_input: handles malformed lines; a sentence with one is left out. None: they are refused.
    Raises:
        UserError: with file and line, if `bad_input` refuses it: a malformed line, an unknown tag; with the file: no
            sentence, or `layout.documents` names a mark that does not divide it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    bad_input = bad_input or refusing()
    sentences = list(_converted(path, list(column_sentences(path, layout, bad_input)), layout, bad_input))
    if not sentences:
        raise UserError(f"{path}:1: contains no sentence")
    return with_unique_ids(sentences)


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


def _converted(
    path: Path, sentences: Sequence[ColumnSentence], layout: ColumnLayout, bad_input: BadInput
) -> Iterator[Sentence]:
    """The sentences with their tags checked and converted, and with their documents."""
    if not sentences:
        return
    documents = document_ids([sentence.marks for sentence in sentences], layout.documents, str(path))
    for sentence, document in zip(sentences, documents, strict=True):
        problems = [
            (number, problem)
            for number, tag in zip(sentence.lines, sentence.tags, strict=True)
            if (problem := tag_problem(tag))
        ]
        if problems:
            bad_input.report(f"{path}:{problems[0][0]}", problems[0][1])
        else:
            yield Sentence(sentence.id, sentence.words, to_iob2(sentence.tags, layout.types), document)
