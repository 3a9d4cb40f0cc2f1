"""Statistics of the labelled data: spans by type, how many are a single word, and words that a source never had."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metapt.data.iob2 import TYPES, read_iob2, spans
from metapt.data.statistics import Labelled, labelled_statistics

from ..stats.run_refs import runs_of
from ..tables import RUNS, Cell, Column, Table
from .base import Section, Study, untuned

DEFINITION = (
    "Data: single: the share of a type's gold spans that are one word. Out of vocabulary: the share of a set's words "
    "(tokens, in lower case) that do not occur in the training part of the source."
)


def section(study: Study) -> Section:
    """Counts of the evaluated sets, and of the sources where their files are at hand."""
    collection = study.collection
    rows = [
        [
            *_row(name, "evaluated", list(zip(gold.words, gold.spans, strict=True))),
            runs_of(collection.holder(gold)),
        ]
        for name in collection.set_names()
        for gold in collection.gold_sets(name)
    ]
    sources = {part for run in collection.finetuning for part in run.result.sources}
    training = _training(study.uner, sorted(sources)) if study.uner else {}
    rows += [[*_row(name, "train", found), None] for name, found in training.items()]
    text = untuned(study)
    if missing := sorted(sources - set(training)):
        text = [f"Predictions hold the evaluated sentences only. Statistics of the training parts of {', '.join(missing)}, and out-of-vocabulary rates, need their IOB2 files: --uner DIR, with DIR/SET/train.iob2."]  # fmt: skip
    columns = [Column("set"), Column("part"), Column("sentences"), Column("words"), Column("spans")]
    for kind in TYPES:
        columns += [Column(kind), Column(f"{kind} single", percent=True, digits=1)]
    note = "Evaluated: read from the predictions of the run that is named; train: from the folder that --uner names."
    tables = [Table("data", "Labelled data", [*columns, RUNS], rows, note), _unknown_words(study, training)]
    return Section("data", "Data", text, tables=tables)


def _training(folder: Path, names: Sequence[str]) -> dict[str, list[Labelled]]:
    files = {name: folder / name / "train.iob2" for name in names}
    return {
        name: [(sentence.words, spans(sentence.tags)) for sentence in read_iob2(file)]
        for name, file in files.items()
        if file.is_file()
    }


def _row(name: str, part: str, sentences: Sequence[Labelled]) -> list[Cell]:
    figures = labelled_statistics(sentences)
    of = figures["spans"]
    cells: list[Cell] = [name, part, figures["sentences"], figures["words"], of["all"]["count"]]
    return cells + [of[kind][figure] for kind in TYPES for figure in ("count", "single_word_fraction")]


def _unknown_words(study: Study, training: dict[str, list[Labelled]]) -> Table:
    names = study.collection.set_names()
    columns = [Column("source"), *(Column(name, percent=True, digits=1) for name in names), RUNS]
    golds = [study.collection.gold_sets(name)[0] for name in names]
    holders = runs_of(*(study.collection.holder(gold) for gold in golds))
    rows: list[list[Cell]] = []
    for source, sentences in training.items():
        known = {word.lower() for words, _ in sentences for word in words}
        cells: list[Cell] = [source]
        for gold in golds:
            words = [word.lower() for sentence in gold.words for word in sentence]
            cells.append(sum(word not in known for word in words) / len(words) if words else None)
        rows.append([*cells, holders])
    title = "Words that the source's training part does not have"
    note = "Share of a set's words; the sets are read from the predictions of the runs that are named."
    return Table("unknown_words", title, columns, rows, note)
