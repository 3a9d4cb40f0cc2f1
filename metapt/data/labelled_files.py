"""Files of labelled sentences in the formats that programs write: columns, JSON, or spaCy's binary format.

Columns are read by `metapt.data.columns`, JSON by `metapt.data.json_labels`. Files of spaCy (`.spacy`, DocBin) need spaCy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from metapt.data.bad_input import BadInput, refusing
from metapt.data.char_spans import Adjustments, solid_entities, tags_of_entities
from metapt.data.columns import (
    UNER_LAYOUT,
    ColumnLayout,
    column_sentences,
    layout_of,
    numbered_lines,
    recognized_layout,
)
from metapt.data.documents import document_ids, refuse_marks
from metapt.data.file_sentence import FileSentence
from metapt.data.iob2 import Sentence, read_iob2, tag_problem, to_iob2, with_unique_ids
from metapt.data.json_labels import GOLD_TAGS, json_sentences, starts_like_json
from metapt.data.word_splitting import word_offsets
from metapt.errors import UserError

SPACY_SUFFIX = ".spacy"


@dataclass(frozen=True)
class LabelledFile:
    """The sentences of a file, and how it was read.

    Attributes:
        layout: of its columns; None for JSON lines.
        is_recognized: whether the layout was recognized rather than given.
    """

    path: Path
    sentences: tuple[FileSentence, ...]
    layout: ColumnLayout | None
    is_recognized: bool


def read_labelled_file(
    path: Path, columns: Sequence[str], tag_names: Sequence[str], documents: str = "sentence"
) -> LabelledFile:
    """Read a file of either text format, and refuse malformed input. A file whose first line with text is a JSON object has JSON lines.

    Args:
        columns: names of the columns of a column file, among them `word` and `tag`; empty: recognized.
        tag_names: the entry of the tags in JSON lines, GOLD_TAGS or PREDICTED_TAGS; the first that exists counts.
        documents: the marks of documents in a column file (`metapt.data.documents.document_ids`). In JSON lines the entry
            `document` marks them.
    Raises:
        UserError: with file and line: not UTF-8, no such format, an entry that is missing or wrong, no sentence.
    """
    if _is_json(path):
        in_lines = tuple(json_sentences(path, tag_names, (), refusing()))
        _check_documents(in_lines)
        return LabelledFile(path, in_lines, None, False)
    layout = layout_of(path, columns) if columns else recognized_layout(path)
    found = list(column_sentences(path, layout, refusing()))
    if not found:
        raise UserError(f"{path}:1: contains no sentence")
    names = document_ids([item.marks for item in found], documents, str(path))
    sentences = tuple(
        FileSentence(path, item.id, item.lines, item.words, item.tags, document=document)
        for item, document in zip(found, names, strict=True)
    )
    return LabelledFile(path, sentences, layout, not columns)


@dataclass(frozen=True)
class FileOptions:
    """How the files of a labelled set are read.

    Attributes:
        layout: of column files; None: recognized.
        types: maps entity types to others, or to O; types that it lacks keep their names.
        documents: the marks of documents in column files.
        labels: tags in the order of their class ids, for JSON whose tags are numbers.
    """

    layout: ColumnLayout | None = None
    types: Mapping[str, str] | None = None
    documents: str = "auto"
    labels: Sequence[str] = ()


def read_sentences(
    path: Path, options: FileOptions, bad_input: BadInput, remark: Callable[[str], None]
) -> list[Sentence]:
    """Read the sentences of a file of any format, with tags in IOB2.

    A text becomes one sentence, whose words metapt/data/word_splitting.py finds, as in `metapt tag`. Entities that tags of
    words cannot express are changed.

    Args:
        bad_input: handles malformed sentences.
        remark: receives how columns were recognized, and which entities were changed.
    Raises:
        UserError: with file and line, if `bad_input` refuses it; there is no such file, no such format, no sentence.
    """
    if path.suffix == SPACY_SUFFIX and path.is_file():
        refuse_marks(options.documents, str(path))
        found = list(_spacy_sentences(path))
    elif _is_json(path):
        refuse_marks(options.documents, str(path))
        found = list(json_sentences(path, GOLD_TAGS, options.labels, bad_input))
    else:
        layout = options.layout or recognized_layout(path)
        if options.layout is None and layout != UNER_LAYOUT:
            remark(f"{path}: {layout}")
        types = layout.types if options.types is None else options.types
        return read_iob2(path, replace(layout, types=types, documents=options.documents), bad_input)
    _check_documents(found)
    adjustments = Adjustments()
    sentences = list(_converted(found, options.types or {}, bad_input, adjustments))
    for notice in adjustments.notices():
        remark(notice)
    if not sentences:
        raise UserError(f"{path}:1: contains no sentence")
    return with_unique_ids(sentences)


def _converted(
    found: Sequence[FileSentence], types: Mapping[str, str], bad_input: BadInput, adjustments: Adjustments
) -> Iterator[Sentence]:
    for source in found:
        if source.text is not None:
            words = tuple(source.text[start:end] for start, end in word_offsets(source.text))
            entities = solid_entities(source.text, source.entities, types)
            tags = tags_of_entities(entities, words, adjustments, source.where())
        elif problem := next(filter(None, map(tag_problem, source.tags)), None):
            bad_input.report(source.where(), problem)
            continue
        else:
            words, tags = source.words, to_iob2(source.tags, types)
        yield Sentence(source.id, words, tags, source.document)


def _is_json(path: Path) -> bool:
    """Whether a file contains JSON rather than columns.

    Raises:
        UserError: there is no such file, or no line with text in it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    first = next((line for _, line in numbered_lines(path, BadInput("skip")) if line and line.strip()), None)
    if first is None:
        raise UserError(f"{path}:1: contains no sentence")
    return starts_like_json(first)


def _check_documents(sentences: Sequence[FileSentence]) -> None:
    """Check that all sentences have an entry `document`, or none."""
    if len({sentence.document is None for sentence in sentences}) > 1:
        missing = next(sentence for sentence in sentences if sentence.document is None)
        raise UserError(f"{missing.where()}: has no entry `document`, which other lines have")


def _spacy_sentences(path: Path) -> Iterator[FileSentence]:
    """The sentences of a DocBin, or its texts where it marks no sentences; each text is a document.

    Raises:
        UserError: spaCy is not installed, or the file is not its binary format.
    """
    try:
        import spacy
        from spacy.tokens import DocBin
    except ImportError:
        raise UserError(f"{path}: reading {SPACY_SUFFIX} files needs spaCy (pip install spacy)") from None
    try:
        texts = list(DocBin().from_disk(path).get_docs(spacy.blank("xx").vocab))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path}: not a file of spaCy ({type(error).__name__})") from None
    for number, text in enumerate(texts, 1):
        for part in text.sents if text.has_annotation("SENT_START") else [text]:
            tokens = [token for token in part if token.text.strip()]
            tags = [f"{token.ent_iob_}-{token.ent_type_}" if token.ent_type_ else "O" for token in tokens]
            if tokens:
                words = tuple(token.text for token in tokens)
                yield FileSentence(path, str(number), (number,), words, tuple(tags), document=str(number))
