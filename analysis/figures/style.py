"""What all figures share: palette and axes. How they become SVG and PDF is in rendering.py.

A figure is a function and its data: the analysis gathers what is drawn, and other processes draw it.

Blue squares are vanilla, vermilion circles MAML (Okabe and Ito's palette), throughout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any, Literal, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure as Canvas

from ..stats.run_refs import NAMES, Run, Runs, runs_of
from .rendering import GRID, INK, QUIET, STYLE, rendered

WIDTH = 9.4
COLOURS = {"vanilla": "#0072B2", "maml": "#D55E00"}
OTHER_COLOUR = "#009E73"
THEME = {INK: "ink", QUIET: "quiet", GRID: "line", "#ffffff": "paper"}
THEME |= {COLOURS["vanilla"]: "vanilla", COLOURS["maml"]: "maml", OTHER_COLOUR: "other"}
SHARES = matplotlib.colormaps["cividis"]
DIVERGING = LinearSegmentedColormap.from_list("objectives", [COLOURS["vanilla"], "#f4f4f2", COLOURS["maml"]])
MARKERS = {"vanilla": "s", "maml": "o"}
MOST_POINTS = 240  # of a curve
FEW_POINTS = 120  # of one in a small panel
MAX_NUMBERS = 400  # cells of a heat map that hold their number
T = TypeVar("T")
Point = tuple[float, float, float]
"""a value and its interval"""
Curve = tuple[np.ndarray, np.ndarray]
"""x and y"""


@dataclass(frozen=True)
class Figure:
    """A drawing, its words and its runs: `caption` stands under it, `name` is the file name without its ending.

    `drawn` will hold its SVG and its PDF; none of a comparison under another term than the one shown first.
    """

    name: str
    caption: str
    drawn: Future[tuple[str, bytes | None]]
    runs: Runs

    @property
    def svg(self) -> str:
        return self.drawn.result()[0]

    @property
    def pdf(self) -> bytes | None:
        return self.drawn.result()[1]

    @property
    def themed(self) -> str:
        """The SVG in the colours of the page, which has light and dark ones, with ids that are unique there."""
        text = self.svg
        for colour, variable in THEME.items():
            text = re.sub(colour, f"var(--{variable})", text, flags=re.IGNORECASE)
        text = re.sub(r'\bid="', f'id="{self.name}-', text)
        text = re.sub(r'href="#', f'href="#{self.name}-', text)
        return re.sub(r"url\(#", f"url(#{self.name}-", text)

    def to_svg(self, notice: str) -> str:
        """The figure as a file; the notice, if there is one, is its description."""
        head, rest = self.svg.split(">", 1)
        return f"{head}>{f'<desc>{escape(notice)}</desc>' if notice else ''}{rest}\n"


@contextmanager
def drawing(
    rows: int,
    columns: int,
    height: float,
    sharex: Literal["none", "col"] = "none",
    sharey: bool | Literal["row"] = False,
    alike: bool = False,
) -> Iterator[tuple[Canvas, np.ndarray]]:
    """A canvas of the page's width with rows x columns axes, in the page's style.

    Args:
        alike: many small axes, all with titles and numbers of one size, have few ticks, and margins in inches in place of a
            layout: to lay out twenty takes longer than to draw them.
    """
    with matplotlib.rc_context({**STYLE, "figure.constrained_layout.use": not alike}):
        canvas = Canvas(figsize=(WIDTH, height))
        axes = canvas.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)
        if alike:
            canvas.subplots_adjust(**_margins(rows, columns, height))
            for axis in axes.flat:
                axis.locator_params(nbins=4)
        yield canvas, axes


def _margins(rows: int, columns: int, height: float) -> dict[str, float]:
    left, right, bottom, top, between, above = 0.8, 0.1, 0.55, 0.6, 0.7, 0.6  # inches
    wide = (WIDTH - left - right - (columns - 1) * between) / columns
    high = (height - bottom - top - (rows - 1) * above) / rows
    sides = {"left": left / WIDTH, "right": 1 - right / WIDTH, "bottom": bottom / height, "top": 1 - top / height}  # fmt: skip
    return {**sides, "wspace": between / wide, "hspace": above / high}


def figure(name: str, caption: str, runs: Iterable[Run], draw: Callable[..., Canvas], *data: Any) -> Figure:
    """The figure that `draw(*data)` will make, in another process, so a function of a module, and no more data than it draws.

    The caption ends with the number of runs and seeds that it shows.
    """
    shown = runs_of(runs)
    return Figure(name, f"{caption} {shown}", rendered(name, draw, *data), shown)


def with_intervals(
    axis: Axes,
    at: Sequence[float],
    points: Sequence[Point],
    objective: str,
    line: bool = False,
    upright: bool = True,
) -> None:
    """Points with their intervals, at positions along x (or along y, if not upright)."""
    values, low, high = np.reshape(points, (-1, 3)).T
    spread = np.maximum([values - low, high - values], 0)  # a skewed interval may lie beside its figure
    style: dict[str, Any] = {
        "color": COLOURS[objective],
        "marker": MARKERS[objective],
        "label": NAMES[objective],
    }
    style |= {"linestyle": "-" if line else "none", "elinewidth": 1.1, "capsize": 2.5, "markersize": 5.5}
    spread = np.nan_to_num(spread)
    if upright:
        axis.errorbar(at, values, yerr=spread, **style)
    else:
        axis.errorbar(values, at, xerr=spread, **style)


def lines(axis: Axes, curves: Sequence[Curve], objective: str) -> None:
    """Curves of one objective, as one line with gaps: each line by itself costs as much as all."""
    gap = np.array([np.nan])
    x, y = (np.concatenate([part for curve in curves for part in (curve[side], gap)])[:-1] for side in (0, 1))
    axis.plot(x, y, color=COLOURS.get(objective, OTHER_COLOUR), label=NAMES.get(objective, objective), alpha=0.9)  # fmt: skip


def thinned(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> Curve:
    """At most so many points of a curve, or of several [curves, points]; the first and the last are among them."""
    index = np.unique(np.linspace(0, len(x) - 1, min(len(x), most)).astype(int))
    return x[index], y[..., index]


def legend(axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    if unique:
        axis.legend(  # above the axes, where no curve can pass
            unique.values(), unique.keys(), loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=len(unique)
        )


def figure_legend(canvas: Canvas, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    canvas.legend(unique.values(), unique.keys(), loc="outside upper right", ncols=len(unique))


def distinct(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))


def title(scale: str, label: str) -> str:
    return f"{scale}, {label}" if label else scale


def slug(*parts: str) -> str:
    return "-".join(re.sub(r"[^A-Za-z0-9_]+", "_", part) for part in parts if part)


def millions(count: float) -> str:
    return f"{count / 1e6:.0f} M" if count >= 1e7 else f"{count / 1e6:.1f} M"


def compact(value: float, _: int) -> str:
    """12,000,000 as 12M; from a billion on in powers of ten."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if size <= abs(value) < size * 1000:
            return f"{value / size:g}{unit}"
    return f"{value:g}" if abs(value) < 1e9 else f"{value:.1e}".replace("e+", "e").replace(".0e", "e")


def heat_map(axis: Axes, values: np.ndarray, rows: Sequence[str], columns: Sequence[str], limits: tuple[float, float], colours: Colormap, form: str) -> None:  # fmt: skip
    """Cells [rows, columns] from the top, each with its number; a cell that is NaN stays empty."""
    mesh = axis.pcolormesh(np.ma.masked_invalid(values), cmap=colours, vmin=limits[0], vmax=limits[1], edgecolors="white", linewidth=1)  # fmt: skip
    axis.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=90 if max(map(len, columns)) > 5 else 0)
    axis.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axis.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    axis.grid(visible=False)
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)
    if form and values.size <= MAX_NUMBERS:
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                red, green, blue, _ = mesh.cmap(mesh.norm(value))
                ink = "#111111" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "#fefefe"
                text = format(value, form).replace("-", "−")
                axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7, color=ink, in_layout=False)  # fmt: skip
