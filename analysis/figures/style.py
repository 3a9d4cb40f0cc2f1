"""What all figures share: palette, axes, curves and legends. rendering.py turns them into SVG and PDF.

A figure is a function and its data: the report selects the data, and another process draws them.

Where two arms are compared, the first is shown as vermilion circles and the second as blue squares. Elsewhere each objective
has its own colour (the palette of Okabe and Ito).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any, Literal
from zlib import crc32

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure as Canvas

from metapt.data import DEMO_NOTICE

from ..run_refs import HasRef, RunRef, Runs, runs_of
from .rendering import GRID, INK, QUIET, STYLE, submit, submit_pdf

WIDTH = 9.4  # inches
FIRST, SECOND = "first", "second"
ARM_COLOURS = {FIRST: "#D55E00", SECOND: "#0072B2"}
ARM_MARKERS = {FIRST: "o", SECOND: "s"}
OTHER_COLOUR = "#009E73"
OBJECTIVE_COLOURS = {
    "vanilla": ARM_COLOURS[SECOND],
    "maml": ARM_COLOURS[FIRST],
    "episodes": "#CC79A7",
    "twin": "#E69F00",
    "multitask": "#56B4E9",
    "both": "#7A5195",
    "maml_paper": "#8C6D1F",
    "maml_authors": "#5F6B6D",
}
THEME = {INK: "ink", QUIET: "quiet", GRID: "line", "#ffffff": "paper"}
THEME |= {ARM_COLOURS[FIRST]: "first", ARM_COLOURS[SECOND]: "second", OTHER_COLOUR: "other"}
"""colours of a figure to the page's CSS variables, which have a light and a dark value"""
SEQUENTIAL = matplotlib.colormaps["cividis"]
DIVERGING = LinearSegmentedColormap.from_list("arms", [ARM_COLOURS[SECOND], "#f4f4f2", ARM_COLOURS[FIRST]])
MAX_POINTS = 160  # of a curve
MAX_POINTS_SMALL = 60  # of a curve in a small panel
MAX_NUMBERS = 400  # cells of a heat map up to which each shows its number
Point = tuple[float, float, float]
"""a value and the two ends of its interval"""
Curve = tuple[np.ndarray, np.ndarray]
"""x and y"""


@dataclass(frozen=True)
class Figure:
    """A figure of the report.

    Attributes:
        name: the file name without suffix.
        caption: shown under the figure; ends with the number of runs.
        drawn: the future SVG.
        draw: draws the canvas.
        data: the arguments of `draw`.
        runs: the runs that are shown.
    """

    name: str
    caption: str
    drawn: Future[str]
    draw: Callable[..., Canvas]
    data: Sequence[Any]
    runs: Runs

    @property
    def svg(self) -> str:
        return self.drawn.result()

    def submit_pdf(self) -> Future[bytes]:
        """Let another process draw the figure as PDF, which the page does not need."""
        return submit_pdf(self.draw, *self.data)

    @property
    def themed(self) -> str:
        """The SVG in the colours of the page, with ids and classes that are unique there."""
        text = self.svg
        for colour, variable in THEME.items():
            text = re.sub(colour, f"var(--{variable})", text, flags=re.IGNORECASE)
        own = f"f{crc32(self.name.encode()):x}"
        return re.sub(r'( id="| class="|href="#|url\(#|[>}]\.)(?=[is]\d)', rf"\g<1>{own}", text)

    def to_svg(self) -> str:
        """Return the content of the SVG file; the caption is its description, for readers who cannot see it."""
        head, rest = self.svg.split(">", 1)
        return f"{head}><desc>{escape(self.full_caption)}</desc>{rest}\n"

    @property
    def full_caption(self) -> str:
        """The caption, with a notice if a run used synthetic data."""
        return f"{self.caption} {DEMO_NOTICE if self.runs.synthetic else ''}".strip()


def figure(
    name: str,
    caption: str,
    runs: Iterable[HasRef | RunRef],
    draw: Callable[..., Canvas],
    *data: Any,
) -> Figure:
    """Make the figure that `draw(*data)` draws, in another process.

    Args:
        caption: without the number of runs and seeds, which is added.
        draw: a function of a module, since it is pickled.
        data: no more than what is drawn, since they are pickled too.
    """
    shown = runs_of(runs)
    return Figure(name, f"{caption} {shown}", submit(name, draw, *data), draw, data, shown)


@contextmanager
def drawing(
    rows: int,
    columns: int,
    height: float,
    sharex: Literal["none", "col"] = "none",
    sharey: bool | Literal["row"] = False,
) -> Iterator[tuple[Canvas, np.ndarray]]:
    """Yield a canvas of the page's width and its axes [rows, columns], in the style of the page.

    Args:
        height: in inches.
    """
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(WIDTH, height))
        yield canvas, canvas.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)


