"""Fine-tuning sources: heat maps of F1 by source and evaluation set, for both arms of a contrast and for their difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure as Canvas

from ..figures import scaling
from ..figures.style import DIVERGING, SEQUENTIAL, Figure, drawing, figure, heat_map, slug, title
from ..run_refs import counted, distinct, runs_of
from ..stats.comparison import (
    Comparison,
    arms,
    averages,
    averages_table,
    balanced,
    difference_name,
    last_steps,
    pair_count,
    unbalanced,
)
from ..tables import Column
from .base import ReportData, Section

DIFFERENCE = "difference"
PANELS: dict[str, Callable[[Comparison], float]] = {
    "second": lambda item: item.second.value,
    "first": lambda item: item.first.value,
    DIFFERENCE: lambda item: item.difference.value,
}
"""the panels of a figure: both arms and their difference"""


def section(data: ReportData) -> Section:
    comparisons = balanced(data.final_comparisons, "source")
    means = averages(comparisons, lambda setting: (setting.scale, setting.variant, setting.source))
    heads = [Column("scale"), Column("variant"), Column("source")]
    table = averages_table("by_source", "Mean F1 on the target sets by fine-tuning source", heads, means)
    figures = heat_maps(last_steps(data.comparisons)) + scaling.by_source(data.collection, comparisons)
    text = unbalanced(data.final_comparisons, "source")
    if len({item.setting.source for item in data.final_comparisons}) < 2:
        text.append("Needed to compare sources: pairs of runs from at least two sources.")
    return Section("source", "Fine-tuning source", text, figures, [table])


def heat_maps(comparisons: Sequence[Comparison]) -> list[Figure]:
    """Plot F1 by source and set, mean over tunings and seeds; one figure for each scale and variant."""
    figures = []
    for scale, variant in distinct((item.setting.scale, item.setting.variant) for item in comparisons):
        chosen = [
            item for item in comparisons if (item.setting.scale, item.setting.variant) == (scale, variant)
        ]
        sources = distinct(item.setting.source for item in chosen)
        sets = distinct(item.set_name for item in chosen)
        tunings = distinct(item.setting.tuning for item in chosen)
        grids = {panel: _grid(chosen, sources, sets, panel, len(tunings)) for panel in PANELS}
        if np.isnan(grids["second"]).all():
            continue
        runs = runs_of(*(item.runs for item in chosen))
        caption = (
            f"Micro-F1 in points by fine-tuning source (rows) and evaluation set (columns), {title(scale, variant)}. Mean over "
            f"{' and '.join(tunings)}, {counted(pair_count(chosen), 'pair')} of runs. A cell is empty if a tuning or the set is "
            "missing. No intervals are shown; a single cell is based on few spans (see the table of differences)."
        )
        name = slug("source_heat", scale, variant)
        heads = dict(zip(PANELS, (*reversed(arms(chosen)), difference_name(chosen)), strict=True))
        figures.append(figure(name, caption, runs, draw_heat_maps, grids, heads, sources, sets))
    return figures


def draw_heat_maps(
    grids: Mapping[str, np.ndarray],
    heads: Mapping[str, str],
    sources: Sequence[str],
    sets: Sequence[str],
) -> Canvas:
    """A panel for each arm, with common colours, and one for the difference."""
    high = max(_peak(grid) for name, grid in grids.items() if name != DIFFERENCE)
    with drawing(1, len(grids), 2.0 + 0.3 * len(sources), sharey=True) as (canvas, axes):
        for axis, (name, grid) in zip(axes[0], grids.items(), strict=True):
            if name == DIFFERENCE:
                limits = (-100 * _peak(grid), 100 * _peak(grid))
                heat_map(axis, 100 * grid, sources, sets, limits, DIVERGING, "+.0f")
            else:
                heat_map(axis, 100 * grid, sources, sets, (0.0, 100 * high), SEQUENTIAL, ".0f")
            axis.set_title(heads[name])
        return canvas


def _peak(grid: np.ndarray) -> float:
    """The largest absolute value, at least 0.01."""
    return max(0.01, float(np.nanmax(np.abs(grid))))


def _grid(
    comparisons: Sequence[Comparison], sources: Sequence[str], sets: Sequence[str], panel: str, tunings: int
) -> np.ndarray:
    """Means over `tunings` tunings, [sources, sets]; NaN where one is missing."""
    grid = np.full((len(sources), len(sets)), np.nan)
    for row, source in enumerate(sources):
        for column, name in enumerate(sets):
            cell = [
                PANELS[panel](item)
                for item in comparisons
                if (item.setting.source, item.set_name) == (source, name)
            ]
            if len(cell) == tunings:
                grid[row, column] = np.mean(cell)
    return grid
