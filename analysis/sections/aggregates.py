"""F1 over several sets at once: macro-averages over sets and over languages, and micro-F1 pooled by language."""

from __future__ import annotations

from collections.abc import Sequence

from ..load.collect import Collection, language
from ..run_refs import distinct, runs_of
from ..stats.comparison import Group, groups
from ..stats.derived_sets import with_pooled, with_type
from ..stats.significance import Estimate, Scores, average
from ..tables import RUNS, Cell, Column, Table
from .base import ReportData, Section, finetuning_needed
from .claims import set_groups

DEFINITION = (
    "Aggregates: macro over sets: the mean of the F1 of all sets of a group. Macro over languages: the mean over languages of the mean over the "
    "sets of each. Pooled: the micro-F1 of the summed span counts of all sets of a language, in which large sets weigh more. Runs that were not "
    "scored on all of the sets are left out, and so are sets without gold spans."
)


def section(data: ReportData) -> Section:
    tables = [aggregates_table(data), type_intervals_table(data)]
    return Section("aggregates", "Aggregates", finetuning_needed(data), tables=tables)


def aggregates_table(data: ReportData) -> Table:
    """One row for each system, group of sets and kind of aggregate, with its interval."""
    columns = [*map(Column, (*Group.HEADS, "group", "aggregate", "sets", "F1"))]
    columns += [Column("95 % CI", interval=True), RUNS]
    groups_of_sets = {
        title: [name for name in names if _has_spans(data.collection, name)]
        for title, names in set_groups(data.collection).items()
    }
    rows: list[list[Cell]] = []
    for group in groups(data.collection):
        for title, names in groups_of_sets.items():
            complete = group.scored_on(*names)
            if not names or not complete.runs:
                continue
            for kind, chosen, estimate in aggregates(complete, names, data.scores):
                cells: list[Cell] = [*complete.cells, title, kind, ", ".join(chosen), estimate.value]
                rows.append([*cells, estimate.interval, runs_of(complete.runs)])
    title = "Macro-averages and pooled micro-F1, with 95 % CI"
    table = Table("aggregates", title, columns, rows, on_page=False)
    return table.without_constant(*Group.OPTIONAL)


def _has_spans(collection: Collection, name: str) -> bool:
    return any(gold.gold_spans for gold in collection.gold_sets(name))


def aggregates(
    group: Group, names: Sequence[str], scores: Scores
) -> list[tuple[str, Sequence[str], Estimate]]:
    """Compute the aggregates of runs that were all scored on these sets: (kind, sets, estimate)."""
    by_set = {name: scores.mean(group.runs, name) for name in names}
    languages = {
        code: [name for name in names if language(name) == code] for code in distinct(map(language, names))
    }
    found: list[tuple[str, Sequence[str], Estimate]] = [
        ("macro over sets", names, average(by_set.values())),
        (
            "macro over languages",
            names,
            average(average(by_set[name] for name in chosen) for chosen in languages.values()),
        ),
    ]
    for code, chosen in languages.items():
        label = f"{code} pooled"
        runs = [with_pooled(run, chosen, label) for run in group.runs]
        found.append((f"pooled: {code}", chosen, scores.mean(runs, label)))
    return found


def type_intervals_table(data: ReportData) -> Table:
    """F1 of each entity type on each target set, with its interval."""
    columns = [*map(Column, (*Group.HEADS, "set", "type", "gold spans", "F1"))]
    columns += [Column("95 % CI", interval=True), RUNS]
    rows: list[list[Cell]] = []
    for whole in groups(data.collection):
        for name in data.collection.target_sets():
            group = whole.scored_on(name)
            scored = group.runs
            types = distinct(kind for run in scored for kind in run.sets[name].type_counts)
            for kind in sorted(types):
                label = f"{name} {kind}"
                runs = [with_type(run, name, kind) for run in scored]
                if spans := runs[0].sets[label].gold.gold_spans:
                    estimate = data.scores.mean(runs, label)
                    cells: list[Cell] = [*group.cells, name, kind, spans, estimate.value]
                    rows.append([*cells, estimate.interval, runs_of(scored)])
    title = "F1 by entity type on the target sets, with 95 % CI"
    table = Table("f1_type_intervals", title, columns, rows, on_page=False)
    return table.without_constant(*Group.OPTIONAL)
