"""F1 of every system on every set, with intervals and by entity type."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..load.collect import Collection
from ..load.records import FinetuneRun
from ..run_refs import runs_of
from ..stats.comparison import Group, groups
from ..stats.significance import Scores
from ..tables import RUNS, Cell, Column, Table
from .base import ReportData, Section, finetuning_needed
from .particle_recall import RULE_NAME, rule_f1
from .set_columns import grouped_sets

EMPTY = "A cell is empty if a run was not scored on the set."
DEFINITION = (
    "F1: micro-averaged over entity spans, strict IOB2: a span is correct only if both boundaries and the type are right. F1 is "
    "recomputed from the predictions and must agree with the value that the run recorded. Numbers in column heads are gold spans: "
    "in a set of 25 spans, one span changes recall by 4 points. Conlleval F1 is that of the script of the CoNLL shared tasks, in "
    "which an I-X that does not continue an X also starts a span. A row with several seeds shows their mean. SD over seeds: the "
    "sample standard deviation (n - 1)."
)


def section(data: ReportData) -> Section:
    tables = [
        f1_table(data.collection, data.scores),
        intervals_table(data.collection, data.scores),
    ]
    return Section("f1", "F1", finetuning_needed(data), tables=tables)


def types_section(data: ReportData) -> Section:
    return Section(
        "types", "F1 by entity type", finetuning_needed(data), tables=[types_table(data.collection)]
    )


def f1_table(collection: Collection, scores: Scores) -> Table:
    """Micro-F1 of each setting and objective (rows) on each set (columns).

    The rule baseline is the last row unless it is among the runs. Differences are in the tables of comparisons.
    """
    kinds = grouped_sets(collection)
    names = list(kinds)
    columns = [Column(_set_head(collection, name), group=kind) for name, kind in kinds.items()]
    rows: list[list[Cell]] = []
    for group in groups(collection):
        means = [_mean(group, name, scores.value) for name in names]
        rows.append([*group.cells, *means, runs_of(group.runs)])
    if rows and not any(run.setting.scale == "particle" for run in collection.finetuning if run.is_baseline):
        rows.append(_rule_row(collection, names))
    note = f"Number of gold spans in brackets. {EMPTY}"
    title = "Micro-F1 by system and evaluation set"
    table = Table("f1", title, [*map(Column, Group.HEADS), *columns, RUNS], rows, note)
    return table.without_constant(*Group.OPTIONAL).with_means()


def _rule_row(collection: Collection, names: Sequence[str]) -> list[Cell]:
    golds = [collection.gold_sets(name)[0] for name in names]
    runs = runs_of(*(collection.run_with(gold) for gold in golds))
    return [RULE_NAME, None, None, "", "", "", None, *map(rule_f1, golds), runs]


def intervals_table(collection: Collection, scores: Scores) -> Table:
    """Precision, recall, and F1 with its CI and its spread over seeds; one row for each group and set."""
    heads = ("sentences", "gold spans", "precision", "recall", "F1")
    columns = [Column(head) for head in (*Group.HEADS, "set", *heads)]
    columns += [Column("95 % CI", interval=True), Column("SD over seeds"), Column("conlleval F1"), RUNS]
    scored = [
        (group, name)
        for whole in groups(collection)
        for name in collection.set_names()
        if (group := whole.scored_on(name)).runs
    ]
    means = [scores.mean(group.runs, name) for group, name in scored]
    rows: list[list[Cell]] = []
    for (group, name), estimate in zip(scored, means, strict=True):
        gold = group.runs[0].sets[name].gold
        values = list(estimate.by_seed.values())
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        cells: list[Cell] = [*group.cells, name, len(gold.ids), gold.gold_spans]
        cells += [_mean(group, name, _precision), _mean(group, name, _recall), estimate.value]
        cells += [estimate.interval, deviation, _mean(group, name, _conlleval)]
        rows.append([*cells, runs_of(group.runs)])
    return Table(
        "f1_intervals", "Precision, recall and F1 with 95 % CI, by set", columns, rows, on_page=False
    )


def types_table(collection: Collection) -> Table:
    """F1 of each entity type on each set; types without a gold span in a set are omitted."""
    columns = [*map(Column, Group.HEADS)]
    pairs = []
    for name, kind in grouped_sets(collection).items():
        spans = [span for sentence in collection.gold_sets(name)[0].spans for span in sentence]
        scored = (run.sets[name] for run in collection.finetuning if name in run.sets)
        for entity_type in sorted(
            {entity_type for evaluation in scored for entity_type in evaluation.per_type}
        ):
            if gold := sum(span[0] == entity_type for span in spans):
                pairs.append((name, entity_type))
                columns.append(Column(f"{name} {entity_type} ({gold})", group=kind))
    rows: list[list[Cell]] = [
        [
            *group.cells,
            *(_mean(group, name, _type_f1(entity_type)) for name, entity_type in pairs),
            runs_of(group.runs),
        ]
        for group in groups(collection)
    ]
    note = f"Number of gold spans of the type in brackets. {EMPTY}"
    table = Table("f1_types", "F1 by entity type", [*columns, RUNS], rows, note)
    return table.without_constant(*Group.OPTIONAL)


def _set_head(collection: Collection, name: str) -> str:
    sizes = sorted({gold.gold_spans for gold in collection.gold_sets(name)})
    return f"{name} ({', '.join(map(str, sizes))})"


def _mean(group: Group, name: str, value: Callable[[FinetuneRun, str], float]) -> float | None:
    """The mean over seeds; None if a run was not scored on the set."""
    if len(group.scored_on(name).runs) < len(group.runs):
        return None
    return group.mean(lambda run: value(run, name))


def _precision(run: FinetuneRun, name: str) -> float:
    correct, predicted, _ = run.sets[name].totals
    return correct / predicted if predicted else 0.0


def _recall(run: FinetuneRun, name: str) -> float:
    correct, _, gold = run.sets[name].totals
    return correct / gold if gold else float("nan")


def _conlleval(run: FinetuneRun, name: str) -> float:
    return run.sets[name].conlleval_f1


def _type_f1(entity_type: str) -> Callable[[FinetuneRun, str], float]:
    return lambda run, name: run.sets[name].per_type.get(entity_type, 0.0)
