"""Power laws of running time: exponents with standard errors, as a sentence, a table and a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill

import numpy as np

MIN_DIFFERENCE = 0.1
"""Smallest difference of two exponents that is mentioned: a factor of 1.07 at each doubling."""


@dataclass(frozen=True)
class Curve:
    """Median running times over the values of one variable."""

    title: str
    variable: str
    values: tuple[float, ...]
    seconds: tuple[float, ...]
    flops: tuple[float, ...] | None = None
    """Floating point operations, if they are counted."""

    @property
    def time_ratios(self) -> list[float]:
        """Times relative to the first."""
        return [seconds / self.seconds[0] for seconds in self.seconds]

    @property
    def flops_ratios(self) -> list[float] | None:
        """Operations relative to the first."""
        return None if self.flops is None else [flops / self.flops[0] for flops in self.flops]


def exponent(x: Sequence[float], y: Sequence[float]) -> tuple[float, float | None]:
    """The exponent b of y = a x^b, by least squares of log y on log x, and its standard error.

    The error is sqrt(sum of squared residuals / (n - 2) / sum of squared deviations of log x); None for two points.
    """
    logs, values = np.log(x), np.log(y)
    deviations = logs - logs.mean()
    slope = float(deviations @ values / (deviations @ deviations))
    if len(logs) < 3:
        return slope, None
    residuals = values - values.mean() - slope * deviations
    return slope, float(np.sqrt(residuals @ residuals / (len(logs) - 2) / (deviations @ deviations)))


def sentence(curve: Curve) -> str:
    """The growth of the time at each doubling, compared with that of the operations."""
    slope, error = exponent(curve.values, curve.seconds)
    spread = "" if error is None else f" ± {error:.2f}"
    text = f"Doubling the {curve.variable} takes {2**slope:.2f}x the time (exponent {slope:.2f}{spread})"
    if curve.flops is None:
        return f"{text}."
    flops_slope, _ = exponent(curve.values, curve.flops)
    text += f" and {2**flops_slope:.2f}x the operations (exponent {flops_slope:.2f})"
    if abs(slope - flops_slope) <= max(MIN_DIFFERENCE, 2 * (error or 0)):
        return f"{text}. Time grows as operations do."
    if slope < flops_slope:
        return f"{text}. Time grows more slowly: larger is more efficient."
    return f"{text}. Time grows faster: larger is less efficient."


def section(curve: Curve) -> list[str]:
    """Heading, table and sentence, as Markdown."""
    lines = [
        f"## {curve.title}, by {curve.variable}",
        "",
        f"| {curve.variable} | {' | '.join(f'{value:,.6g}' for value in curve.values)} |",
        f"|---|{'---:|' * len(curve.values)}",
        f"| time | {' | '.join(f'{ratio:.2f}' for ratio in curve.time_ratios)} |",
    ]
    if curve.flops_ratios is not None:
        lines.append(f"| operations | {' | '.join(f'{ratio:.2f}' for ratio in curve.flops_ratios)} |")
    return [*lines, "", sentence(curve), ""]


def figure(curves: Sequence[Curve], columns: int = 4) -> str:
    """An SVG with a panel for each curve: times with the fitted line, operations dashed, logarithmic axes."""
    from metapt.analysis.figures.rendering import to_svg  # type: ignore[import-not-found]
    from metapt.analysis.figures.style import ARM_COLOURS, QUIET, SECOND, drawing  # type: ignore[import-not-found]

    rows = math.ceil(len(curves) / columns)
    with drawing(rows, columns, 2.4 * rows) as (canvas, axes):
        for axis, curve in zip(axes.flat, curves, strict=False):
            points, ratios = np.array(curve.values), np.array(curve.time_ratios)
            slope, _ = exponent(curve.values, curve.time_ratios)
            level = np.exp(np.log(ratios).mean() - slope * np.log(points).mean())
            axis.plot(points, level * points**slope, color=ARM_COLOURS[SECOND], linewidth=1)
            axis.plot(points, ratios, "o", color=ARM_COLOURS[SECOND], markersize=4, label="time")
            if curve.flops_ratios is not None:
                axis.plot(points, curve.flops_ratios, "--", color=QUIET, linewidth=1, label="operations")
            axis.set_xscale("log", base=2)
            axis.set_yscale("log", base=2)
            axis.set_xticks(points, [f"{point:,g}" for point in curve.values])
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.minorticks_off()
            low, high = min(ratios), max([*ratios, *(curve.flops_ratios or [])])
            axis.set_ylim(min(low, 0.5) / 1.2, max(high, 2) * 1.2)
            axis.set_title(fill(curve.title, 30), fontsize=7.5)
            axis.set_xlabel(f"{curve.variable}; exponent {slope:.2f}", fontsize=7.5)
        for axis in axes.flat[len(curves) :]:
            axis.set_visible(False)
        axes.flat[0].legend(fontsize=7)
        return to_svg(canvas, "growth") + "\n"
