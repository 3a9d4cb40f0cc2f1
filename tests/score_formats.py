"""Labelled sentences in every format that `metapt score` reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from hypothesis import strategies as st

from metapt.data.iob2 import Sentence, spans, to_iob2, write_iob2

NAMES = {"PER": "PER", "ORG": "ORG", "LOC": "LOC", "MISC": "MISC"}
TAGS = ["O", *(f"{prefix}-{kind}" for prefix in "BI" for kind in NAMES)]
WORDS = st.text(st.sampled_from("aÉñ'-.#{漢🙂"), min_size=1, max_size=5).filter(
    lambda word: word != "-DOCSTART-"
)


@st.composite
def labelled(draw: st.DrawFn, valid: bool = True) -> list[Sentence]:
    """One to four sentences of one to six words; tags are valid IOB2 if `valid`."""
    sentences = []
    for number in range(draw(st.integers(1, 4))):
        words = tuple(draw(st.lists(WORDS, min_size=1, max_size=6)))
        tags = tuple(draw(st.lists(st.sampled_from(TAGS), min_size=len(words), max_size=len(words))))
        sentences.append(Sentence(str(number + 1), words, to_iob2(tags, NAMES) if valid else tags))
    return sentences


def text_and_entities(sentence: Sentence) -> tuple[str, list[tuple[int, int, str]]]:
    """The words with one space between them, and the entities by characters."""
    starts = [sum(len(word) + 1 for word in sentence.words[:index]) for index in range(len(sentence.words))]
    ends = [start + len(word) for start, word in zip(starts, sentence.words, strict=True)]
    return " ".join(sentence.words), [
        (starts[start], ends[end - 1], kind) for kind, start, end in spans(sentence.tags)
    ]


def to_iobes(tags: Sequence[str]) -> list[str]:
    """Valid IOB2 in IOBES: S- for an entity of one word, E- for the last word of a longer one."""
    found = list(tags)
    for kind, start, end in spans(tags):
        found[end - 1] = f"{'S' if end - start == 1 else 'E'}-{kind}"
    return found


def write_uner(path: Path, sentences: Sequence[Sentence]) -> None:
    write_iob2(path, sentences)


def write_columns(path: Path, sentences: Sequence[Sentence]) -> None:
    """Two columns with a space between them."""
    blocks = (
        "".join(f"{word} {tag}\n" for word, tag in zip(s.words, s.tags, strict=True)) for s in sentences
    )
    path.write_text("\n".join(blocks), encoding="utf-8")


def write_conll2003(path: Path, sentences: Sequence[Sentence]) -> None:
    """Four columns, a -DOCSTART- at the head, CRLF line ends, and IOBES tags."""
    lines = ["-DOCSTART- -X- -X- O", ""]
    for sentence in sentences:
        pairs = zip(sentence.words, to_iobes(sentence.tags), strict=True)
        lines += [*(f"{word} NN I-NP {tag}" for word, tag in pairs), ""]
    path.write_text("\r\n".join(lines), encoding="utf-8", newline="")


def write_words(path: Path, sentences: Sequence[Sentence]) -> None:
    _write_lines(path, [{"words": s.words, "tags": s.tags} for s in sentences])


def write_tokens(path: Path, sentences: Sequence[Sentence]) -> None:
    """As run_ner of transformers takes them."""
    _write_lines(path, [{"tokens": s.words, "ner_tags": s.tags} for s in sentences])


def write_texts(path: Path, sentences: Sequence[Sentence]) -> None:
    values = []
    for sentence in sentences:
        text, entities = text_and_entities(sentence)
        values.append({"text": text, "entities": entities})
    _write_lines(path, values)


def write_objects(path: Path, sentences: Sequence[Sentence]) -> None:
    """Entities as objects with the names of transformers, longest first, in a text with other white space."""
    values = []
    for sentence in sentences:
        text, entities = text_and_entities(sentence)
        items = [
            {"entity_group": kind, "start": s + 1, "end": e + 1, "score": 0.5} for s, e, kind in entities
        ]
        ordered = sorted(items, key=lambda item: item["start"] - item["end"])
        values.append({"text": f"\t{text.replace(' ', chr(10))} ", "entities": ordered})
    _write_lines(path, values)


WRITERS: dict[str, Callable[[Path, Sequence[Sentence]], None]] = {
    "uner": write_uner,
    "columns": write_columns,
    "conll2003": write_conll2003,
    "words": write_words,
    "tokens": write_tokens,
    "texts": write_texts,
    "objects": write_objects,
}


def _write_lines(path: Path, values: Sequence[object]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
