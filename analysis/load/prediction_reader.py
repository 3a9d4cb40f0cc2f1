"""Files of predictions, read fast: ten thousand runs repeat the same sentences, and mostly the same tags.

A line is cut where its keys stand, and each distinct part is parsed once. The parts of a JSON object with a value of JSON
for every key are the object: in valid JSON `, "predicted": ` is nowhere but at a key, since a quote within a string has
a backslash before it. A file that is not written so throughout is parsed in full, to the same (tests/test_analysis_predictions.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import orjson

from metapt.data.iob2 import spans
from metapt.evaluation.span_f1 import Span, conlleval_spans

from .records import GoldSet
from .span_matching import Gold, packed

ANSWER = re.compile(rb', "predicted": (\[[^\]]*\]), "gold_logprob": (\[[^\]]*\]|null)\}\n')
HEAD_KEYS = {"id", "words", "gold"}
MOST_TAGGINGS = 200_000  # that are kept; some hundred bytes each
Spans = tuple[tuple[Span, ...], ...]
Known = tuple[GoldSet, Spans]
"""a gold set, and its spans as conlleval finds them"""
T = TypeVar("T")


@dataclass(frozen=True)
class Tagging:
    """The tags of a sentence: their number, their spans in strict IOB2, as they are and packed, as conlleval finds them, and whether these are the same."""

    words: int
    spans: tuple[Span, ...]
    packed: bytes
    lax: tuple[Span, ...]
    is_valid: bool


@dataclass(frozen=True)
class Predictions:
    """The lines of a file: `logprobs` is None for a sentence of a tagger without probabilities; empty where not asked for."""

    gold: GoldSet
    gold_lax: Spans
    taggings: Sequence[Tagging]
    logprobs: Sequence[Sequence[float] | None]


class Pool:
    """What many runs share, each once: gold sets, which must be the same object to be compared, and what repeats often."""

    def __init__(self) -> None:
        self._found: dict[Any, Any] = {}
        self._parsed: dict[str, Any] = {}
        self._gold: dict[tuple[str, tuple[bytes, ...]], Known] = {}
        self._last: dict[str, tuple[tuple[bytes, ...], Known]] = {}
        self._together: dict[tuple[GoldSet, ...], Gold] = {}
        self._taggings: dict[bytes | tuple[str, ...], Tagging] = {}

    def same(self, value: T) -> T:
        """The first of the values that equal this one."""
        return self._found.setdefault(value, value)

    def parsed(self, text: str, parse: Callable[[str], T]) -> T:
        """What a text says; of equal ones the first is parsed, and none of them may be written to."""
        if text not in self._parsed:
            self._parsed[text] = parse(text)
        return self._parsed[text]

    def gold(self, name: str, lines: Sequence[Any]) -> Known:
        """The gold set of lines with an id, words and gold tags."""
        taggings = [self.tagging(tuple(line["gold"])) for line in lines]
        parts = (
            name,
            tuple(str(line["id"]) for line in lines),
            tuple(tuple(line["words"]) for line in lines),
            tuple(tagging.spans for tagging in taggings),
        )
        found = self._found.get(parts) or self._found.setdefault(parts, GoldSet(*parts))
        return found, tuple(tagging.lax for tagging in taggings)

    def gold_of_heads(self, name: str, heads: tuple[bytes, ...]) -> Known:
        """The same of the beginnings of lines, up to the predictions."""
        known, found = self._last.get(name, (None, None))
        if known != heads:  # compared first: to look them up, all their bytes would be hashed
            found = self._gold.get((name, heads))
        if found is None:
            lines = [orjson.loads(head + b"}") for head in heads]
            if any(line.keys() != HEAD_KEYS for line in lines):
                raise ValueError("other keys")
            if any(len(line["gold"]) != len(line["words"]) for line in lines):
                raise ValueError("not as many tags as words")
            found = self._gold[name, heads] = self.gold(name, lines)
        self._last[name] = heads, found
        return found

    def together(self, golds: tuple[GoldSet, ...]) -> Gold:
        """The gold spans of several sets as one text."""
        if golds not in self._together:
            self._together[golds] = Gold([(gold.spans, gold.lengths) for gold in golds])
        return self._together[golds]

    def tagging(self, tags: tuple[str, ...]) -> Tagging:
        return self._tagging(tags, lambda: tags)

    def taggings_of_texts(self, texts: Sequence[bytes]) -> list[Tagging]:
        known = self._taggings.get
        return [known(text) or self._tagging(text, partial(orjson.loads, text)) for text in texts]

    def _tagging(self, key: bytes | tuple[str, ...], parse: Callable[[], Sequence[str]]) -> Tagging:
        found = self._taggings.get(key)
        if found is None:
            tags = parse()
            strict, lax = self.same(tuple(spans(tags))), self.same(tuple(conlleval_spans(tags)))
            if len(self._taggings) >= MOST_TAGGINGS:
                self._taggings.clear()
            found = self._taggings[key] = Tagging(len(tags), strict, packed(strict), lax, lax == strict)
        return found


def read_predictions(path: Path, pool: Pool, with_logprobs: bool = True) -> Predictions:
    """The complete lines of a file.

    Args:
        with_logprobs: else the probabilities are not read, and damage within their numbers is not told.
    Raises:
        ValueError: a line has not as many tags or probabilities as words, or is no JSON.
        KeyError: a line lacks a key.
    """
    content = path.read_bytes()
    try:
        return _read_in_parts(path.stem, content, pool, with_logprobs)
    except (ValueError, TypeError, AttributeError):  # of any damage that the plain way tells better
        return _read_plainly(path, content, pool, with_logprobs)


def _read_in_parts(name: str, content: bytes, pool: Pool, with_logprobs: bool) -> Predictions:
    """Raises ValueError, TypeError or AttributeError where the file is not written as this suite does."""
    *parts, rest = ANSWER.split(content)
    if not parts or b"\n" in rest:  # beside a line that a kill has cut off
        raise ValueError("other lines")
    gold, lax = pool.gold_of_heads(name, tuple(parts[::3]))
    taggings = pool.taggings_of_texts(parts[1::3])
    texts = b",".join(parts[2::3])
    words = gold.lengths
    if [tagging.words for tagging in taggings] != words:
        raise ValueError("not as many tags as words")
    if not with_logprobs:
        return Predictions(gold, lax, taggings, ())
    if b'"' in texts:
        raise ValueError("not lists of numbers")
    logprobs = orjson.loads(b"[" + texts + b"]")
    if [size if found is None else len(found) for found, size in zip(logprobs, words, strict=True)] != words:
        raise ValueError("not as many probabilities as words")
    return Predictions(gold, lax, taggings, logprobs)


def _read_plainly(path: Path, content: bytes, pool: Pool, with_logprobs: bool) -> Predictions:
    lines = json_lines(content)
    for number, line in enumerate(lines, 1):
        logprobs = line["gold_logprob"]
        sides = [line["gold"], line["predicted"], *([] if logprobs is None else [logprobs])]
        if any(len(side) != len(line["words"]) for side in sides):
            raise ValueError(f"predictions/{path.name}, line {number}: not as many tags as words")
    gold, lax = pool.gold(path.stem, lines)
    taggings = [pool.tagging(tuple(line["predicted"])) for line in lines]
    logprobs = [line["gold_logprob"] for line in lines] if with_logprobs else ()
    return Predictions(gold, lax, taggings, logprobs)


def json_lines(content: bytes) -> list[Any]:
    """The complete lines of a JSON-lines file, as `metapt.files.read_jsonl` gives them but parsed in one go."""
    array = b"[" + _whole_lines(content).replace(b"\n", b",") + b"]"
    try:
        return orjson.loads(array)
    except orjson.JSONDecodeError:  # of NaN and lone surrogates too, which Python's own parser reads
        return json.loads(array.decode())


def _whole_lines(content: bytes) -> bytes:
    """Without a last line that a kill has cut off, and without the end of the one before."""
    return content[: content.rfind(b"\n") + 1].rstrip(b"\n")
