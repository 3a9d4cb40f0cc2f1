"""Tagged sentences as text (coloured, or with brackets), as JSON, and as IOB2."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.color import ColorSystem
from rich.style import Style

if TYPE_CHECKING:
    from metapt.inference.entity_tagger import TaggedSentence

COLOURS = {"PER": "black on yellow", "ORG": "white on blue", "LOC": "black on green"}
OTHER_COLOUR = "black on cyan"
DIGITS = 6  # of a probability


def coloured(sentence: TaggedSentence) -> str:
    """The text to the letter, with a terminal's escape codes around its entities."""
    return _marked(sentence, paint)


def bracketed(sentence: TaggedSentence) -> str:
    """The text with its entities as [PER Maria]."""
    return _marked(sentence, lambda kind, text: f"[{kind} {text}]")


def as_json(sentence: TaggedSentence) -> str:
    """One line; its keys are the fields of TaggedSentence and Entity."""
    return json.dumps(_rounded(asdict(sentence)), ensure_ascii=False)


def as_iob2(sentence: TaggedSentence, comments: Sequence[str] = ()) -> str:
    """A block as metapt.data.iob2 reads it, with the blank line after it; nothing for a sentence without words."""
    rows = enumerate(zip(sentence.words, sentence.tags, strict=True), 1)
    lines = [*comments, *(f"{index}\t{word}\t{tag}\t-\t-" for index, (word, tag) in rows), "", ""]
    return "\n".join(lines) if sentence.words else ""


def paint(kind: str, text: str) -> str:
    """Text in the colour of a type of entity. Not through rich's Text, which expands tabs and drops control characters."""
    style = Style.parse(COLOURS.get(kind, OTHER_COLOUR))
    return style.render(text, color_system=ColorSystem.STANDARD)


def _marked(sentence: TaggedSentence, mark: Callable[[str, str], str]) -> str:
    parts, done = [], 0
    for entity in sentence.entities:
        parts += [sentence.text[done : entity.start], mark(entity.type, entity.text)]
        done = entity.end
    return "".join(parts) + sentence.text[done:]


def _rounded(value: Any) -> Any:
    """The same value with its floats rounded to DIGITS."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, DIGITS) if isinstance(value, float) else value
