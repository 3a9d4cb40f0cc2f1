"""What all figures share: palette, axes, and how a canvas becomes SVG and PDF.

Blue squares are vanilla, vermilion circles MAML (Okabe and Ito's palette), throughout.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any, Literal, TypeVar

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure as Canvas
from matplotlib.text import Text

from analysis.provenance import NAMES, Run, Runs, runs_of
from analysis.significance import Estimate

WIDTH = 9.4
COLUMN, TEXT = 3.3, 6.8  # inches: a column of a paper with two, and its text
INK, QUIET, GRID = "#22262a", "#6b7278", "#e3e5e7"
COLOURS = {"vanilla": "#0072B2", "maml": "#D55E00"}
OTHER_COLOUR = "#009E73"
THEME = {INK: "ink", QUIET: "quiet", GRID: "line", "#ffffff": "paper"}
THEME |= {COLOURS["vanilla"]: "vanilla", COLOURS["maml"]: "maml", OTHER_COLOUR: "other"}
DIVERGING = LinearSegmentedColormap.from_list("objectives", [COLOURS["vanilla"], "#f4f4f2", COLOURS["maml"]])
MARKERS = {"vanilla": "s", "maml": "o"}
FONTS = "ui-sans-serif, system-ui, 'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', sans-serif"
STYLE: dict[Any, Any] = {
    "axes.edgecolor": QUIET,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "pdf.fonttype": 42,  # TrueType, embedded
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": QUIET,
    "xtick.labelsize": 8.5,
    "ytick.color": QUIET,
    "ytick.labelsize": 8.5,
}
MAX_POINTS = 400
MAX_NUMBERS = 400  # cells of a heat map that hold their number
T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """A drawing, its words and its runs: `caption` stands under it, `name` is the file name without its ending."""

    name: str
    caption: str
    svg: str
    pdf: bytes
    runs: Runs

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
    rows: int, columns: int, height: float, sharey: bool | Literal["row"] = False
) -> Iterator[tuple[Canvas, np.ndarray]]:
    """A canvas of the page's width with rows x columns axes, in the page's style."""
    with plt.rc_context(STYLE):
        canvas, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False, sharey=sharey)
        try:
            yield canvas, axes
        finally:
            plt.close(canvas)


def finished(canvas: Canvas, name: str, caption: str, runs: Iterable[Run]) -> Figure:
    """The figure that a canvas has become; its caption ends with the number of runs and seeds that it shows."""
    shown = runs_of(runs)
    return Figure(name, f"{caption} {shown}", svg(canvas, name), pdf(canvas), shown)


def pdf(canvas: Canvas) -> bytes:
    """The same at the width of a column, or of the text where panels stand side by side; fonts are embedded."""
    width = COLUMN if canvas.axes[0].get_subplotspec().get_gridspec().ncols == 1 else TEXT  # type: ignore[union-attr]
    shrink = 0.8
    canvas.set_size_inches(width, canvas.get_figheight() * shrink)
    for text in canvas.findobj(Text):
        assert isinstance(text, Text)
        text.set_fontsize(float(text.get_fontsize()) * shrink)
    file = io.BytesIO()
    canvas.savefig(file, format="pdf", metadata={"CreationDate": None})
    return file.getvalue()


def svg(canvas: Canvas, name: str) -> str:
    """The SVG of a canvas: no date, no link, the page's fonts; its ids depend on the name."""
    text = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        canvas.savefig(
            text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    found = text.getvalue()
    found = found[found.index("<svg") :]
    found = re.sub(r"<metadata>.*?</metadata>", "", found, flags=re.DOTALL)
    return found.replace("'DejaVu Sans'", FONTS).strip()


def with_intervals(
    axis: Axes,
    at: Sequence[float],
    estimates: Sequence[Estimate],
    objective: str,
    line: bool = False,
    upright: bool = True,
) -> None:
    """Points with their intervals, at positions along x (or along y, if not upright)."""
    values = np.array([estimate.value for estimate in estimates])
    bounds = np.array([estimate.interval for estimate in estimates]).reshape(-1, 2)
    spread = np.maximum(
        [values - bounds[:, 0], bounds[:, 1] - values], 0
    )  # a skewed interval may lie beside its figure
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


def line(axis: Axes, x: np.ndarray, y: np.ndarray, objective: str) -> None:
    colour = COLOURS.get(objective, OTHER_COLOUR)
    axis.plot(*thinned(x, y), color=colour, label=NAMES.get(objective, objective), alpha=0.9)


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most MAX_POINTS points, the first and the last among them."""
    index = (
        np.unique(np.linspace(0, len(x) - 1, min(len(x), MAX_POINTS)).astype(int))
        if len(x)
        else np.array([], int)
    )
    return x[index], y[index]


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
                axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7, color=ink)
