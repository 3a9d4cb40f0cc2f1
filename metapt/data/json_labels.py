"""Labelled sentences in JSON, as programs and annotation tools write them: one object per line, or one list of objects.

An object has words and tags, or a text and entities by character offsets:

    {"words": ["Si", "Ana", "."], "tags": ["O", "B-PER", "O"]}
    {"text": "Si Ana.", "entities": [[3, 6, "PER"]]}
    {"text": "Si Ana.", "entities": [{"start": 3, "end": 6, "type": "PER"}]}

Other names of the same entries are read too (WORDS, GOLD_TAGS, ENTITIES, START, END, TYPE): those of predictions/SET.jsonl of
a run, of `metapt tag`, of run_ner of transformers, of transformers' aggregated pipeline, of spaCy's `Doc.to_json`, of doccano,
of Prodigy, and of both exports of Label Studio (JSON and JSON_MIN). Entries `id` and `document` are optional. What was
rejected or ignored in Prodigy, and not annotated or cancelled in Label Studio, is left out and counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metapt.data.bad_input import BadInput
from metapt.data.char_spans import Entity
from metapt.data.columns import numbered_lines
from metapt.data.file_sentence import FileSentence
from metapt.errors import UserError

WORDS = ("words", "tokens")
GOLD_TAGS, PREDICTED_TAGS = ("gold", "tags", "ner_tags"), ("predicted", "tags", "ner_tags")
ENTITIES = ("entities", "ents", "spans", "label", "labels")
START, END = ("start", "start_offset"), ("end", "end_offset")
TYPE = ("type", "label", "entity_group", "labels")


class _MalformedError(Exception):
    """An object that is no labelled sentence."""


class _UnfinishedError(Exception):
    """An object that its annotators did not accept."""


def json_sentences(
    path: Path, tag_names: Sequence[str], labels: Sequence[str], bad_input: BadInput
) -> Iterator[FileSentence]:
    """The sentences of a file of JSON.

    Args:
        tag_names: the entry of the tags, GOLD_TAGS or PREDICTED_TAGS; the first that exists counts.
        labels: tags in the order of their class ids, for files whose tags are numbers.
    Raises:
        UserError: with file and line, if `bad_input` refuses it.
    """
    for number, values in _objects(path, bad_input):
        where = f"{path}:{number}"
        try:
            yield _sentence(path, number, values, tag_names, labels)
        except _MalformedError as error:
            bad_input.report(where, str(error))
        except _UnfinishedError as error:
            bad_input.count(where, str(error))


def starts_like_json(line: str) -> bool:
    """Whether the first line of a file with text shows that it contains JSON."""
    line = line.strip()
    if line.startswith("{"):
        return isinstance(_parsed(line), dict)
    return line == "[" or line.startswith(("[{", "[ {"))


def _objects(path: Path, bad_input: BadInput) -> Iterator[tuple[int, Any]]:
    """Pairs (line, or number in the list, from 1; value)."""
    lines = [(number, line) for number, line in numbered_lines(path, bad_input) if line and line.strip()]
    if lines and lines[0][1].lstrip().startswith("["):
        values = _parsed("\n".join(line for _, line in lines))
        if not isinstance(values, list):
            raise UserError(f"{path}: begins like a list of JSON objects, but is none")
        yield from enumerate(values, 1)
    else:
        for number, line in lines:
            yield number, _parsed(line)


def _parsed(text: str) -> Any:
    """The value of a JSON text; None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _sentence(
    path: Path, number: int, values: Any, tag_names: Sequence[str], labels: Sequence[str]
) -> FileSentence:
    if not isinstance(values, dict):
        raise _MalformedError("not a JSON object; expected one per line")
    values = _of_label_studio(values)
    if values.get("answer", "accept") != "accept":
        raise _UnfinishedError("not accepted by its annotator")
    identifier = str(values.get("id", number))
    document = None if values.get("document") is None else str(values["document"])
    if (name := _first_name(values, WORDS)) and (tag_name := _first_name(values, tag_names)):
        words = _strings(values[name], name)
        tags = _strings(_spelled(values[tag_name], labels), tag_name)
        if len(words) != len(tags):
            raise _MalformedError(f"{len(words)} words, but {len(tags)} tags")
        return FileSentence(path, identifier, (number,), words, tags, document=document)
    if "text" in values and (name := _first_name(values, ENTITIES)):
        text, entities = _text_and_entities(values, name)
        return FileSentence(path, identifier, (number,), text=text, entities=entities, document=document)
    raise _MalformedError(
        f"has the entries {', '.join(values) or 'none'}; expected words (or {WORDS[1]}) and tags "
        f"(or {', '.join(name for name in tag_names if name != 'tags')}), or text and entities "
        f"(or {', '.join(ENTITIES[1:])})"
    )


