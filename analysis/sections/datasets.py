"""Statistics of the labelled data: spans by type, single-word spans, and out-of-vocabulary rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from metapt.data.iob2 import TYPES, read_iob2, spans
from metapt.data.statistics import LabelledSentence, labelled_statistics

from ..run_refs import runs_of
from ..tables import RUNS, Cell, Column, Table
from .base import ReportData, Section, finetuning_needed
from .set_columns import grouped_sets

DEFINITION = (
    "Data: the single-word rate is the fraction of a type's gold spans that are one word. The out-of-vocabulary (OOV) rate is the "
    "fraction of a set's words (tokens, lower-cased) that do not occur in the training split of the source."
)


def section(data: ReportData) -> Section:
    """Counts for the evaluated sets, and for the training splits of the sources if their files are available."""
    sources = {source for run in data.collection.finetuning for source in run.result.sources}
    training = _training_splits(data.uner, sorted(sources)) if data.uner else {}
    text = finetuning_needed(data)
    if missing := sorted(sources - set(training)):
        text = [
            f"Needed for statistics of the training splits of {', '.join(missing)} and for OOV rates: their IOB2 files "
            "(--uner DIR with DIR/SET/train.iob2). Predictions contain the evaluated sentences only."
        ]
    return Section("data", "Data", text, tables=[_counts_table(data, training), _oov_table(data, training)])


def _training_splits(folder: Path, names: Sequence[str]) -> dict[str, list[LabelledSentence]]:
    files = {name: folder / name / "train.iob2" for name in names}
    return {
        name: [(sentence.words, spans(sentence.tags)) for sentence in read_iob2(file)]
        for name, file in files.items()
        if file.is_file()
    }


def _counts_table(data: ReportData, training: Mapping[str, Sequence[LabelledSentence]]) -> Table:
    columns = [Column("set"), Column("split"), Column("sentences"), Column("words"), Column("spans")]
    for entity_type in TYPES:
        columns += [Column(entity_type), Column(f"{entity_type} single-word", percent=True, digits=1)]
    rows: list[list[Cell]] = []
    for name in data.collection.set_names():
        for gold in data.collection.gold_sets(name):
            sentences = list(zip(gold.words, gold.spans, strict=True))
            rows.append([*_counts(name, "evaluated", sentences), runs_of(data.collection.run_with(gold))])
    rows += [[*_counts(name, "train", sentences), None] for name, sentences in training.items()]
    note = "Evaluated: from the predictions of the run in the row's details. Train: from the folder given by --uner."
    return Table("data", "Labelled data", [*columns, RUNS], rows, note)


def _counts(name: str, split: str, sentences: Sequence[LabelledSentence]) -> list[Cell]:
    statistics = labelled_statistics(sentences)
    by_type = statistics["spans"]
    cells: list[Cell] = [name, split, statistics["sentences"], statistics["words"], by_type["all"]["count"]]
    return cells + [by_type[kind][field] for kind in TYPES for field in ("count", "single_word_fraction")]


def _oov_table(data: ReportData, training: Mapping[str, Sequence[LabelledSentence]]) -> Table:
    kinds = grouped_sets(data.collection)
    names = list(kinds)
    columns = [Column(name, percent=True, digits=1, group=kind) for name, kind in kinds.items()]
    golds = [data.collection.gold_sets(name)[0] for name in names]
    runs = runs_of(*(data.collection.run_with(gold) for gold in golds))
    rows: list[list[Cell]] = []
    for source, sentences in training.items():
        vocabulary = {word.lower() for words, _ in sentences for word in words}
        rates: list[Cell] = []
        for gold in golds:
            words = [word.lower() for sentence in gold.words for word in sentence]
            rates.append(sum(word not in vocabulary for word in words) / len(words) if words else None)
        rows.append([source, *rates, runs])
    title = "Out-of-vocabulary rate of each set for each source"
    note = "The sets are read from the predictions of the runs in a row's details."
    return Table("oov_rates", title, [Column("source"), *columns, RUNS], rows, note).with_means()
