"""Gold sentences, and what another program predicted for them, brought to the same words.

Words and texts are compared by their characters without white space (`metapt.data.char_spans`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from metapt.data.char_spans import (
    Adjustments,
    solid,
    solid_entities,
    solid_spans,
    split_words,
    tags_of_entities,
)
from metapt.data.columns import UNER_LAYOUT, UNER_TYPES
from metapt.data.iob2 import TYPES, Sentence, tag_problem, to_iob2, with_unique_ids
from metapt.data.json_labels import GOLD_TAGS, PREDICTED_TAGS
from metapt.data.labelled_files import FileSentence, LabelledFile, read_labelled_file
from metapt.errors import UserError

Renames = Mapping[str, str]
"""entity type of a file to the type that is scored, or to O; other types keep their name."""


@dataclass(frozen=True)
class Gold:
    """The gold sentences of a file.

    Attributes:
        sources: the same sentences as the file has them.
        types: entity types that predictions may have: TYPES, and those of the file.
    """

    file: LabelledFile
    sources: Sequence[FileSentence]
    sentences: Sequence[Sentence]
    types: frozenset[str]
    adjustments: Adjustments


@dataclass(frozen=True)
class Predictions:
    """The predicted tags of each gold sentence, which need not be valid IOB2."""

    file: LabelledFile
    tags: Sequence[tuple[str, ...]]
    adjustments: Adjustments


def read_gold(path: Path, columns: Sequence[str], renames: Renames, documents: str = "auto") -> Gold:
    """Read the gold sentences. Tags of any scheme become IOB2 (`to_iob2`); a text is split into words.

    A text is split by metapt/data/word_splitting.py, and also where a gold entity begins or ends.

    Args:
        columns: of a column file; empty: recognized.
        documents: the marks of documents in a column file, as the key `documents`.
    Raises:
        UserError: with file and line.
    """
    file = read_labelled_file(path, columns, GOLD_TAGS, documents)
    adjustments, types = Adjustments(), set(TYPES)
    renames = _file_renames(file, renames)
    sentences = []
    for source in file.sentences:
        if source.text is None:
            words = source.words
            _check_tags(source)
            tags = to_iob2(source.tags, renames)
        else:
            words = split_words(source.text, source.entities)
            entities = solid_entities(source.text, source.entities, renames)
            tags = tags_of_entities(entities, words, adjustments, source.where())
        types.update(tag[2:] for tag in tags if tag != "O")
        sentences.append(Sentence(source.id, words, tags, source.document))
    return Gold(file, file.sentences, with_unique_ids(sentences), frozenset(types), adjustments)


def read_predictions(path: Path, gold: Gold, columns: Sequence[str], renames: Renames) -> Predictions:
    """Read what a program predicted for the gold sentences, in their order.

    Tags of IOBES, BILOU and BMES become IOB2. Tags B and I stay as they are, since strict IOB2 and conlleval differ on
    an I-X that continues no X.

    Raises:
        UserError: with file and line: a sentence or a word differs from GOLD, or an entity type that GOLD does not have.
    """
    file = read_labelled_file(path, columns, PREDICTED_TAGS)
    renames = _file_renames(file, renames)
    for source in file.sentences:
        _check_tags(source)
    _check_types(file.sentences, gold.types, renames)
    adjustments, tags = Adjustments(), []
    is_iob2 = all(tag[0] in "OBI" for source in file.sentences for tag in source.tags)
    counts = (len(file.sentences), len(gold.sentences))
    triples = zip(file.sentences, gold.sources, gold.sentences, strict=False)
    for number, (source, origin, sentence) in enumerate(triples, 1):
        _check_words(source, origin, sentence, number, counts)
        if source.text is not None:
            entities = solid_entities(source.text, source.entities, renames)
            tags.append(tags_of_entities(entities, sentence.words, adjustments, source.where()))
            continue
        own = _renamed(source.tags, renames) if is_iob2 else to_iob2(source.tags, renames)
        if source.words != sentence.words:  # those of a gold text, which may be split in another way
            own = tags_of_entities(
                solid_spans(own, source.words), sentence.words, adjustments, source.where()
            )
        tags.append(own)
    _check_count(file, gold)
    return Predictions(file, tags, adjustments)


def _file_renames(file: LabelledFile, renames: Renames) -> Renames:
    """The renames of a file: those of Universal NER where it has its layout, which `renames` overrides."""
    return {**(UNER_TYPES if file.layout == UNER_LAYOUT else {}), **renames}


def _renamed(tags: Sequence[str], renames: Renames) -> tuple[str, ...]:
    """Rename the types of B and I tags. An I-X after another type that gets the same name becomes B-X."""
    renamed: list[str] = []
    for previous, tag in zip(("O", *tags), tags, strict=False):
        target = renames.get(tag[2:], tag[2:])
        if tag == "O" or target == "O":
            renamed.append("O")
            continue
        merges = tag[2:] != previous[2:] and bool(renamed) and renamed[-1][2:] == target
        renamed.append(f"{'B' if merges else tag[0]}-{target}")
    return tuple(renamed)


def _check_tags(source: FileSentence) -> None:
    """Check that each tag is O, or a prefix and a type."""
    for position, tag in enumerate(source.tags):
        if problem := tag_problem(tag):
            raise UserError(f"{source.where(position)}: {problem}")


def _check_types(sources: Iterable[FileSentence], types: frozenset[str], renames: Renames) -> None:
    """Check that GOLD has each entity type, or that it is renamed to such a type or to O."""
    unknown: dict[str, str] = {}
    for source in sources:
        kinds = [(tag[2:], position) for position, tag in enumerate(source.tags) if tag != "O"]
        for kind, position in [*kinds, *((kind, 0) for _, _, kind in source.entities)]:
            if renames.get(kind, kind) not in {*types, "O"}:
                unknown.setdefault(kind, source.where(position))
    if unknown:
        names = ", ".join(f"{kind} (first at {where})" for kind, where in unknown.items())
        example = ", ".join(f"{kind}: O" for kind in unknown)
        raise UserError(
            f"{next(iter(unknown.values()))}: GOLD has the entity types {', '.join(sorted(types))}, but not {names}. Rename "
            f"them to types of GOLD, or leave them out with O: 'types={{{example}}}'"
        )


def _check_words(
    source: FileSentence, gold: FileSentence, sentence: Sentence, number: int, counts: tuple[int, int]
) -> None:
    """Check that a sentence has the words of the gold sentence; where either is a text, its characters."""
    note = "" if counts[0] == counts[1] else f" ({counts[0]} sentences here, {counts[1]} in GOLD)"
    if source.text is None and gold.text is None:
        for position, (word, expected) in enumerate(zip(source.words, sentence.words, strict=False)):
            if word != expected:
                raise UserError(
                    f"{source.where(position)}: word {position + 1} of sentence {number} is {word!r}, but {expected!r} in "
                    f"{gold.where(position)}{note}"
                )
        if len(source.words) != len(sentence.words):
            length = min(len(source.words), len(sentence.words))
            raise UserError(
                f"{source.where(length)}: sentence {number} has {len(source.words)} words, but {len(sentence.words)} in "
                f"{gold.where(length)}{note}"
            )
        return
    own = solid(source.words if source.text is None else [source.text])
    expected = solid(sentence.words)
    if own != expected:
        position = next(
            (index for index, pair in enumerate(zip(own, expected, strict=False)) if pair[0] != pair[1]),
            min(len(own), len(expected)),
        )
        found, wanted = (text[position : position + 20] or "its end" for text in (own, expected))
        raise UserError(
            f"{source.where()}: the characters of sentence {number} differ from {gold.where()} after "
            f"{own[max(0, position - 20) : position]!r}: {found!r}, but {wanted!r} in GOLD{note}"
        )


def _check_count(file: LabelledFile, gold: Gold) -> None:
    found, expected = len(file.sentences), len(gold.sentences)
    if found < expected:
        last, missing = file.sentences[-1], gold.sources[found]
        raise UserError(
            f"{last.where(len(last.lines))}: ends after {found} of {expected} sentences; the next is at {missing.where()}"
        )
    if found > expected:
        raise UserError(
            f"{file.sentences[expected].where()}: sentence {expected + 1} of {found}, but {gold.file.path} has "
            f"{expected} sentences"
        )