def _of_label_studio(values: dict[str, Any]) -> dict[str, Any]:
    """A task of Label Studio as text and entities; other objects unchanged. The first annotation that is not cancelled counts."""
    data, annotations = values.get("data"), values.get("annotations")
    if not isinstance(data, dict) or not isinstance(annotations, list):
        return values
    finished = [item for item in annotations if isinstance(item, dict) and not item.get("was_cancelled")]
    if not finished:
        raise _UnfinishedError("a task without a finished annotation")
    results = finished[0].get("result")
    if "text" not in data or not isinstance(results, list):
        raise _MalformedError("a task of Label Studio without data.text, or without a list of results")
    found = [item.get("value") for item in results if isinstance(item, dict) and item.get("type") == "labels"]
    task: dict[str, Any] = {name: values[name] for name in ("id", "document") if name in values}
    return {**task, "text": data["text"], "entities": found}


def _spelled(tags: Any, labels: Sequence[str]) -> Any:
    """Tags with class ids replaced by `labels`."""
    if not isinstance(tags, list) or not any(type(tag) is int for tag in tags):
        return tags
    if not all(type(tag) is int and 0 <= tag < len(labels) for tag in tags):
        raise _MalformedError(
            f"class ids {sorted(set(tags), key=str)[:5]}, but {len(labels)} labels are known; a description in data.corpora can "
            "list them (labels: [O, B-PER, ...])"
        )
    return [labels[tag] for tag in tags]


def _first_name(values: Mapping[str, Any], names: Sequence[str]) -> str:
    """The first of the names that `values` has; empty if it has none."""
    return next((name for name in names if name in values), "")


def _strings(items: Any, name: str) -> tuple[str, ...]:
    if not isinstance(items, list) or not all(isinstance(item, str) and item.strip(" \t") for item in items):
        raise _MalformedError(f"{name} must be a list of texts that are not empty")
    if not items:
        raise _MalformedError(f"{name} is empty; a sentence has at least one word")
    return tuple(items)


def _text_and_entities(values: Mapping[str, Any], name: str) -> tuple[str, tuple[Entity, ...]]:
    text, entities = values["text"], values[name]
    if not isinstance(text, str) or not text.strip():
        raise _MalformedError("text must be a text that is not empty")
    if not isinstance(entities, list):
        raise _MalformedError(f"{name} must be a list")
    return text, tuple(_entity(item, text, f"{name}[{index}]") for index, item in enumerate(entities))


def _entity(item: Any, text: str, name: str) -> Entity:
    if isinstance(item, dict):
        item = [item.get(_first_name(item, names)) for names in (START, END, TYPE)]
    if isinstance(item, list) and len(item) == 3 and isinstance(item[2], list) and len(item[2]) == 1:
        item = [*item[:2], item[2][0]]  # Label Studio lists the types of a span
    wrong = f"{name}: {json.dumps(item, ensure_ascii=False)}"
    if not isinstance(item, list) or len(item) != 3 or not isinstance(item[2], str) or not item[2]:
        raise _MalformedError(f"{wrong} must be [start, end, type], or an object with start, end and type")
    start, end, kind = item
    if type(start) is not int or type(end) is not int or not 0 <= start < end <= len(text):
        raise _MalformedError(
            f"{wrong} must have 0 <= start < end <= {len(text)}, the characters of the text"
        )
    if not text[start:end].strip():
        raise _MalformedError(f"{wrong} contains only white space")
    return (start, end, kind)
