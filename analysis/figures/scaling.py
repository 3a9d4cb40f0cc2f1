"""The figures of comparisons: F1 by scale, by source and by checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from ..load.collect import Collection
from ..sections import published
from ..stats.comparison import Average, Comparison, averages
from ..stats.run_refs import NAMES, Runs, counted, runs_of
from .style import (
    COLOURS,
    MARKERS,
    QUIET,
    Figure,
    Point,
    distinct,
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
    """F1 (or a gain) with intervals by objective, at the positions `at`; `published` has others' figures by parameters."""

    title: str
    at: Sequence[float]
    points: Mapping[str, Sequence[Point]]
    scales: Sequence[str] = ()
    published: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)


def _points(means: Sequence[Average]) -> dict[str, list[Point]]:
    """The figure of each objective at each place, with its interval."""
    found = {objective: [getattr(item, objective) for item in means] for objective in NAMES}
    return {objective: [(part.value, *part.interval) for part in parts] for objective, parts in found.items()}


def scale_curve(collection: Collection, found: Sequence[Comparison]) -> list[Figure]:
    """F1 by number of parameters for each tuning, and the relative gain; one figure for each variant."""
    figures = []
    for label in distinct(item.setting.variant for item in found):
        sizes = collection.sizes(label)
        chosen = [item for item in found if item.setting.variant == label]
        means = averages(chosen, lambda setting: (setting.tuning, setting.scale))
        panels = []
        for tuning in distinct(item.setting.tuning for item in chosen):
            part = [item for item in means if item.key[0] == tuning]
            scales = [str(item.key[1]) for item in part]
            at = [sizes[scale] for scale in scales]
            marks = _published(tuple(collection.target_sets()), at)
            panels.append(Panel(f"{tuning}{f', {label}' if label else ''}", at, _points(part), scales, marks))
        overall = averages(chosen, lambda setting: (setting.scale,))
        scales = [str(item.key[0]) for item in overall]
        gains = [item.maml.relative_to(item.vanilla) for item in overall]
        gain = Panel("MAML relative to vanilla", [sizes[scale] for scale in scales], {"maml": [(part.value, *part.interval) for part in gains]}, scales)  # fmt: skip
        name = slug("scale_curve", label)
        caption = _scale_caption(collection, label)
        figures.append(figure(name, caption, _behind(chosen), draw_scale_curve, panels, gain))
    return figures


def _scale_caption(collection: Collection, label: str) -> str:
    variant = f" Variant {label}." if label else ""
    return (
        f"Mean micro-F1 on {', '.join(collection.target_sets())} by scale and tuning, with 95 % intervals, and the gain of "
        f"MAML relative to vanilla over all tunings.{variant} Hollow marks, where there are any, are published figures over both tunings (see there)."
    )


def _published(sets: tuple[str, ...], parameters: Sequence[int]) -> dict[str, list[tuple[int, float]]]:
    """The published means at the scales that are drawn, where they are about the same sets."""
    found = published.curve(sets)
    points = [point for point in (found["points"] if found else ()) if point["parameters"] in parameters]
    return {objective: [(point["parameters"], point[objective]) for point in points] for objective in NAMES if points}  # fmt: skip


def draw_scale_curve(panels: Sequence[Panel], gain: Panel) -> Canvas:
    """A panel for each tuning, all of one height, and the gain."""
    with drawing(1, len(panels) + 1, 3.1) as (canvas, axes):
        for axis, panel in zip(axes[0], panels, strict=False):
            for shift, objective in ((0.97, "vanilla"), (1.03, "maml")):
                at = [parameters * shift for parameters in panel.at]
                with_intervals(axis, at, panel.points[objective], objective, line=True)
            _scale_axis(axis, panel)
            for objective, marks in panel.published.items():
                axis.plot(*zip(*marks, strict=True), MARKERS[objective], color=COLOURS[objective], fillstyle="none", label=f"{NAMES[objective]}, published")  # fmt: skip
        high = max(axis.get_ylim()[1] for axis in axes[0, :-1])
        for axis in axes[0, :-1]:
            axis.set_ylim(0, max(high, 0.01))
            axis.yaxis.set_major_locator(MaxNLocator(6))
        axes[0, 0].set_ylabel("micro-F1")
        figure_legend(canvas, axes[0, 0])
        with_intervals(axes[0, -1], gain.at, gain.points["maml"], "maml", line=True)
        axes[0, -1].axhline(0, color=QUIET, linewidth=1)
        axes[0, -1].yaxis.set_major_formatter(FuncFormatter(_gain))
        _scale_axis(axes[0, -1], gain)
        return canvas


