"""Which language to tune on: a heat map of sources and sets, for each objective and for their difference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis import figures
from analysis.comparison import Comparison, averages, averages_table, balanced, last_steps, unbalanced
from analysis.drawing import DIVERGING, SHARES, Figure, distinct, drawing, finished, heat_map, slug, title
from analysis.provenance import counted, runs_of
from analysis.study import Section, Study
from analysis.tables import Column

SIDES = {
    "vanilla": lambda item: item.vanilla.value,
    "MAML": lambda item: item.maml.value,
    "MAML minus vanilla": lambda item: item.difference.value,
}


def section(study: Study) -> Section:
    found = balanced(study.last, "source")
    means = averages(found, lambda setting: (setting.scale, setting.label, setting.source))
    heads = [Column("scale"), Column("variant"), Column("source")]
    table = averages_table("by_source", "Mean F1 on the target sets by fine-tuning source", heads, means)
    drawn = [*heat_maps(last_steps(study.found)), *figures.by_source(study.collection, found)]
    text = unbalanced(study.last, "source")
    if len({item.setting.source for item in study.last}) < 2:
        text.append("Needed to compare sources: MAML and vanilla runs tuned alike on at least two.")
    return Section("source", "Fine-tuning source", text, drawn, [table])


def heat_maps(found: Sequence[Comparison]) -> list[Figure]:
    """F1 by source and set, mean over regimes and seeds; one figure for each scale and variant."""
    drawn = []
    for scale, label in distinct((item.setting.scale, item.setting.label) for item in found):
        chosen = [item for item in found if (item.setting.scale, item.setting.label) == (scale, label)]
        sources = distinct(item.setting.source for item in chosen)
        sets = distinct(item.set_name for item in chosen)
        regimes = distinct(item.setting.regime for item in chosen)
        grids = {side: _grid(chosen, sources, sets, side, len(regimes)) for side in SIDES}
        if np.isnan(grids["vanilla"]).all():
            continue
        high = max(0.01, *(float(np.nanmax(grids[side])) for side in ("vanilla", "MAML")))
        gap = max(0.01, float(np.nanmax(np.abs(grids["MAML minus vanilla"]))))
        with drawing(1, 3, 2.0 + 0.3 * len(sources), sharey=True) as (canvas, axes):
            for axis, (side, grid) in zip(axes[0], grids.items(), strict=True):
                signed = side == "MAML minus vanilla"
                limits = (-100 * gap, 100 * gap) if signed else (0.0, 100 * high)
                form = "+.0f" if signed else ".0f"
                heat_map(axis, 100 * grid, sources, sets, limits, DIVERGING if signed else SHARES, form)  # fmt: skip
                axis.set_title(side)
            name = slug("source_heat", scale, label)
            shown = runs_of(*(item.runs for item in chosen))
            caption = (
                f"Micro-F1 in points by fine-tuning source (rows) and evaluation set (columns), {title(scale, label)}: mean over {' and '.join(regimes)}, "
                f"from {counted(len(shown) // 2, 'pair')} of runs. A cell is empty where not all regimes were tuned or a set was not evaluated. "
                "No interval is shown: a single cell rests on few spans, see the table of differences."
            )
            drawn.append(finished(canvas, name, caption, shown))
    return drawn


def _grid(
    found: Sequence[Comparison], sources: Sequence[str], sets: Sequence[str], side: str, regimes: int
) -> np.ndarray:
    """Means [sources, sets] over so many regimes; NaN where there are fewer."""
    grid = np.full((len(sources), len(sets)), np.nan)
    for row, source in enumerate(sources):
        for column, name in enumerate(sets):
            cell = [SIDES[side](i) for i in found if (i.setting.source, i.set_name) == (source, name)]
            if len(cell) == regimes:
                grid[row, column] = np.mean(cell)
    return grid
