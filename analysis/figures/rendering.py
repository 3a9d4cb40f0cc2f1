"""From a matplotlib canvas to SVG, and to PDF on request, in other processes while the report is computed.

The backends are called directly, since `savefig` computes the layout twice.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from itertools import pairwise
from typing import Any

import matplotlib
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.text import Text

from ..parallel import pool

COLUMN_WIDTH, TEXT_WIDTH = 3.3, 6.8  # inches, of a paper with two columns
PDF_SCALE = 0.8  # of fonts and heights, relative to the SVG
INK, QUIET, GRID = "#22262a", "#6b7278", "#e3e5e7"
FONT = "DejaVu Sans"
PAGE_FONTS = "ui-sans-serif, system-ui, 'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', sans-serif"
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
    "font.family": FONT,
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "path.simplify_threshold": 0.3,  # points: a vertex nearer to the line through the others is left out
    "pdf.fonttype": 42,  # embedded TrueType: publishers reject Type 3
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": QUIET,
    "xtick.labelsize": 8.5,
    "ytick.color": QUIET,
    "ytick.labelsize": 8.5,
}


COORDINATES = re.compile(r'(?<= )(d|x|y)="([^"]*)"')
DECIMALS = re.compile(r"-?\d+\.\d+")
STYLE_ATTRIBUTE = re.compile(r' style="([^"]*)"')
REFERENCE = re.compile(r'(href="#|url\(#)(\w+)')
SUBPATH = re.compile(r"M([^Mz]*)(z?)")  # of a path of straight lines


def submit(name: str, draw: Callable[..., Canvas], *data: Any) -> Future[str]:
    """Let another process draw `draw(*data)`; the result will be its SVG, whose ids depend on the name."""
    return pool().submit(_svg, name, draw, *data)


def submit_pdf(draw: Callable[..., Canvas], *data: Any) -> Future[bytes]:
    """Let another process draw `draw(*data)`; the result will be its PDF."""
    return pool().submit(_pdf, draw, *data)


def _svg(name: str, draw: Callable[..., Canvas], *data: Any) -> str:
    return to_svg(draw(*data), name)


def _pdf(draw: Callable[..., Canvas], *data: Any) -> bytes:
    return to_pdf(draw(*data))


def to_svg(canvas: Canvas, name: str) -> str:
    """Return the SVG of a canvas, without date and links, in the fonts of the page; its ids depend on the name."""
    file = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        FigureCanvasSVG(canvas).print_svg(file, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return compact(text).strip()


def compact(svg: str) -> str:
    """Return an SVG of matplotlib in about half of its size, which looks the same.

    Coordinates are tenths of a point, those of lines relative to the point before. The font is named once, a style of
    several elements is a class, ids are short, and what has no effect is left out: indentation, rotations by 0, and ids that nothing
    refers to. Ids and classes are `i` or `s` and a number.
    """
    svg = COORDINATES.sub(_shortened, svg)
    svg = svg.replace("<svg ", f'<svg font-family="{PAGE_FONTS}" ', 1).replace(f" font-family: '{FONT}';", "")
    svg = re.sub(r' transform="rotate\(-?0 [^"]*\)"', "", svg)
    return re.sub(r"\n *(?=<)", "\n", _with_short_ids(_with_classes(svg)))


def _shortened(attribute: re.Match[str]) -> str:
    """An attribute with shorter coordinates."""
    name, value = attribute.groups()
    if name == "d" and re.fullmatch(r"[MLz\d\s.-]*", value):
        return f'd="{"".join(_relative(*part) for part in SUBPATH.findall(value))}"'
    digits = 2 if name == "d" else 1  # the curves of a marker are small
    value = DECIMALS.sub(lambda number: f"{float(number[0]):.{digits}f}".rstrip("0").rstrip("."), value)
    return f'{name}="{" ".join(value.split())}"'


def _relative(lines: str, end: str) -> str:
    """A part of a path, `x y L x y L x y`, with lines relative to their start; lines without length are left out."""
    tenths = [round(10 * float(number)) for number in lines.replace("L", " ").split()]
    points = list(zip(tenths[::2], tenths[1::2], strict=True))
    moves = [(x - before_x, y - before_y) for (before_x, before_y), (x, y) in pairwise(points)]
    moves = [move for move in moves if move != (0, 0)] or moves[:1]
    start, *rest = (f"{x / 10:g} {y / 10:g}" for x, y in (points[0], *moves))
    path = re.sub(r"(?<![\d.])0(?=\.)", "", f"M{start}{'l' if rest else ''}{' '.join(rest)}{end}")
    return re.sub(r" (?=-)", "", path)


def _with_classes(svg: str) -> str:
    """Make a style of several elements a class."""
    counts = Counter(STYLE_ATTRIBUTE.findall(svg))
    classes = {style: f"s{number}" for number, style in enumerate(counts) if counts[style] > 1}

    def attribute(found: re.Match[str]) -> str:
        return f' class="{classes[found[1]]}"' if found[1] in classes else found[0]

    rules = "".join(f".{name}{{{style}}}" for style, name in classes.items())
    return re.sub(
        r"<svg [^>]*>", rf"\g<0>\n<style>{rules}</style>", STYLE_ATTRIBUTE.sub(attribute, svg), count=1
    )


def _with_short_ids(svg: str) -> str:
    """Number the ids that something refers to, and leave out the others."""
    ids = {name: f"i{number}" for number, (_, name) in enumerate(REFERENCE.findall(svg))}
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{ids[found[1]]}"' if found[1] in ids else "", svg)
    return REFERENCE.sub(lambda found: found[1] + ids[found[2]], svg)


def to_pdf(canvas: Canvas) -> bytes:
    """Return the PDF of a canvas for a paper, with embedded fonts. Changes the size of the canvas and of its texts.

    A single axes gets the width of a column, axes side by side that of the text.
    """
    columns = canvas.axes[0].get_subplotspec().get_gridspec().ncols  # type: ignore[union-attr]
    canvas.set_size_inches(COLUMN_WIDTH if columns == 1 else TEXT_WIDTH, canvas.get_figheight() * PDF_SCALE)
    for text in canvas.findobj(Text):
        assert isinstance(text, Text)
        text.set_fontsize(float(text.get_fontsize()) * PDF_SCALE)
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        FigureCanvasPdf(canvas).print_pdf(file, metadata={"CreationDate": None})
    return file.getvalue()
