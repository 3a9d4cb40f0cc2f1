"""Baselines beside the last fine-tuned checkpoint of every model on the target sets, and the difference of each pair."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from metapt.baseline_names import BASELINE_NAMES

from ..load.collect import Collection
from ..run_refs import runs_of
from ..stats.comparison import DIFFERENCE_COLUMNS, Group, difference_cells, groups
from ..stats.significance import Scores, comparable
from ..tables import RUNS, Cell, Column, Table
from .base import ReportData, Section
from .set_columns import grouped_sets

DEFINITION = (
    "Baselines: rules and taggers without a language model, scored in the same way as models: "
    + "; ".join(f"{name}: {description}" for name, description in BASELINE_NAMES.items())
    + ". For each scale, variant, objective and tuning, the last fine-tuned checkpoint is compared with the baselines. A baseline that "
    "learns is compared only with models fine-tuned on the same source. Differences are model minus baseline; every seed of the "
    "model is paired with the same run of the baseline."
)


def section(data: ReportData) -> Section:
    table = baselines_table(data.collection, data.scores)
    needed = "Needed: runs of baselines (`grid.baselines`) and fine-tuned models, evaluated on the same target sets."
    tables = [systems_table(data.collection, data.scores), table] if table.rows else []
    return Section("baselines", "Baselines", [] if table.rows else [needed], tables=tables)


def systems_table(collection: Collection, scores: Scores) -> Table:
    """The F1 of every baseline and of every model on the target sets, mean over sources and seeds."""
    kinds = grouped_sets(collection)
    names = collection.target_sets()
    heads = [Column("system"), Column("variant"), Column("objective"), Column("tuning"), Column("sources")]
    columns = [
        Column(f"{name} ({collection.gold_sets(name)[0].gold_spans:,})", group=kinds[name]) for name in names
    ]
    baselines = [group for group in groups(collection) if group.is_baseline]
    by_system: dict[tuple[str, ...], list[Group]] = {}
    for group in (*baselines, *_final_models(collection)):
        by_system.setdefault(_system(group), []).append(group)
    rows: list[list[Cell]] = []
    shaded = set()
    for system, members in by_system.items():
        if members[0].is_baseline:
            shaded.add(len(rows))
        runs = [run for group in members for run in group.runs]
        sources = len({group.setting.source for group in members} - {""})
        rows.append(
            [*system, sources or None, *(_mean(members, name, scores) for name in names), runs_of(runs)]
        )
    note = "Shaded rows: baselines. Number of gold spans in brackets."
    title = "Micro-F1 of baselines and models on the target sets, mean over sources and seeds, last checkpoint of each model"
    table = Table("baselines_by_set", title, [*heads, *columns, RUNS], rows, note, shaded)
    return table.without_constant("variant").with_means()


def _mean(sources: Sequence[Group], name: str, scores: Scores) -> float | None:
    """The mean over sources of the mean F1 over seeds; None if a run was not scored on the set."""
    if any(name not in run.sets for group in sources for run in group.runs):
        return None
    return fmean(group.mean(lambda run: scores.value(run, name)) for group in sources)


def _final_models(collection: Collection) -> list[Group]:
    """The fine-tuned models of each system at its last checkpoint."""
    models = [group for group in groups(collection) if not group.is_baseline]
    last: dict[tuple[str, ...], int] = {}
    for group in models:
        last[_system(group)] = max(last.get(_system(group), 0), group.setting.step or 0)
    return [group for group in models if (group.setting.step or 0) == last[_system(group)]]


def _system(group: Group) -> tuple[str, ...]:
    return (group.setting.scale, group.setting.variant, group.objective, group.setting.tuning)


def baselines_table(collection: Collection, scores: Scores) -> Table:
    """One row for each model, baseline and target set."""
    columns = [*map(Column, Group.HEADS), Column("baseline"), Column("set"), Column("gold spans")]
    columns += [Column("model F1"), Column("baseline F1"), *DIFFERENCE_COLUMNS, RUNS]
    baselines = [group for group in groups(collection) if group.is_baseline]
    matched = [
        (model, baseline, name, pairs)
        for model in _final_models(collection)
        for baseline in baselines
        if baseline.setting.source in ("", model.setting.source)
        for name in collection.target_sets()
        if (pairs := comparable([(run, baseline.runs[0]) for run in model.runs], name))
    ]
    differences = [scores.difference(pairs, name) for _, _, name, pairs in matched]
    rows: list[list[Cell]] = []
    for (model, baseline, name, pairs), difference in zip(matched, differences, strict=True):
        gold_spans = pairs[0][0].sets[name].gold.gold_spans
        cells: list[Cell] = [*model.cells, baseline.setting.scale, name, gold_spans]
        cells += [difference.first.value, difference.second.value, *difference_cells(difference)]
        rows.append([*cells, runs_of(*pairs)])
    shaded = {index for index, difference in enumerate(differences) if difference.excludes_zero}
    title = "Model minus baseline on the target sets, last checkpoint of each model"
    note = "Shaded rows: the CI excludes 0."
    table = Table("baselines", title, columns, rows, note, shaded, on_page=False)
    return table.without_constant(*Group.OPTIONAL)