def with_intervals(
    axis: Axes,
    positions: Sequence[float],
    points: Sequence[Point],
    arm: str,
    label: str,
    line: bool = False,
    upright: bool = True,
) -> None:
    """Plot points with their intervals, at positions along x, or along y if not upright.

    Args:
        arm: FIRST or SECOND, or an objective where there are more than two.
        label: in the legend.
    """
    values, low, high = np.reshape(points, (-1, 3)).T
    # a skewed interval may lie beside its value; an end that is not known is not drawn
    errors = np.nan_to_num(np.maximum([values - low, high - values], 0), posinf=0)
    style: dict[str, Any] = {
        "color": ARM_COLOURS.get(arm) or colour(arm),
        "marker": ARM_MARKERS.get(arm, "o"),
        "label": label,
        "linestyle": "-" if line else "none",
        "elinewidth": 1.1,
        "capsize": 2.5,
        "markersize": 5.5,
    }
    if upright:
        axis.errorbar(positions, values, yerr=errors, **style)
    else:
        axis.errorbar(values, positions, xerr=errors, **style)


def lines(axis: Axes, curves: Sequence[Curve], name: str, shade: str = "") -> None:
    """Plot the curves of one objective or arm as one line with gaps, which is much faster than many lines.

    Args:
        name: of the objective or arm, in the legend.
        shade: its colour; empty: that of the objective `name`.
    """
    gap = np.array([np.nan])
    x, y = (np.concatenate([part for curve in curves for part in (curve[side], gap)])[:-1] for side in (0, 1))
    axis.plot(x, y, color=shade or colour(name), label=name, alpha=0.9)


def colour(objective: str) -> str:
    """Return the colour of an objective where more than two may be shown."""
    return OBJECTIVE_COLOURS.get(objective, OTHER_COLOUR)


def thinned(x: np.ndarray, y: np.ndarray, max_points: int = MAX_POINTS) -> Curve:
    """Return at most `max_points` points of a curve, or of several [curves, points], with the first and the last."""
    index = np.unique(np.linspace(0, len(x) - 1, min(len(x), max_points)).astype(int))
    return x[index], y[..., index]


def legend(axis: Axes) -> None:
    """Add a legend above the axes, where no curve is."""
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    if unique:
        axis.legend(
            unique.values(), unique.keys(), loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=len(unique)
        )


def figure_legend(canvas: Canvas, axis: Axes) -> None:
    """Add a legend for the whole figure, with the labels of one of its axes."""
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    canvas.legend(unique.values(), unique.keys(), loc="outside upper right", ncols=len(unique))


def title(scale: str, variant: str) -> str:
    """Return how captions call a model."""
    return f"{scale}, {variant}" if variant else scale


def slug(*parts: str) -> str:
    """Return a file name made of the parts that are not empty."""
    return "-".join(re.sub(r"[^A-Za-z0-9_]+", "_", part) for part in parts if part)


def millions(count: float) -> str:
    """Return, for example, "570 M" or "2.2 M"."""
    return f"{count / 1e6:.0f} M" if count >= 1e7 else f"{count / 1e6:.1f} M"


def compact(value: float, _: int) -> str:
    """Format a tick: 12,000,000 as 12M; from a billion on in powers of ten."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if size <= abs(value) < size * 1000:
            return f"{value / size:g}{unit}"
    return f"{value:g}" if abs(value) < 1e9 else f"{value:.1e}".replace("e+", "e").replace(".0e", "e")


def heat_map(
    axis: Axes,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    limits: tuple[float, float],
    colours: Colormap,
    number_format: str,
) -> None:
    """Draw cells [rows, columns] from the top, each with its number; a cell that is NaN stays empty.

    Args:
        limits: the values of the first and the last colour.
        number_format: a format specification; empty for no numbers.
    """
    mesh = axis.pcolormesh(
        np.ma.masked_invalid(values),
        cmap=colours,
        vmin=limits[0],
        vmax=limits[1],
        edgecolors="white",
        linewidth=1,
    )
    axis.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=90 if max(map(len, columns)) > 5 else 0)
    axis.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axis.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    axis.grid(visible=False)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    if not number_format or values.size > MAX_NUMBERS:
        return
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            red, green, blue, _ = mesh.cmap(mesh.norm(value))
            ink = "#111111" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "#fefefe"
            text = format(value, number_format).replace("-", "−")
            centre = (column + 0.5, row + 0.5)
            axis.text(*centre, text, ha="center", va="center", fontsize=7, color=ink, in_layout=False)
