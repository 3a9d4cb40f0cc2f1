"""Files of labelled sentences in the formats that programs write: columns, or JSON lines.

Columns: one word per line, as `metapt.data.iob2` reads them. JSON lines: an object per sentence, with words and tags, or
with a text and entities by character offsets:

    {"words": ["Si", "Ana", "."], "tags": ["O", "B-PER", "O"]}
    {"text": "Si Ana.", "entities": [[3, 6, "PER"]]}
    {"text": "Si Ana.", "entities": [{"start": 3, "end": 6, "type": "PER"}]}

Other names of the same entries are read too (WORDS, TAGS, ENTITIES, START, END, TYPE): those of predictions/SET.jsonl of a
run, of `metapt tag`, of spaCy's `Doc.to_json`, of transformers' aggregated pipeline, and of doccano. An entry `id` and an
entry `document` are optional.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metapt.data.documents import document_ids
from metapt.data.iob2 import (
    UNER_LAYOUT,
    ColumnLayout,
    column_sentences,
    counts_words,
    is_comment,
    numbered_lines,
    sentence_breaks_at,
    split_cells,
)
from metapt.errors import UserError

WORDS = ("words", "tokens")
GOLD_TAGS, PREDICTED_TAGS = ("gold", "tags", "ner_tags"), ("predicted", "tags", "ner_tags")
ENTITIES = ("entities", "ents", "spans", "label")
START, END = ("start", "start_offset"), ("end", "end_offset")
TYPE = ("type", "label", "entity_group")
SAMPLE = 100  # sentences by which the layout of columns is recognized

Entity = tuple[int, int, str]
"""(first character, one past the last character, type)."""


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
    """Read a file of either format. A file whose first line with text is a JSON object has JSON lines.

    Args:
        columns: names of the columns of a column file, among them `word` and `tag`; empty: recognized.
        tag_names: the entry of the tags in JSON lines, GOLD_TAGS or PREDICTED_TAGS; the first that exists counts.
        documents: the marks of documents in a column file (`metapt.data.documents.document_ids`). In JSON lines the entry
            `document` marks them.
    Raises:
        UserError: with file and line: not UTF-8, no such format, an entry that is missing or wrong, no sentence.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    first = next((line for _, line in numbered_lines(path) if line.strip()), None)
    if first is None:
        raise UserError(f"{path}:1: contains no sentence")
    if first.lstrip().startswith("{") and isinstance(_parsed(first), dict):
        in_lines = tuple(_json_sentences(path, tag_names))
        if len({sentence.document is None for sentence in in_lines}) > 1:
            missing = next(sentence for sentence in in_lines if sentence.document is None)
            raise UserError(f"{missing.where()}: has no entry `document`, which other lines have")
        return LabelledFile(path, in_lines, None, False)
    layout = _layout(path, columns) if columns else _recognized_layout(path)
    found = list(column_sentences(path, layout))
    if not found:
        raise UserError(f"{path}:1: contains no sentence")
    names = document_ids([item.marks for item in found], documents, str(path))
    sentences = tuple(
        FileSentence(path, item.id, item.lines, item.words, item.tags, document=document)
        for item, document in zip(found, names, strict=True)
    )
    return LabelledFile(path, sentences, layout, not columns)


def _layout(path: Path, columns: Sequence[str]) -> ColumnLayout:
    """The layout with these columns; the separator is recognized."""
    if not {"word", "tag"} <= set(columns):
        raise UserError(f"columns of {path}: {', '.join(columns)}; must name the columns `word` and `tag`")
    separator, _ = _first_rows(path)
    return ColumnLayout(tuple(columns), separator)


def _recognized_layout(path: Path) -> ColumnLayout:
    """The layout of a file by its first sentences.

    The word is in column 2 if column 1 counts the words (1, 2, 3, ...), otherwise in column 1. The tag is in the last
    column, except in the five columns of Universal NER.
    """
    separator, rows = _first_rows(path)
    width = len(rows[0][0]) if rows else 0
    if width < 2:
        raise UserError(
            f"{path}:1: neither JSON lines nor columns with a word and a tag; the first sentence has {width} column(s)"
        )
    is_counted = all(map(counts_words, rows))
    if separator == "tab" and is_counted and width == len(UNER_LAYOUT.columns):
        return UNER_LAYOUT
    names = [f"column {number}" for number in range(1, width + 1)]
    names[-1] = "tag"
    if is_counted and width > 2:
        names[:2] = ["index", "word"]
    else:
        names[0] = "word"
    return ColumnLayout(tuple(names), separator)


