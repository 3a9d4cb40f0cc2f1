"""The last tuned checkpoint of every model against every baseline, on the target sets."""

from __future__ import annotations

from metapt.evaluation.baselines import BASELINES

from ..load.collect import Collection
from ..stats.comparison import DIFFERENCE_COLUMNS, Group, difference_cells, groups
from ..stats.run_refs import runs_of
from ..stats.significance import Scores, comparable
from ..tables import RUNS, Cell, Column, Table
from .base import Section, Study

MOST_ON_PAGE = 60

DEFINITION = (
    "Baselines, scored like a model: "
    + "; ".join(f"{name}: {baseline.meaning}" for name, baseline in BASELINES.items())
    + ". Of each scale, variant and objective the last checkpoint that was tuned is compared, with a baseline that learns only "
    "where both learnt from the same source. Differences are model minus baseline, each seed of the model against the same run of the baseline."
)


def section(study: Study) -> Section:
    table = baselines_table(study.collection, study.scores)
    text = (
        []
        if table.rows
        else ["Needed: runs of baselines (grid.baselines) beside tuned models, on the same sets."]
    )
    return Section("baselines", "Baselines", text, tables=[table])


def _models(collection: Collection) -> list[Group]:
    """The tuned models, of each scale, variant and objective at its last checkpoint."""
    models = [group for group in groups(collection) if not group.is_baseline]
    last: dict[tuple[str, str, str], int] = {}
    for group in models:
        model = _model(group)
        last[model] = max(last.get(model, 0), group.setting.step or 0)
    return [group for group in models if (group.setting.step or 0) == last[_model(group)]]


def _model(group: Group) -> tuple[str, str, str]:
    return (group.setting.scale, group.setting.variant, group.objective)


def baselines_table(collection: Collection, scores: Scores) -> Table:
    """One row for each model, baseline and target set; only in files if there are too many for the page."""
    columns = [*(Column(head) for head in Group.HEADS), Column("baseline"), Column("set"), Column("gold spans")]  # fmt: skip
    columns += [Column("model F1"), Column("baseline F1"), *DIFFERENCE_COLUMNS, RUNS]
    rivals = [group for group in groups(collection) if group.is_baseline]
    found = [
        (model, rival, name, same)
        for model in _models(collection)
        for rival in rivals
        if rival.setting.source in ("", model.setting.source)
        for name in collection.target_sets()
        if (same := comparable([(run, rival.runs[0]) for run in model.runs], name))
    ]
    differences = scores.differences([(same, name) for _, _, name, same in found])
    rows: list[list[Cell]] = []
    for (model, rival, name, same), both in zip(found, differences, strict=True):
        cells: list[Cell] = [*model.cells, rival.setting.scale, name, same[0][0].sets[name].gold.gold_spans]
        cells += [both.first.value, both.second.value, *difference_cells(both)]
        rows.append([*cells, runs_of(*same)])
    tinted = {index for index, both in enumerate(differences) if both.told.excludes_zero}
    title = "Models minus baselines on the target sets, at the last checkpoint of each"
    note = "Tinted rows: the interval leaves out 0."
    table = Table("baselines", title, columns, rows, note, tinted, on_page=len(rows) <= MOST_ON_PAGE)
    return table.without_constant(*Group.OPTIONAL)
