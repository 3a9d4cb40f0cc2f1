"""Tagged sentences as text (with colours or brackets), as JSON, as JSON lines of annotation tools, and as IOB2."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.color import ColorSystem
from rich.style import Style

from metapt.data.json_labels import ENTITIES, GOLD_TAGS, PREDICTED_TAGS

if TYPE_CHECKING:
    from metapt.inference.entity_tagger import TaggedSentence

COLOURS = {"PER": "black on yellow", "ORG": "white on blue", "LOC": "black on green"}
OTHER_COLOUR = "black on cyan"
DIGITS = 6  # decimal places of probabilities


def with_colours(sentence: TaggedSentence) -> str:
    """The unchanged text, with terminal escape codes around its entities."""
    return _mark_entities(sentence, colour_text)


def with_brackets(sentence: TaggedSentence) -> str:
    """The text with its entities written as [PER Maria]."""
    return _mark_entities(sentence, lambda kind, text: f"[{kind} {text}]")


def as_json(sentence: TaggedSentence) -> str:
    """One line of JSON whose keys are the fields of TaggedSentence and Entity."""
    return json.dumps(_round_floats(asdict(sentence)), ensure_ascii=False)


def as_jsonl(sentence: TaggedSentence, values: Mapping[str, Any] | None = None) -> str:
    """One line of JSON as annotation tools read it, which metapt.data.json_labels reads too.

    A text gets `spans` with the characters of its entities; words get `ner_tags`.

    Args:
        values: the JSON object that the sentence is from; what is no label in it is kept.
    """
    values = dict(values or {})
    replaced = {*ENTITIES, *GOLD_TAGS, *PREDICTED_TAGS, "gold_logprob"}
    kept = {name: value for name, value in values.items() if name not in replaced}
    if values and "text" not in values:
        return json.dumps({**kept, "ner_tags": sentence.tags}, ensure_ascii=False)
    spans = [
        {
            "start": entity.start,
            "end": entity.end,
            "label": entity.type,
            "probability": _round_floats(entity.probability),
        }
        for entity in sentence.entities
    ]
    return json.dumps({**kept, "text": sentence.text, "spans": spans}, ensure_ascii=False)


def as_iob2(sentence: TaggedSentence, comments: Sequence[str] = ()) -> str:
    """A block that metapt.data.iob2 can read, ending with a blank line; empty for a sentence without words."""
    rows = enumerate(zip(sentence.words, sentence.tags, strict=True), 1)
    lines = [*comments, *(f"{index}\t{word}\t{tag}\t-\t-" for index, (word, tag) in rows), "", ""]
    return "\n".join(lines) if sentence.words else ""


def colour_text(kind: str, text: str) -> str:
    """Put text in the colour of an entity type. Avoids rich.Text, which expands tabs and drops control characters."""
    style = Style.parse(COLOURS.get(kind, OTHER_COLOUR))
    return style.render(text, color_system=ColorSystem.STANDARD)


def _mark_entities(sentence: TaggedSentence, mark: Callable[[str, str], str]) -> str:
    parts, done = [], 0
    for entity in sentence.entities:
        parts += [sentence.text[done : entity.start], mark(entity.type, entity.text)]
        done = entity.end
    return "".join(parts) + sentence.text[done:]


def _round_floats(value: Any) -> Any:
    """Round the floats in nested dictionaries and lists to DIGITS."""
    if isinstance(value, dict):
        return {name: _round_floats(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_round_floats(item) for item in value]
    return round(value, DIGITS) if isinstance(value, float) else value