def _first_rows(path: Path) -> tuple[str, list[list[list[str]]]]:
    """The separator, and the cells of the first SAMPLE sentences."""
    for separator in ("tab", "whitespace"):
        layout = ColumnLayout(("word", "tag"), separator)
        blocks: list[list[list[str]]] = [[]]
        for _, line in numbered_lines(path):
            if not sentence_breaks_at(line, layout):
                if not is_comment(line, layout):
                    blocks[-1].append(split_cells(line, layout))
            elif blocks[-1]:
                if len(blocks) == SAMPLE:
                    break
                blocks.append([])
        rows = [block for block in blocks if block]
        if any(len(row) > 1 for block in rows for row in block):
            break
    return separator, rows


def _parsed(line: str) -> Any:
    """The value of a line of JSON; None if it is not JSON."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def _json_sentences(path: Path, tag_names: Sequence[str]) -> Iterator[FileSentence]:
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        where, values = f"{path}:{number}", _parsed(line)
        if not isinstance(values, dict):
            raise UserError(f"{where}: not a JSON object; expected one per line")
        identifier = str(values.get("id", number))
        document = None if values.get("document") is None else str(values["document"])
        if (name := _first_name(values, WORDS)) and _first_name(values, tag_names):
            words, tags = (_strings(values, key, where) for key in (name, _first_name(values, tag_names)))
            if len(words) != len(tags):
                raise UserError(f"{where}: {len(words)} words, but {len(tags)} tags")
            yield FileSentence(path, identifier, (number,), words, tags, document=document)
        elif "text" in values and (name := _first_name(values, ENTITIES)):
            text, entities = _text_and_entities(values, name, where)
            yield FileSentence(path, identifier, (number,), text=text, entities=entities, document=document)
        else:
            raise UserError(
                f"{where}: has the entries {', '.join(values) or 'none'}; expected words (or {WORDS[1]}) and tags "
                f"(or {', '.join(name for name in tag_names if name != 'tags')}), or text and entities "
                f"(or {', '.join(ENTITIES[1:])})"
            )


def _first_name(values: Mapping[str, Any], names: Sequence[str]) -> str:
    """The first of the names that `values` has; empty if it has none."""
    return next((name for name in names if name in values), "")


def _strings(values: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    items = values[name]
    if not isinstance(items, list) or not all(isinstance(item, str) and item.strip() for item in items):
        raise UserError(f"{where}: {name} must be a list of texts that are not empty")
    if not items:
        raise UserError(f"{where}: {name} is empty; a sentence has at least one word")
    return tuple(items)


def _text_and_entities(values: Mapping[str, Any], name: str, where: str) -> tuple[str, tuple[Entity, ...]]:
    text, entities = values["text"], values[name]
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: text must be a text that is not empty")
    if not isinstance(entities, list):
        raise UserError(f"{where}: {name} must be a list")
    return text, tuple(
        _entity(item, text, f"{where}: {name}[{index}]") for index, item in enumerate(entities)
    )


def _entity(item: Any, text: str, where: str) -> Entity:
    if isinstance(item, dict):
        item = [item.get(_first_name(item, names)) for names in (START, END, TYPE)]
    wrong = f"{where}: {json.dumps(item, ensure_ascii=False)}"
    if not isinstance(item, list) or len(item) != 3 or not isinstance(item[2], str) or not item[2]:
        raise UserError(f"{wrong} must be [start, end, type], or an object with start, end and type")
    start, end, kind = item
    if type(start) is not int or type(end) is not int or not 0 <= start < end <= len(text):
        raise UserError(f"{wrong} must have 0 <= start < end <= {len(text)}, the characters of the text")
    if not text[start:end].strip():
        raise UserError(f"{wrong} contains only white space")
    return (start, end, kind)