def _gain(value: float, _: int) -> str:
    return f"{100 * value:+.3g} %" if value else "0 %"


def _scale_axis(axis: Axes, panel: Panel) -> None:
    axis.set_title(panel.title)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(list(panel.at)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(
        list(panel.at),
        [f"{scale}\n{millions(count)}" for scale, count in zip(panel.scales, panel.at, strict=True)],
    )
    axis.set_xlim(min(panel.at) / 1.7, max(panel.at) * 1.7)


def _behind(found: Sequence[Comparison]) -> Runs:
    return runs_of(*(item.runs for item in found))


def by_source(collection: Collection, found: Sequence[Comparison]) -> list[Figure]:
    """F1 by fine-tuning source, a panel for each scale; one figure for each variant."""
    figures = []
    for label in distinct(item.setting.variant for item in found):
        chosen = [item for item in found if item.setting.variant == label]
        sources = distinct(item.setting.source for item in chosen)
        panels = []
        for scale in collection.sizes():
            part = [item for item in chosen if item.setting.scale == scale]
            if part:
                means = {item.key[0]: item for item in averages(part, lambda setting: (setting.source,))}
                rows = [index for index, source in enumerate(sources) if source in means]
                points = _points([means[source] for source in sources if source in means])
                panels.append(Panel(title(scale, label), rows, points))
        name = slug("by_source", label)
        caption = f"Mean micro-F1 on {', '.join(collection.target_sets())} by fine-tuning source{f' ({label})' if label else ''}, over {' and '.join(distinct(item.setting.tuning for item in chosen))}, with 95 % intervals."
        figures.append(figure(name, caption, _behind(chosen), draw_by_source, panels, sources))
    return figures


def draw_by_source(panels: Sequence[Panel], sources: Sequence[str]) -> Canvas:
    """A panel for each scale, a row for each source."""
    with drawing(1, len(panels), 1.3 + 0.42 * len(sources), sharey=True) as (canvas, axes):
        for axis, panel in zip(axes[0], panels, strict=True):
            for shift, objective in ((-0.14, "vanilla"), (0.14, "maml")):
                rows = [row + shift for row in panel.at]
                with_intervals(axis, rows, panel.points[objective], objective, upright=False)
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


def by_step(collection: Collection, found: Sequence[Comparison]) -> list[Figure]:
    """F1 by pretraining step, where several checkpoints of a scale were tuned."""
    figures = []
    for scale, label in distinct((item.setting.scale, item.setting.variant) for item in found):
        chosen = [item for item in found if (item.setting.scale, item.setting.variant) == (scale, label)]
        means = averages(chosen, lambda setting: (setting.step or 0,))
        if len(means) < 2:
            continue
        means.sort(key=_step)
        panel = Panel("", [_step(item) for item in means], _points(means))
        name = slug("by_step", scale, label)
        caption = f"Mean micro-F1 on {', '.join(collection.target_sets())} by pretraining step of the checkpoint that was tuned ({title(scale, label)}), {counted(len(means), 'checkpoint')}, with 95 % intervals."
        figures.append(figure(name, caption, _behind(chosen), draw_by_step, panel))
    return figures


def draw_by_step(panel: Panel) -> Canvas:
    """Both objectives over updates."""
    with drawing(1, 1, 3.0) as (canvas, axes):
        axis = axes[0, 0]
        for objective, points in panel.points.items():
            with_intervals(axis, panel.at, points, objective, line=True)
        axis.set_ylim(bottom=0)
        axis.set(xlabel="pretraining updates", ylabel="micro-F1")
        legend(axis)
        return canvas


def _step(item: Average) -> int:
    """The pretraining step by which an average was taken."""
    step = item.key[0]
    assert isinstance(step, int)
    return step
