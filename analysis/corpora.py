"""Statistics of the labelled data: spans by type, how many are a single word, and words that a source never had."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.records import Setting
from analysis.study import Section, Study
from analysis.tables import Cell, Column, Table
from metapt.data.iob2 import TYPES, read_iob2, spans
from metapt.ner.scoring import Span

DEFINITION = (
    "Data: single: the share of a type's gold spans that are one word. Out of vocabulary: the share of a set's words "
    "(tokens, in lower case) that do not occur in the training part of the source."
)
Sentences = Sequence[tuple[Sequence[str], Sequence[Span]]]


def section(study: Study) -> Section:
    collection = study.collection
    rows = [
        _row(name, "evaluated", list(zip(gold.words, gold.spans, strict=True)))
        for name in collection.set_names()
        for gold in collection.gold_sets(name)
    ]
    sources = {part for run in collection.finetuning for part in _parts(run.result, run.setting)}
    training = _training(study.uner, sorted(sources)) if study.uner else {}
    rows += [_row(name, "train", found) for name, found in training.items()]
    text = []
    if missing := sorted(sources - set(training)):
        text = [f"Predictions hold the evaluated sentences only. Statistics of the training parts of {', '.join(missing)}, and out-of-vocabulary rates, need their IOB2 files: --uner DIR, with DIR/SET/train.iob2."]  # fmt: skip
    columns = [Column("set"), Column("part"), Column("sentences"), Column("words"), Column("spans")]
    for kind in TYPES:
        columns += [Column(kind), Column(f"{kind} single", percent=True, digits=1)]
    tables = [Table("data", "Labelled data", columns, rows), _unknown_words(study, training)]
    return Section("data", "Data", text, tables=tables)


def _parts(result: Mapping[str, Any], setting: Setting) -> Iterable[str]:
    return result.get("source_sets", setting.source.split("+"))


def _training(folder: Path, names: Sequence[str]) -> dict[str, Sentences]:
    files = {name: folder / name / "train.iob2" for name in names}
    return {
        name: [(sentence.words, spans(sentence.tags)) for sentence in read_iob2(file)]
        for name, file in files.items()
        if file.is_file()
    }


def _row(name: str, part: str, sentences: Sentences) -> list[Cell]:
    found = [span for _, spans in sentences for span in spans]
    cells: list[Cell] = [name, part, len(sentences), sum(len(words) for words, _ in sentences), len(found)]
    for kind in TYPES:
        lengths = [end - start for kind_, start, end in found if kind_ == kind]
        cells += [len(lengths), lengths.count(1) / len(lengths) if lengths else None]
    return cells


def _unknown_words(study: Study, training: dict[str, Sentences]) -> Table:
    names = study.collection.set_names()
    columns = [Column("source"), *(Column(name, percent=True, digits=1) for name in names)]
    rows: list[list[Cell]] = []
    for source, sentences in training.items():
        known = {word.lower() for words, _ in sentences for word in words}
        cells: list[Cell] = [source]
        for name in names:
            words = [w.lower() for sentence in study.collection.gold_sets(name)[0].words for w in sentence]
            cells.append(sum(word not in known for word in words) / len(words) if words else None)
        rows.append(cells)
    return Table("unknown_words", "Words that the source's training part does not have", columns, rows)
