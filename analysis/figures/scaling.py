"""Figures of comparisons: F1 by scale, by source and by checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from ..load.collect import Collection
from ..load.published_results import published_scale_curve
from ..run_refs import Runs, counted, distinct, runs_of
from ..stats.comparison import Average, Comparison, arms, averages
from .style import (
    ARM_COLOURS,
    ARM_MARKERS,
    FIRST,
    QUIET,
    SECOND,
    Figure,
    Point,
    drawing,
    figure,
    figure_legend,
    legend,
    millions,
    slug,
    title,
    with_intervals,
)


@dataclass(frozen=True)
class Panel:
    """F1 or a gain with intervals.

    Attributes:
        positions: of the points along the axis.
        points: by arm, FIRST and SECOND.
        scales: the names of the positions, if they are numbers of parameters.
        published: published F1 by arm: (parameters, F1).
    """

    title: str
    positions: Sequence[float]
    points: Mapping[str, Sequence[Point]]
    scales: Sequence[str] = ()
    published: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)


def _points(means: Sequence[Average]) -> dict[str, list[Point]]:
    """Return the mean F1 of each arm with its interval."""
    estimates = {FIRST: [item.first for item in means], SECOND: [item.second for item in means]}
    return {
        arm: [(estimate.value, *estimate.interval) for estimate in parts] for arm, parts in estimates.items()
    }


def scale_curve(collection: Collection, comparisons: Sequence[Comparison]) -> list[Figure]:
    """Show F1 by number of parameters for each tuning, and the relative gain; one figure for each variant."""
    figures = []
    for variant in distinct(item.setting.variant for item in comparisons):
        chosen = [item for item in comparisons if item.setting.variant == variant]
        sizes = collection.parameters_by_scale(variant)
        panels = _tuning_panels(collection, chosen, variant, sizes)
        caption = _scale_caption(collection, variant, chosen)
        name = slug("scale_curve", variant)
        gain = _gain_panel(chosen, sizes)
        figures.append(
            figure(name, caption, _runs_behind(chosen), draw_scale_curve, panels, gain, arms(chosen))
        )
    return figures


def _tuning_panels(
    collection: Collection, comparisons: Sequence[Comparison], variant: str, sizes: Mapping[str, int]
) -> list[Panel]:
    means = averages(comparisons, lambda setting: (setting.tuning, setting.scale))
    panels = []
    for tuning in distinct(item.setting.tuning for item in comparisons):
        part = [item for item in means if item.key[0] == tuning]
        scales = [str(item.key[1]) for item in part]
        parameters = [sizes[scale] for scale in scales]
        published = _published(collection.target_sets(), parameters, arms(part))
        panels.append(Panel(title(tuning, variant), parameters, _points(part), scales, published))
    return panels


def _gain_panel(comparisons: Sequence[Comparison], sizes: Mapping[str, int]) -> Panel:
    means = averages(comparisons, lambda setting: (setting.scale,))
    scales = [str(item.key[0]) for item in means]
    gains = [item.difference.relative_gain for item in means]
    points = {FIRST: [(gain.value, *gain.interval) for gain in gains]}
    return Panel(" relative to ".join(arms(comparisons)), [sizes[scale] for scale in scales], points, scales)


def _scale_caption(collection: Collection, variant: str, comparisons: Sequence[Comparison]) -> str:
    of_variant = f" Variant {variant}." if variant else ""
    return (
        f"Mean micro-F1 on {', '.join(collection.target_sets())} by scale and tuning, with 95 % CI, and the gain of "
        f"{' relative to '.join(arms(comparisons))} over all tunings.{of_variant} Hollow markers, if any, are published results over both tunings."
    )


def _published(
    sets: Sequence[str], parameters: Sequence[int], objectives: tuple[str, str]
) -> dict[str, list[tuple[int, float]]]:
    """Return the published means at the scales of the figure, if they are about the same sets and objectives."""
    curve = published_scale_curve(sets)
    points = [point for point in (curve["points"] if curve else ()) if point["parameters"] in parameters]
    if not points:
        return {}
    return {
        arm: [(point["parameters"], point[objective]) for point in points]
        for arm, objective in zip((FIRST, SECOND), objectives, strict=True)
        if objective in points[0]
    }


def draw_scale_curve(panels: Sequence[Panel], gain: Panel, names: tuple[str, str]) -> Canvas:
    """Draw a panel for each tuning, all with the same y-axis, and a panel of the gain."""
    labels = dict(zip((FIRST, SECOND), names, strict=True))
    with drawing(1, len(panels) + 1, 3.1) as (canvas, axes):
        for axis, panel in zip(axes[0], panels, strict=False):
            for shift, arm in ((0.97, SECOND), (1.03, FIRST)):
                positions = [parameters * shift for parameters in panel.positions]
                with_intervals(axis, positions, panel.points[arm], arm, labels[arm], line=True)
            _set_scale_axis(axis, panel)
            for arm, points in panel.published.items():
                axis.plot(
                    *zip(*points, strict=True),
                    ARM_MARKERS[arm],
                    color=ARM_COLOURS[arm],
                    fillstyle="none",
                    label=f"{labels[arm]}, published",
                )
        high = max(axis.get_ylim()[1] for axis in axes[0, :-1])
        for axis in axes[0, :-1]:
            axis.set_ylim(0, max(high, 0.01))
            axis.yaxis.set_major_locator(MaxNLocator(6))
        axes[0, 0].set_ylabel("micro-F1")
        figure_legend(canvas, axes[0, 0])
        with_intervals(axes[0, -1], gain.positions, gain.points[FIRST], FIRST, gain.title, line=True)
        axes[0, -1].axhline(0, color=QUIET, linewidth=1)
        axes[0, -1].yaxis.set_major_formatter(FuncFormatter(_percent))
        _set_scale_axis(axes[0, -1], gain)
        return canvas


def _percent(value: float, _: int) -> str:
    return f"{100 * value:+.3g}\u202f%" if value else "0\u202f%"


def _set_scale_axis(axis: Axes, panel: Panel) -> None:
    positions = list(panel.positions)
    labels = [f"{scale}\n{millions(count)}" for scale, count in zip(panel.scales, positions, strict=True)]
    axis.set_title(panel.title)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(positions))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(positions, labels)
    axis.set_xlim(min(positions) / 1.7, max(positions) * 1.7)


def _runs_behind(comparisons: Sequence[Comparison]) -> Runs:
    return runs_of(*(item.runs for item in comparisons))


def by_source(collection: Collection, comparisons: Sequence[Comparison]) -> list[Figure]:
    """Show F1 by fine-tuning source, a panel for each scale; one figure for each variant."""
    figures = []
    for variant in distinct(item.setting.variant for item in comparisons):
        chosen = [item for item in comparisons if item.setting.variant == variant]
        sources = distinct(item.setting.source for item in chosen)
        panels = [
            _source_panel(part, title(scale, variant), sources)
            for scale in collection.parameters_by_scale()
            if (part := [item for item in chosen if item.setting.scale == scale])
        ]
        of_variant = f" ({variant})" if variant else ""
        tunings = " and ".join(distinct(item.setting.tuning for item in chosen))
        caption = (
            f"Mean micro-F1 on {', '.join(collection.target_sets())} by fine-tuning source{of_variant}, over {tunings}, "
            "with 95 % CI."
        )
        name = slug("by_source", variant)
        figures.append(
            figure(name, caption, _runs_behind(chosen), draw_by_source, panels, sources, arms(chosen))
        )
    return figures


def _source_panel(comparisons: Sequence[Comparison], name: str, sources: Sequence[str]) -> Panel:
    means = {item.key[0]: item for item in averages(comparisons, lambda setting: (setting.source,))}
    rows = [row for row, source in enumerate(sources) if source in means]
    return Panel(name, rows, _points([means[sources[row]] for row in rows]))


def draw_by_source(panels: Sequence[Panel], sources: Sequence[str], names: tuple[str, str]) -> Canvas:
    """Draw a panel for each scale, with a row for each source."""
    labels = dict(zip((FIRST, SECOND), names, strict=True))
    with drawing(1, len(panels), 1.3 + 0.42 * len(sources), sharey=True) as (canvas, axes):
        for axis, panel in zip(axes[0], panels, strict=True):
            for shift, arm in ((-0.14, SECOND), (0.14, FIRST)):
                rows = [row + shift for row in panel.positions]
                with_intervals(axis, rows, panel.points[arm], arm, labels[arm], upright=False)
            axis.set_title(panel.title)
            axis.set_xlabel("micro-F1")
            axis.set_yticks(range(len(sources)), sources)
            axis.grid(visible=False, axis="y")
        right = max(axis.get_xlim()[1] for axis in axes[0])
        for axis in axes[0]:
            axis.set_xlim(0, right)
            axis.xaxis.set_major_locator(MaxNLocator(4))
        axes[0, 0].set_ylim(len(sources) - 0.5, -0.5)
        figure_legend(canvas, axes[0, 0])
        return canvas


def by_step(collection: Collection, comparisons: Sequence[Comparison]) -> list[Figure]:
    """Show F1 by pretraining step for each scale and variant of which several checkpoints were fine-tuned."""
    figures = []
    for scale, variant in distinct((item.setting.scale, item.setting.variant) for item in comparisons):
        chosen = [
            item for item in comparisons if (item.setting.scale, item.setting.variant) == (scale, variant)
        ]
        means = averages(chosen, lambda setting: (setting.step or 0,))
        if len(means) < 2:
            continue
        means.sort(key=_step)
        panel = Panel("", [_step(item) for item in means], _points(means))
        caption = (
            f"Mean micro-F1 on {', '.join(collection.target_sets())} by pretraining step of the fine-tuned checkpoint "
            f"({title(scale, variant)}), {counted(len(means), 'checkpoint')}, with 95 % CI."
        )
        name = slug("by_step", scale, variant)
        figures.append(figure(name, caption, _runs_behind(chosen), draw_by_step, panel, arms(chosen)))
    return figures


def draw_by_step(panel: Panel, names: tuple[str, str]) -> Canvas:
    """Draw both arms over updates."""
    labels = dict(zip((FIRST, SECOND), names, strict=True))
    with drawing(1, 1, 3.0) as (canvas, axes):
        axis = axes[0, 0]
        for arm, points in panel.points.items():
            with_intervals(axis, panel.positions, points, arm, labels[arm], line=True)
        axis.set_ylim(bottom=0)
        axis.set(xlabel="pretraining updates", ylabel="micro-F1")
        legend(axis)
        return canvas


def _step(item: Average) -> int:
    """Return the pretraining step of an average by step."""
    step = item.key[0]
    assert isinstance(step, int)
    return step
