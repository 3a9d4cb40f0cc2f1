"""How a figure becomes SVG, and PDF if the report shows it first: in other processes, while the report goes on.

The backends are called themselves, since `savefig` draws every canvas once more, for its layout, which drawing makes anyway.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import matplotlib
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.text import Text

from . import fonts

COLUMN, TEXT = 3.3, 6.8  # inches: a column of a paper with two, and its text
INK, QUIET, GRID = "#22262a", "#6b7278", "#e3e5e7"
MOST_PROCESSES = 8
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
    "font.family": fonts.WHOLE,
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


_with_pdf = ContextVar("_with_pdf", default=True)


@contextmanager
def with_pdf(wanted: bool) -> Iterator[None]:
    """Within this context figures become PDFs too, or SVG alone: a PDF takes longer, its fonts being cut anew."""
    before = _with_pdf.set(wanted)
    try:
        yield
    finally:
        _with_pdf.reset(before)


def rendered(name: str, draw: Callable[..., Canvas], *data: Any) -> Future[tuple[str, bytes | None]]:
    """What will be the SVG of `draw(*data)`, whose ids depend on the name, and its PDF."""
    return _processes().submit(_render, _with_pdf.get(), name, draw, *data)


def begin() -> None:
    """Starts the processes, while this one is small: they keep what it holds when they start."""
    fonts.families()
    _processes().submit(int).result()


@cache
def _processes() -> ProcessPoolExecutor:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ProcessPoolExecutor(min(cores, MOST_PROCESSES), initializer=_give_way)


def _give_way() -> None:
    """To the process that analyses, for which all wait in the end."""
    if hasattr(os, "nice"):
        os.nice(10)


def _render(with_pdf: bool, name: str, draw: Callable[..., Canvas], *data: Any) -> tuple[str, bytes | None]:
    canvas = draw(*data)
    return svg(canvas, name), pdf(canvas) if with_pdf else None


def pdf(canvas: Canvas) -> bytes:
    """The same at the width of a column, or of the text where panels stand side by side; fonts are embedded."""
    width = COLUMN if canvas.axes[0].get_subplotspec().get_gridspec().ncols == 1 else TEXT  # type: ignore[union-attr]
    shrink = 0.8
    canvas.set_size_inches(width, canvas.get_figheight() * shrink)
    for text in canvas.findobj(Text):
        assert isinstance(text, Text)
        text.set_fontsize(float(text.get_fontsize()) * shrink)
        text.set_fontfamily(fonts.families())
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        FigureCanvasPdf(canvas).print_pdf(file, metadata={"CreationDate": None})
    return file.getvalue()


def svg(canvas: Canvas, name: str) -> str:
    """The SVG of a canvas: no date, no link, the page's fonts; its ids depend on the name."""
    text = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        FigureCanvasSVG(canvas).print_svg(text, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    found = text.getvalue()
    found = found[found.index("<svg") :]
    found = re.sub(r"<metadata>.*?</metadata>", "", found, flags=re.DOTALL)
    return found.replace("'DejaVu Sans'", FONTS).strip()
