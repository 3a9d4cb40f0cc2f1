"""The labelled data: spans by type, resampling units, out-of-vocabulary rates, licences, sentences shared with sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from metapt.data.iob2 import entity_types, read_iob2, spans
from metapt.data.labelled_folders import uner_files
from metapt.data.licences import SetFacts, set_facts
from metapt.data.statistics import LabelledSentence, labelled_statistics

from ..load.collect import Collection
from ..load.records import FinetuneRun
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
            "(--uner DIR, Universal NER). Predictions contain the evaluated sentences only."
        ]
    tables = [_counts_table(data, training), _oov_table(data, training)]
    tables += [licences_table(data.collection), shared_table(data.collection)]
    return Section("data", "Data", text, tables=tables)


def _training_splits(folder: Path, names: Sequence[str]) -> dict[str, list[LabelledSentence]]:
    files, _ = uner_files(folder)
    return {
        name: [(sentence.words, spans(sentence.tags)) for sentence in read_iob2(files[name, "train"])]
        for name in names
        if (name, "train") in files
    }


def _counts_table(data: ReportData, training: Mapping[str, Sequence[LabelledSentence]]) -> Table:
    columns = [Column("set"), Column("split"), Column("sentences"), Column("words"), Column("spans")]
    golds = [(name, gold) for name in data.collection.set_names() for gold in data.collection.gold_sets(name)]
    evaluated = [list(zip(gold.words, gold.spans, strict=True)) for _, gold in golds]
    types = entity_types(
        kind for part in (*evaluated, *training.values()) for _, spans in part for kind, _, _ in spans
    )
    for entity_type in types:
        columns += [Column(entity_type), Column(f"{entity_type} single-word", percent=True, digits=1)]
    columns += [Column("unit"), Column("units")]
    rows: list[list[Cell]] = []
    for (name, gold), sentences in zip(golds, evaluated, strict=True):
        counts = _counts(name, "evaluated", sentences, types)
        rows.append([*counts, gold.unit, gold.unit_count, runs_of(data.collection.run_with(gold))])
    rows += [
        [*_counts(name, "train", sentences, types), None, None, None] for name, sentences in training.items()
    ]
    note = (
        "Evaluated: from the predictions of the run in the row's details. Train: from the folder given by --uner. "
        "Unit: what is resampled and swapped as a whole, documents where the set marks texts and sentences elsewhere; "
        "units: their number."
    )
    return Table("data", "Labelled data", [*columns, RUNS], rows, note)


def _counts(name: str, split: str, sentences: Sequence[LabelledSentence], types: Sequence[str]) -> list[Cell]:
    statistics = labelled_statistics(sentences)
    by_type = statistics["spans"]
    cells: list[Cell] = [name, split, statistics["sentences"], statistics["words"], by_type["all"]["count"]]
    for kind in types:
        of_type = by_type.get(kind, {"count": 0, "single_word_fraction": None})
        cells += [of_type["count"], of_type["single_word_fraction"]]
    return cells


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


def licences_table(collection: Collection) -> Table:
    """The licence of every set that a run was fine-tuned or evaluated on."""
    runs: dict[tuple[str, SetFacts], dict[str, list[FinetuneRun]]] = {}
    for run in (*collection.finetuning, *collection.continued):
        result = run.result
        used = [("fine-tuning", result.sources, result.custom_sets)]
        used += [("fine-tuning", tuning.source_sets, tuning.custom_sets) for tuning in result.earlier_tunings]
        for use, names, custom_sets in (*used, ("evaluation", list(run.sets), result.custom_sets)):
            for name in names:
                uses = runs.setdefault((name, set_facts(name, custom_sets)), {})
                uses.setdefault(use, []).append(run)
    rows: list[list[Cell]] = []
    for (name, facts), uses in sorted(runs.items(), key=lambda item: item[0][0]):
        licence = facts.licence or "not recorded"
        non_commercial = facts.is_non_commercial if facts.licence else None
        row: list[Cell] = [
            name,
            ", ".join(sorted(uses, reverse=True)),
            facts.language or None,
            licence,
            non_commercial,
        ]
        rows.append([*row, runs_of(*uses.values())])
    columns = [*map(Column, ("set", "use", "language", "licence", "non-commercial only")), RUNS]
    note = "A set of data.corpora has the language and licence that its description states."
    return Table("licences", "Licences of the labelled data", columns, rows, note)


def shared_table(collection: Collection) -> Table:
    """The sentences of each evaluated set that also occur in the data that the run was fine-tuned on."""
    runs: dict[tuple[Cell, ...], list[FinetuneRun]] = {}
    for run in collection.finetuning:
        for name, evaluation in run.sets.items():
            total, (sentences, spans) = len(evaluation.gold.ids), _shared(run, name)
            if sentences != 0:
                fraction = None if sentences is None else sentences / total
                row = (run.setting.source, name, total, sentences, fraction, spans)
                runs.setdefault(row, []).append(run)
    rows: list[list[Cell]] = [[*row, runs_of(*sharing)] for row, sharing in runs.items()]
    rows.sort(key=lambda row: tuple(map(str, row[:2])))
    columns = [
        *map(Column, ("source", "set", "sentences", "shared")),
        Column("fraction", percent=True, digits=1),
    ]
    note = (
        "Shared: sentences of the set whose words, in any case, are also those of a sentence in the train or dev split of the "
        "source, and the gold spans in them; a dash where an earlier fine-tuning used data that were not available. Sources and "
        "sets that are not listed share none."
    )
    title = "Sentences that source and evaluated set share"
    return Table("shared_sentences", title, [*columns, Column("gold spans in them"), RUNS], rows, note)


def _shared(run: FinetuneRun, name: str) -> tuple[int | None, int | None]:
    """The sentences of a set that the run was fine-tuned on, and their gold spans; None if that could not be counted."""
    counts = run.result.shared_sentences
    if counts is None:
        return (None, None)
    shared = counts.get(name)
    return (shared.sentences, shared.gold_spans) if shared else (0, 0)
