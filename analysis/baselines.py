"""Every tuned model against every baseline, on the target sets."""

from __future__ import annotations

from pathlib import Path

from analysis.collect import Collection
from analysis.comparison import DIFFERENCE_COLUMNS, Group, difference_cells, groups
from analysis.provenance import runs_of
from analysis.significance import Scores, comparable
from analysis.study import Section, Study
from analysis.tables import RUNS, Cell, Column, Table
from metapt.ner.baselines import BASELINES

MOST_ON_PAGE = 60

DEFINITION = (
    "Baselines, scored like a model: "
    + "; ".join(f"{name}: {baseline.meaning}" for name, baseline in BASELINES.items())
    + ". A model is compared with a baseline that learns only where both learnt from the same source. Differences are model "
    "minus baseline, each seed of the model against the same run of the baseline."
)


def section(study: Study) -> Section:
    table = baselines_table(study.collection, study.scores)
    text = (
        []
        if table.rows
        else ["Needed: runs of baselines (grid.baselines) beside tuned models, on the same sets."]
    )
    return Section("baselines", "Baselines", text, tables=[table])


def baselines_table(collection: Collection, scores: Scores) -> Table:
    """One row for each model, baseline and target set; only in files if there are too many for the page."""
    found = groups(collection)
    models, rivals = ([group for group in found if group.is_baseline == side] for side in (False, True))
    columns = [
        *(Column(head) for head in Group.HEADS),
        Column("baseline"),
        Column("set"),
        Column("gold spans"),
    ]
    columns += [Column("model F1"), Column("baseline F1"), *DIFFERENCE_COLUMNS, RUNS]
    rows: list[list[Cell]] = []
    tinted = set()
    # Runs that stand under several variants are compared once.
    told: dict[tuple[Path | str, ...], tuple[bool, list[Cell]]] = {}
    for model in models:
        for rival in rivals:
            if rival.setting.source not in ("", model.setting.source):
                continue
            for name in collection.target_sets():
                if same := comparable([(run, rival.runs[0]) for run in model.runs], name):
                    key: tuple[Path | str, ...] = (name, rival.runs[0].path, *(run.path for run, _ in same))
                    if key not in told:
                        both = scores.difference(same, name)
                        values = [both.first.value, both.second.value, *difference_cells(both)]
                        told[key] = (both.estimate.excludes_zero, values)
                    excludes_zero, values = told[key]
                    if excludes_zero:
                        tinted.add(len(rows))
                    cells: list[Cell] = [
                        *model.cells,
                        rival.setting.scale,
                        name,
                        same[0][0].sets[name].gold.gold_spans,
                    ]
                    rows.append([*cells, *values, runs_of(*same)])
    title = "Models minus baselines on the target sets"
    note = "Tinted rows: the interval leaves out 0."
    table = Table("baselines", title, columns, rows, note, tinted, on_page=len(rows) <= MOST_ON_PAGE)
    return table.without_constant(*Group.OPTIONAL)
