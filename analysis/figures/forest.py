"""A forest plot: one row for each difference with its interval, in groups, each mean below its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..tables import points
from .rendering import INK, QUIET, STYLE
from .style import ARM_COLOURS, FIRST, SECOND

WIDTH = 4.5  # inches: readable at the width of a phone
ROW_HEIGHT, MARGINS = 0.235, 0.95  # inches


@dataclass(frozen=True)
class ForestRow:
    """A difference of F1.

    Attributes:
        label: of the row.
        group: the heading above the row; may be empty.
        value: the difference; low and high are the ends of its interval, NaN without one.
        verdict: shown beside the label; may be empty.
        is_mean: whether the row is the mean of the rows above it in its group.
        is_effect: whether the row has the colour of the better side; other rows are grey.
    """

    label: str
    group: str
    value: float
    low: float
    high: float
    verdict: str = ""
    is_mean: bool = False
    is_effect: bool = False

    @property
    def full_label(self) -> str:
        """The label and the verdict."""
        return f"{self.label}:\n{self.verdict}" if self.verdict else self.label

    @property
    def text(self) -> str:
        """The difference and its interval in points."""
        interval = "" if np.isnan(self.low) else f" [{points(self.low)}, {points(self.high)}]"
        return f"{points(self.value)}{interval}"


def forest(rows: Sequence[ForestRow], first: str, second: str) -> Canvas:
    """Draw the differences of F1 (first minus second) in points, with 0 as a line.

    Args:
        rows: one or more; the rows of a group are neighbours.
        first, second: the names of the two sides.
    """
    headings: list[tuple[float, str]] = []
    positions: list[float] = []
    y = 0.0
    for group, members in groupby(rows, key=lambda row: row.group):
        if group:
            headings.append((y, group))
            y += 1
        for _ in members:
            positions.append(y)
            y += 1
        y += 0.4
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(WIDTH, MARGINS + ROW_HEIGHT * y))
        axis = canvas.subplots()
        for position, row in zip(positions, rows, strict=True):
            _draw_row(axis, position, row)
        axis.axvline(0, color=INK, linewidth=0.9)
        for position, group in headings:
            axis.annotate(
                group,
                (0, position),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=9,
                fontweight="bold",
                bbox={"facecolor": "#ffffff", "edgecolor": "none", "pad": 1},
            )
        axis.set_yticks(positions, [row.full_label for row in rows])
        _set_axes(axis, y)
        axis.set_xlabel(f"F1 points, {first} minus {second}")
        for text, side, shift in (
            (f"\u2190 {second} better", "right", -4),
            (f"{first} better \u2192", "left", 4),
        ):
            axis.annotate(
                text,
                (0, 1),
                (shift, 2),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha=side,
                fontsize=8,
            )
        return canvas


def _draw_row(axis: Axes, position: float, row: ForestRow) -> None:
    """Draw a marker with its interval, and the numbers at the right of the axes."""
    colour = ARM_COLOURS[FIRST if row.value > 0 else SECOND] if row.is_effect else QUIET
    if not np.isnan(row.low):
        width = 2.2 if row.is_mean else 1.2
        axis.plot([100 * row.low, 100 * row.high], [position] * 2, color=colour, linewidth=width)
    shape: dict[str, Any] = (
        {"marker": "D", "markersize": 6} if row.is_mean else {"marker": "o", "markersize": 4.5}
    )
    axis.plot([100 * row.value], [position], color=colour, **shape)
    axis.annotate(
        row.text,
        (1.02, position),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=8,
        fontweight="bold" if row.is_mean else "normal",
    )


def _set_axes(axis: Axes, height: float) -> None:
    axis.set_ylim(height - 0.5, -0.7)
    axis.tick_params(axis="y", labelcolor=INK)
    axis.tick_params(axis="y", length=0)
    axis.grid(visible=False, axis="y")
    axis.spines["left"].set_visible(False)
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, -1), max(high, 1))
    axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axis.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:+g}".replace("-", "\u2212") if value else "0")
    )
