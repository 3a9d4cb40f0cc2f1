"""The last fine-tuned checkpoint of every model against every baseline on the target sets."""

from __future__ import annotations

from metapt.baseline_names import BASELINE_NAMES

from ..load.collect import Collection
from ..run_refs import runs_of
from ..stats.comparison import DIFFERENCE_COLUMNS, Group, difference_cells, groups
from ..stats.significance import Scores, comparable
from ..tables import RUNS, Cell, Column, Table
from .base import ReportData, Section

MAX_PAGE_ROWS = 60

DEFINITION = (
    "Baselines: rules and taggers without a language model, scored in the same way as models: "
    + "; ".join(f"{name}: {description}" for name, description in BASELINE_NAMES.items())
    + ". For each scale, variant and objective, the last fine-tuned checkpoint is compared with the baselines. A baseline that "
    "learns is compared only with models fine-tuned on the same source. Differences are model minus baseline; every seed of the "
    "model is paired with the same run of the baseline."
)


def section(data: ReportData) -> Section:
    table = baselines_table(data.collection, data.scores)
    needed = "Needed: runs of baselines (`grid.baselines`) and fine-tuned models, evaluated on the same target sets."
    return Section("baselines", "Baselines", [] if table.rows else [needed], tables=[table])


def _final_models(collection: Collection) -> list[Group]:
    """The fine-tuned models of each scale, variant and objective at its last checkpoint."""
    models = [group for group in groups(collection) if not group.is_baseline]
    last: dict[tuple[str, str, str], int] = {}
    for group in models:
        model = _model(group)
        last[model] = max(last.get(model, 0), group.setting.step or 0)
    return [group for group in models if (group.setting.step or 0) == last[_model(group)]]


def _model(group: Group) -> tuple[str, str, str]:
    return (group.setting.scale, group.setting.variant, group.objective)


def baselines_table(collection: Collection, scores: Scores) -> Table:
    """One row for each model, baseline and target set; written to files only if it is too long for the page."""
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
    shaded = {index for index, difference in enumerate(differences) if difference.summary.excludes_zero}
    title = "Model minus baseline on the target sets, last checkpoint of each model"
    note = "Shaded rows: the CI excludes 0."
    table = Table("baselines", title, columns, rows, note, shaded, on_page=len(rows) <= MAX_PAGE_ROWS)
    return table.without_constant(*Group.OPTIONAL)
