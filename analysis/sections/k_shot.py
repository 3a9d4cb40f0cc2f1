"""k-shot learning: how quickly taggers adapt to a target language when they are given a few of its sentences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..figures import shot_curves
from ..run_refs import counted, distinct, runs_of
from ..stats.budgets import UPDATES
from ..stats.comparison import DIFFERENCE_COLUMNS, difference_cells, setting_cells
from ..stats.shots import (
    Curve,
    CurveDifference,
    MeanCurveDifference,
    Task,
    curve_differences,
    curves,
    mean_differences,
    samples,
)
from ..stats.significance import Difference
from ..tables import RUNS, Cell, Column, Table, enumerated
from .base import ReportData, Section, Views

SETTING = (
    "scale",
    "variant",
    "step",
    "tuning",
    "source",
    "target",
    "unit of k",
    "updates",
    "settings",
    "set",
)
OPTIONAL = ("variant", "step", "unit of k", "updates", "settings")
POINT = ("k", "seeds", "first", "second")
AREA = "area"
NOTE = "The same seeds and samples on both sides. Shaded rows: the area, the mean F1 over the k above 0."
NO_INTERVAL = (float("nan"), float("nan"))
NEEDED = (
    "Needed: taggers that were trained further on samples of a target language (`grid.shots` and `grid.shot_targets`), and "
    "the taggers themselves."
)


def section(views: Views) -> Section:
    """The curves of all systems, and the differences of all contrasts at matched updates."""
    data = views.first
    found = curves(data.collection, data.scores)
    if not found:
        return Section("k_shot", "k-shot learning", [NEEDED])
    differences = {
        str(one.contrast): curve_differences(one.collection, one.pairs, one.scores)
        for one in views.at(UPDATES)
    }
    tables = [
        means_table(differences),
        areas_table(found),
        differences_table(differences),
        points_table(found),
    ]
    remarks = [*_left_out(data, found), *_not_compared(views, found, differences.values())]
    return Section("k_shot", "k-shot learning", remarks, shot_curves.k_shot(found), tables)


def _not_compared(
    views: Views, found: Sequence[Curve], differences: Iterable[Sequence[CurveDifference]]
) -> list[str]:
    """The runs of curves of which a pair of taggers is compared, but not they."""
    compared = {run.path for of_contrast in differences for one in of_contrast for run in one.all_runs}
    paired = {
        run.path
        for one in views.at(UPDATES)
        for pairs in one.pairs.values()
        for pair in pairs
        for run in pair
    }
    shots = {
        run.path
        for curve in found
        for pairs in curve.shots.values()
        for run, tagger in pairs
        if tagger.path in paired
    }
    if not (others := shots - compared):
        return []
    return [
        f"{counted(len(others), 'run')} compared with nothing: the other tagger was not trained further on the same sample "
        "with the same settings and seed."
    ]


def _left_out(data: ReportData, found: Sequence[Curve]) -> list[str]:
    """What is left out of the curves."""
    remarks = []
    if left_out := sum({(one.objective, one.setting, one.task): one.left_out for one in found}.values()):
        remarks.append(
            f"{counted(left_out, 'run')} left out: no run of the same tagger and subset seed is finished at every other k."
        )
    if others := samples(data.collection)[1]:
        remarks.append(
            f"{counted(others, 'continued fine-tuning run')} left out: trained on no sample, or the tagger is not among the runs."
        )
    return remarks


def points_table(found: Sequence[Curve]) -> Table:
    """F1 and the gain over k = 0; one row for each curve and k."""
    heads = (*SETTING, "objective", "k", "seeds", "F1")
    columns = [*map(Column, heads), Column("95 % CI", interval=True), Column("gain", signed=True)]
    columns += [Column("95 % CI of the gain", signed=True, interval=True), RUNS]
    rows: list[list[Cell]] = []
    for curve in found:
        for k, point in curve.points.items():
            cells: list[Cell] = [*_setting(curve), k, point.seeds, point.value, point.interval]
            gain = curve.gain(k) if k else None
            cells += [gain.value, gain.interval] if gain else [None, NO_INTERVAL]
            rows.append([*cells, runs_of(curve.runs[k])])
    title = "F1 on the target language at each k"
    note = "k = 0: the tagger before, zero-shot. Gain: F1 minus that of the same taggers at k = 0."
    return Table("k_shot", title, columns, rows, note, on_page=False).without_constant(*OPTIONAL)


def areas_table(found: Sequence[Curve]) -> Table:
    """The zero-shot F1 and the area under each curve."""
    heads = (*SETTING, "gold spans", "objective", "k", "seeds", "F1 at k = 0")
    columns = [*map(Column, heads), Column("95 % CI at k = 0", interval=True)]
    columns += [Column("area"), Column("95 % CI of the area", interval=True), RUNS]
    rows: list[list[Cell]] = []
    for curve in found:
        zero, area = curve.points[0], curve.area
        sizes = ", ".join(str(k) for k in curve.points if k)
        *setting, objective = _setting(curve)
        cells: list[Cell] = [*setting, curve.gold_spans, objective, sizes, area.seeds]
        cells += [zero.value, zero.interval]
        rows.append([*cells, area.value, area.interval, curve.all_runs])
    title = "Area under the curve of F1 against k"
    note = "Area: the mean F1 over the k above 0."
    return Table("k_shot_area", title, columns, rows, note).without_constant(*OPTIONAL)


def means_table(found: Mapping[str, Sequence[CurveDifference]]) -> Table:
    """The mean differences over sources and targets, for each contrast."""
    heads = (
        "comparison",
        "scale",
        "variant",
        "step",
        "tuning",
        "unit of k",
        "updates",
        "settings",
        "sources",
        "targets",
    )
    columns = [*map(Column, (*heads, *POINT)), *DIFFERENCE_COLUMNS, RUNS]
    rows: list[list[Cell]] = []
    for contrast, differences in found.items():
        for mean in mean_differences(differences):
            setting, task = mean.curves[0].setting, mean.curves[0].task
            sources = enumerated(distinct(curve.setting.source for curve in mean.curves))
            targets = enumerated(distinct(curve.task.target for curve in mean.curves))
            cells: list[Cell] = [contrast, *setting_cells(setting)[:-1], *task[1:]]
            rows += [[*cells, sources, targets, *point, mean.all_runs] for point in _points(mean)]
    title = "Differences at each k, and in the area under the curve: means over sources and targets"
    return Table("k_shot_means", title, columns, rows, NOTE, _areas(columns, rows)).without_constant(
        *OPTIONAL
    )


def differences_table(found: Mapping[str, Sequence[CurveDifference]]) -> Table:
    """The difference of two arms at each k, and of the areas under their curves, for each contrast, source and target."""
    columns = [*map(Column, ("comparison", *SETTING, *POINT)), *DIFFERENCE_COLUMNS, RUNS]
    rows: list[list[Cell]] = []
    for contrast, one in ((name, one) for name, differences in found.items() for one in differences):
        cells: list[Cell] = [contrast, *setting_cells(one.setting), *_task(one.task), one.set_name]
        rows += [[*cells, *point, one.all_runs] for point in _points(one)]
    title = "The same differences by source and target"
    table = Table("k_shot_differences", title, columns, rows, NOTE, _areas(columns, rows), on_page=False)
    return table.without_constant(*OPTIONAL)


def _points(curve: CurveDifference | MeanCurveDifference) -> Iterator[list[Cell]]:
    """The cells under POINT and DIFFERENCE_COLUMNS, for each k and for the area."""
    points: dict[str, Difference] = {str(k): point for k, point in curve.points.items()}
    for k, point in (points | {AREA: curve.area}).items():
        yield [k, point.seeds, point.first.value, point.second.value, *difference_cells(point)]


def _areas(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> set[int]:
    """The indices of the rows of an area."""
    k = [column.head for column in columns].index("k")
    return {index for index, row in enumerate(rows) if row[k] == AREA}


def _setting(curve: Curve) -> list[Cell]:
    """The cells under SETTING, and the objective."""
    return [*setting_cells(curve.setting), *_task(curve.task), curve.set_name, curve.objective]


def _task(task: Task) -> list[Cell]:
    return [*task]
