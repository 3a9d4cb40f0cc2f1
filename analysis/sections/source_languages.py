"""Which language to tune on: a heat map of sources and sets, for each objective and for their difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure as Canvas

from ..figures import scaling
from ..figures.style import DIVERGING, SHARES, Figure, distinct, drawing, figure, heat_map, slug, title
from ..stats.comparison import Comparison, averages, averages_table, balanced, last_steps, unbalanced
from ..stats.run_refs import counted, runs_of
from ..tables import Column
from .base import Section, Study

SIDES = {
    "vanilla": lambda item: item.vanilla.value,
    "MAML": lambda item: item.maml.value,
    "MAML minus vanilla": lambda item: item.difference.value,
}
SIGNED = {"MAML minus vanilla"}


def section(study: Study) -> Section:
    found = balanced(study.last, "source")
    means = averages(found, lambda setting: (setting.scale, setting.variant, setting.source))
    heads = [Column("scale"), Column("variant"), Column("source")]
    table = averages_table("by_source", "Mean F1 on the target sets by fine-tuning source", heads, means)
    drawn = [*heat_maps(last_steps(study.found)), *scaling.by_source(study.collection, found)]
    text = unbalanced(study.last, "source")
    if len({item.setting.source for item in study.last}) < 2:
        text.append("Needed to compare sources: MAML and vanilla runs tuned alike on at least two.")
    return Section("source", "Fine-tuning source", text, drawn, [table])


def heat_maps(found: Sequence[Comparison]) -> list[Figure]:
    """F1 by source and set, mean over tunings and seeds; one figure for each scale and variant."""
    drawn = []
    for scale, label in distinct((item.setting.scale, item.setting.variant) for item in found):
        chosen = [item for item in found if (item.setting.scale, item.setting.variant) == (scale, label)]
        sources = distinct(item.setting.source for item in chosen)
        sets = distinct(item.set_name for item in chosen)
        tunings = distinct(item.setting.tuning for item in chosen)
        grids = {side: _grid(chosen, sources, sets, side, len(tunings)) for side in SIDES}
        if np.isnan(grids["vanilla"]).all():
            continue
        shown = runs_of(*(item.runs for item in chosen))
        caption = (
            f"Micro-F1 in points by fine-tuning source (rows) and evaluation set (columns), {title(scale, label)}: mean over {' and '.join(tunings)}, "
            f"from {counted(len(shown) // 2, 'pair')} of runs. A cell is empty where not all tunings were tuned or a set was not evaluated. "
            "No interval is shown: a single cell rests on few spans, see the table of differences."
        )
        drawn.append(figure(slug("source_heat", scale, label), caption, shown, draw_heat_maps, grids, sources, sets))  # fmt: skip
    return drawn


def draw_heat_maps(grids: Mapping[str, np.ndarray], sources: Sequence[str], sets: Sequence[str]) -> Canvas:
    """A column for each side; both objectives have the same colours."""
    high, gap = (max(0.01, *(float(np.nanmax(np.abs(grid))) for side, grid in grids.items() if (side in SIGNED) == signed)) for signed in (False, True))  # fmt: skip
    with drawing(1, len(grids), 2.0 + 0.3 * len(sources), sharey=True) as (canvas, axes):
        for axis, (side, grid) in zip(axes[0], grids.items(), strict=True):
            if side in SIGNED:
                heat_map(axis, 100 * grid, sources, sets, (-100 * gap, 100 * gap), DIVERGING, "+.0f")
            else:
                heat_map(axis, 100 * grid, sources, sets, (0.0, 100 * high), SHARES, ".0f")
            axis.set_title(side)
        return canvas


def _grid(
    found: Sequence[Comparison], sources: Sequence[str], sets: Sequence[str], side: str, tunings: int
) -> np.ndarray:
    """Means [sources, sets] over so many tunings; NaN where there are fewer."""
    grid = np.full((len(sources), len(sets)), np.nan)
    for row, source in enumerate(sources):
        for column, name in enumerate(sets):
            cell = [SIDES[side](i) for i in found if (i.setting.source, i.set_name) == (source, name)]
            if len(cell) == tunings:
                grid[row, column] = np.mean(cell)
    return grid
