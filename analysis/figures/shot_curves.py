"""Figures of k-shot learning: F1 against the size of the sample of the target language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from ..stats.shots import Curve
from .style import Figure, Point, drawing, figure, figure_legend, slug, title, with_intervals

COLUMNS = 3
MAX_PANELS = 12
OFFSET = 1.06
"""factor between the positions of two objectives at the same k, so that their intervals do not overlap"""


@dataclass(frozen=True)
class Panel:
    """One panel: a heading, and the points of each objective by k."""

    heading: str
    curves: Mapping[str, Mapping[int, Point]]


def k_shot(curves: Sequence[Curve]) -> list[Figure]:
    """Show F1 against k, one figure for each scale, variant and checkpoint; one panel for each tuning, source and set."""
    by_model: dict[tuple[str, str, int | None], list[Curve]] = {}
    for curve in curves:
        setting = curve.setting
        by_model.setdefault((setting.scale, setting.variant, setting.step), []).append(curve)
    figures = []
    for (scale, variant, step), members in by_model.items():
        panels = _panels(members)
        shown = panels[:MAX_PANELS]
        rest = (
            f" {len(panels) - MAX_PANELS} more panels are in the table." if len(panels) > MAX_PANELS else ""
        )
        caption = (
            f"k-shot learning with {title(scale, variant)}{f' after {step:,} updates' if step else ''}: F1 on the target language "
            f"against the size k of the sample, with 95 % CI (logarithmic axis; 0 is zero-shot).{rest}"
        )
        name = slug("k_shot", scale, variant, f"step{step}" if step else "")
        figures.append(
            figure(name, caption, (run for one in members for run in one.all_runs), draw_k_shot, shown)
        )
    return figures


def _panels(curves: Sequence[Curve]) -> list[Panel]:
    by_panel: dict[str, dict[str, dict[int, Point]]] = {}
    for curve in curves:
        setting, task = curve.setting, curve.task
        how = ", ".join(filter(None, (task.unit, f"{task.updates:,} updates", task.settings)))
        heading = f"{setting.source} \u2192 {task.target}, {setting.tuning}\non {curve.set_name} ({how})"
        points = {k: (point.value, *point.interval) for k, point in curve.points.items()}
        by_panel.setdefault(heading, {})[curve.objective] = points
    return [Panel(heading, panel) for heading, panel in by_panel.items()]


def draw_k_shot(panels: Sequence[Panel]) -> Canvas:
    """Draw one line with intervals for each objective; k = 0 lies as far left of the smallest k as a third of it."""
    rows = -(-len(panels) // COLUMNS)
    with drawing(rows, COLUMNS, 0.6 + 2.5 * rows, sharey="row") as (canvas, axes):
        for axis, panel in zip(axes.flat, panels, strict=False):
            sizes = sorted({k for points in panel.curves.values() for k in points})
            positions = {k: k or sizes[1] / 3 for k in sizes}
            for index, (objective, points) in enumerate(panel.curves.items()):
                x = [positions[k] * OFFSET**index for k in points]
                with_intervals(axis, x, list(points.values()), objective, objective, line=True)
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(FixedLocator(list(positions.values())))
            axis.xaxis.set_major_formatter(FixedFormatter([str(k) for k in sizes]))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_title(panel.heading, fontsize="medium")
            axis.set_xlabel("k")
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for axis in axes[:, 0]:  # of each row, which shares its limits
            axis.set(ylabel="F1", ylim=(0, None))
        figure_legend(canvas, axes[0, 0])
        return canvas
