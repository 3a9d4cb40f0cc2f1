"""How a time grows: the exponent of a power law with its standard error, in words, as a table and as a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill

import numpy as np

LEAST_DIFFERENCE = 0.1  # of two exponents that is worth a word: a factor of 1.07 at each doubling


@dataclass(frozen=True)
class Curve:
    """Median seconds of `what` at points of `by`, and the operations that are counted there (absent: none are)."""

    what: str
    by: str
    points: tuple[float, ...]
    seconds: tuple[float, ...]
    operations: tuple[float, ...] | None = None

    @property
    def ratios(self) -> list[float]:
        """Times, that of the first point being 1."""
        return [each / self.seconds[0] for each in self.seconds]

    @property
    def expected(self) -> list[float] | None:
        """Operations, those of the first point being 1."""
        return None if self.operations is None else [each / self.operations[0] for each in self.operations]


def exponent(x: Sequence[float], y: Sequence[float]) -> tuple[float, float | None]:
    """b of y = a x^b, by least squares of log y on log x, and its standard error (None for two points).

    The error is sqrt(sum of squared residuals / (n - 2) / sum of squared deviations of log x).
    """
    logs, values = np.log(x), np.log(y)
    deviations = logs - logs.mean()
    slope = float(deviations @ values / (deviations @ deviations))
    if len(logs) < 3:
        return slope, None
    residuals = values - values.mean() - slope * deviations
    return slope, float(np.sqrt(residuals @ residuals / (len(logs) - 2) / (deviations @ deviations)))


def sentence(curve: Curve) -> str:
    """What the exponent means, and whether operations alone would have told it."""
    found, error = exponent(curve.points, curve.seconds)
    spread = "" if error is None else f" ± {error:.2f}"
    told = f"Twice the {curve.by}, {2**found:.2f} times the time (exponent {found:.2f}{spread})"
    if curve.operations is None:
        return f"{told}."
    counted, _ = exponent(curve.points, curve.operations)
    told += f"; operations: {2**counted:.2f} times ({counted:.2f})"
    if abs(found - counted) <= max(LEAST_DIFFERENCE, 2 * (error or 0)):
        return f"{told}. The time grows as they do."
    if found < counted:
        return f"{told}. The time grows more slowly: larger is more efficient."
    return f"{told}. The time grows faster: larger is less efficient."


def section(curve: Curve) -> list[str]:
    """Heading, table and sentence, as Markdown."""
    lines = [
        f"## {curve.what}, by {curve.by}",
        "",
        f"| {curve.by} | {' | '.join(f'{point:,.6g}' for point in curve.points)} |",
        f"|---|{'---:|' * len(curve.points)}",
        f"| time | {' | '.join(f'{ratio:.2f}' for ratio in curve.ratios)} |",
    ]
    if curve.expected is not None:
        lines.append(f"| operations | {' | '.join(f'{ratio:.2f}' for ratio in curve.expected)} |")
    return [*lines, "", sentence(curve), ""]


def figure(curves: Sequence[Curve], columns: int = 4) -> str:
    """An SVG with a panel for each curve: times with the fitted line, operations dashed; both axes in powers."""
    from analysis.figures.rendering import to_svg
    from analysis.figures.style import COLOURS, QUIET, drawing

    rows = math.ceil(len(curves) / columns)
    with drawing(rows, columns, 2.4 * rows) as (canvas, axes):
        for axis, curve in zip(axes.flat, curves, strict=False):
            points, ratios = np.array(curve.points), np.array(curve.ratios)
            slope, _ = exponent(curve.points, curve.ratios)
            level = np.exp(np.log(ratios).mean() - slope * np.log(points).mean())
            axis.plot(points, level * points**slope, color=COLOURS["vanilla"], linewidth=1)
            axis.plot(points, ratios, "o", color=COLOURS["vanilla"], markersize=4, label="time")
            if curve.expected is not None:
                axis.plot(points, curve.expected, "--", color=QUIET, linewidth=1, label="operations")
            axis.set_xscale("log", base=2)
            axis.set_yscale("log", base=2)
            axis.set_xticks(points, [f"{point:,g}" for point in curve.points])
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.minorticks_off()
            low, high = min(ratios), max([*ratios, *(curve.expected or [])])
            axis.set_ylim(min(low, 0.5) / 1.2, max(high, 2) * 1.2)
            axis.set_title(fill(curve.what, 30), fontsize=7.5)
            axis.set_xlabel(f"{curve.by}; exponent {slope:.2f}", fontsize=7.5)
        for axis in axes.flat[len(curves) :]:
            axis.set_visible(False)
        axes.flat[0].legend(fontsize=7)
        return to_svg(canvas, "growth") + "\n"
