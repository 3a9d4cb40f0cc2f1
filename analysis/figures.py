"""The figures, as SVG text. Blue squares are vanilla, vermilion circles MAML (Okabe and Ito's palette), throughout."""

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
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from analysis.collect import Collection
from analysis.comparison import NAMES, Average, Comparison, averages, pairs
from analysis.convergence import measure, smoothed
from analysis.dynamics import BUDGETS, edges, heldout, language_model_loss
from analysis.records import FinetuneRun, PretrainRun, Setting
from analysis.significance import Estimate

WIDTH = 9.4
INK, QUIET, GRID = "#22262a", "#6b7278", "#e3e5e7"
COLOURS = {"vanilla": "#0072B2", "maml": "#D55E00"}
OTHER_COLOUR = "#009E73"
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
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": QUIET,
    "xtick.labelsize": 8.5,
    "ytick.color": QUIET,
    "ytick.labelsize": 8.5,
}
MAX_POINTS = 400
T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """An SVG and its words: `caption` stands under it, `name` is the file name without its ending."""

    name: str
    caption: str
    svg: str

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


def svg(canvas: Canvas, name: str) -> str:
    """The SVG of a canvas: no date, no link, ids that are unique on the page, the page's fonts."""
    text = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        canvas.savefig(
            text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    found = text.getvalue()
    found = found[found.index("<svg") :]
    found = re.sub(r"<metadata>.*?</metadata>", "", found, flags=re.DOTALL)
    found = re.sub(r'\bid="', f'id="{name}-', found)
    found = re.sub(r'href="#', f'href="#{name}-', found)
    found = re.sub(r"url\(#", f"url(#{name}-", found)
    return found.replace("'DejaVu Sans'", FONTS).strip()


def scale_curve(collection: Collection, found: Sequence[Comparison]) -> list[Figure]:
    """F1 by number of parameters for each regime, and the relative gain; one figure for each variant."""
    figures = []
    for label in _distinct(item.setting.label for item in found):
        sizes = collection.sizes(label)
        chosen = [item for item in found if item.setting.label == label]
        regimes = _distinct(item.setting.regime for item in chosen)
        means = averages(chosen, lambda setting: (setting.regime, setting.scale))
        with drawing(1, len(regimes) + 1, 3.1) as (canvas, axes):
            for axis, regime in zip(axes[0], regimes, strict=False):
                part = [item for item in means if item.key[0] == regime]
                _scale_panel(axis, [sizes[str(item.key[1])] for item in part], part)
                axis.set_title(f"{regime}{f', {label}' if label else ''}")
            high = max(axis.get_ylim()[1] for axis in axes[0, :-1])
            for axis in axes[0, :-1]:
                axis.set_ylim(0, max(high, 0.01))
                axis.yaxis.set_major_locator(MaxNLocator(6))
            axes[0, 0].set_ylabel("micro-F1")
            _figure_legend(canvas, axes[0, 0])
            _gain_panel(axes[0, -1], averages(chosen, lambda setting: (setting.scale,)), sizes)
            name = _slug("scale_curve", label)
            figures.append(Figure(name, _scale_caption(collection, label), svg(canvas, name)))
    return figures


def _scale_caption(collection: Collection, label: str) -> str:
    variant = f" Variant {label}." if label else ""
    return (
        f"Mean micro-F1 on {', '.join(collection.target_sets())} by scale and regime, with 95 % intervals, and the gain of "
        f"MAML relative to vanilla over all regimes.{variant}"
    )


def _scale_panel(axis: Axes, parameters: Sequence[int], part: Sequence[Average]) -> None:
    for shift, objective in ((0.97, "vanilla"), (1.03, "maml")):
        estimates = [getattr(item, objective) for item in part]
        x = [count * shift for count in parameters]
        _with_intervals(axis, x, estimates, objective, line=True)
    _scale_axis(axis, parameters, [str(item.key[1]) for item in part])


def _gain_panel(axis: Axes, means: Sequence[Average], sizes: dict[str, int]) -> None:
    gains = [item.maml.relative_to(item.vanilla) for item in means]
    parameters = [sizes[str(item.key[0])] for item in means]
    _with_intervals(axis, parameters, gains, "maml", line=True)
    axis.axhline(0, color=QUIET, linewidth=1)
    axis.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{100 * value:+.3g} %" if value else "0 %")
    )
    axis.set_title("MAML relative to vanilla")
    _scale_axis(axis, parameters, [str(item.key[0]) for item in means])


def _scale_axis(axis: Axes, parameters: Sequence[int], scales: Sequence[str]) -> None:
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(list(parameters)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(
        list(parameters),
        [f"{scale}\n{_millions(count)}" for scale, count in zip(scales, parameters, strict=True)],
    )
    axis.set_xlim(min(parameters) / 1.7, max(parameters) * 1.7)


def by_source(collection: Collection, found: Sequence[Comparison]) -> list[Figure]:
    """F1 by fine-tuning source, a panel for each scale; one figure for each variant."""
    figures = []
    for label in _distinct(item.setting.label for item in found):
        chosen = [item for item in found if item.setting.label == label]
        scales = [
            scale for scale in collection.sizes() if any(item.setting.scale == scale for item in chosen)
        ]
        sources = _distinct(item.setting.source for item in chosen)
        with drawing(1, len(scales), 1.3 + 0.42 * len(sources), sharey=True) as (canvas, axes):
            for axis, scale in zip(axes[0], scales, strict=True):
                part = [item for item in chosen if item.setting.scale == scale]
                means = {item.key[0]: item for item in averages(part, lambda setting: (setting.source,))}
                for shift, objective in ((-0.14, "vanilla"), (0.14, "maml")):
                    rows = [index + shift for index, source in enumerate(sources) if source in means]
                    estimates = [getattr(means[source], objective) for source in sources if source in means]
                    _with_intervals(axis, rows, estimates, objective, upright=False)
                axis.set_title(_title(scale, label))
                axis.set_xlabel("micro-F1")
                axis.set_yticks(range(len(sources)), sources)
                axis.grid(visible=False, axis="y")
            right = max(axis.get_xlim()[1] for axis in axes[0])
            for axis in axes[0]:
                axis.set_xlim(0, right)
                axis.xaxis.set_major_locator(MaxNLocator(4))
            axes[0, 0].set_ylim(len(sources) - 0.5, -0.5)
            _figure_legend(canvas, axes[0, 0])
            name = _slug("by_source", label)
            caption = f"Mean micro-F1 on {', '.join(collection.target_sets())} by fine-tuning source, over regimes, with 95 % intervals."
            figures.append(Figure(name, caption, svg(canvas, name)))
    return figures


def by_step(collection: Collection, found: Sequence[Comparison]) -> list[Figure]:
    """F1 by pretraining step, where several checkpoints of a scale were tuned."""
    figures = []
    for scale, label in _distinct((item.setting.scale, item.setting.label) for item in found):
        chosen = [item for item in found if (item.setting.scale, item.setting.label) == (scale, label)]
        means = averages(chosen, lambda setting: (setting.step or 0,))
        if len(means) < 2:
            continue
        means.sort(key=_step)
        with drawing(1, 1, 3.0) as (canvas, axes):
            axis = axes[0, 0]
            for objective in NAMES:
                estimates = [getattr(item, objective) for item in means]
                _with_intervals(axis, [_step(item) for item in means], estimates, objective, line=True)
            axis.set_ylim(bottom=0)
            axis.set(xlabel="pretraining updates", ylabel="micro-F1")
            _legend(axis)
            name = _slug("by_step", scale, label)
            caption = f"Mean micro-F1 on {', '.join(collection.target_sets())} by pretraining step of the checkpoint that was tuned ({_title(scale, label)})."
            figures.append(Figure(name, caption, svg(canvas, name)))
    return figures


def pretraining(collection: Collection) -> list[Figure]:
    """Language-model loss and held-out perplexity over the four budgets; one figure for each scale and variant."""
    figures = []
    for (scale, label), runs in _by_model(collection.pretraining).items():
        with drawing(2, len(BUDGETS), 4.6, sharey="row") as (canvas, axes):
            for run in runs:
                _pretraining_run(axes, run)
            for axis, budget in zip(axes[1], BUDGETS, strict=True):
                axis.set_xlabel(budget)
                axis.set_yscale("log")
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=7))
                axis.yaxis.set_minor_locator(NullLocator())
                axis.yaxis.set_major_formatter(
                    FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:g}")
                )
            for axis in axes.flat:
                axis.xaxis.set_major_locator(MaxNLocator(3))
                axis.xaxis.set_major_formatter(FuncFormatter(_compact))
            axes[0, 0].set_ylabel("LM loss (nats)")
            axes[1, 0].set_ylabel("held-out perplexity")
            _figure_legend(canvas, axes[0, 0])
            name = _slug("pretraining", scale, label)
            caption = f"Pretraining of {_title(scale, label)}: loss of the autoregressive steps (smoothed) and held-out perplexity (logarithmic axis), by four budgets."
            figures.append(Figure(name, caption, svg(canvas, name)))
    return figures


def _pretraining_run(axes: np.ndarray, run: PretrainRun) -> None:
    loss_axes, losses = language_model_loss(run)
    heldout_axes, heldout_losses = heldout(run)
    for column, budget in enumerate(BUDGETS):
        _line(axes[0, column], loss_axes[budget], smoothed(losses), run.objective)
        _line(axes[1, column], heldout_axes[budget], np.exp(heldout_losses), run.objective)


def episodes(collection: Collection) -> list[Figure]:
    """Support loss over the inner steps, support and query accuracy over training; one figure for each scale and variant."""
    figures = []
    for (scale, label), runs in _by_model(
        [run for run in collection.pretraining if len(run.episodes["step"])]
    ).items():
        with drawing(1, 2, 2.9) as (canvas, axes):
            for run in runs:
                steps = run.episodes["step"]
                for (part, chosen), style in zip(edges(len(steps)).items(), (":", "-"), strict=True):
                    curve = run.episodes["support_loss_nats"][chosen].mean(axis=0)
                    axes[0, 0].plot(curve, style, color=COLOURS["maml"], label=f"{part} of training")
                after = run.episodes["support_accuracy"][:, -1]
                axes[0, 1].plot(
                    *_thinned(steps, smoothed(after)),
                    color=OTHER_COLOUR,
                    label="support, after the inner loop",
                )
                axes[0, 1].plot(
                    *_thinned(steps, smoothed(run.episodes["query_accuracy"])),
                    color=COLOURS["maml"],
                    label="query",
                )
                axes[0, 1].axhline(1 / run.n_way, color=QUIET, linestyle="--", linewidth=1, label="chance")
            axes[0, 0].set(xlabel="inner step", ylabel="support loss (nats)")
            axes[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
            axes[0, 1].set(xlabel="updates", ylabel="accuracy")
            axes[0, 1].set_ylim(bottom=0)
            for axis in axes[0]:
                _legend(axis)
            name = _slug("episodes", scale, label)
            caption = f"Episodes of {_title(scale, label)}: support loss within the inner loop at the start and the end of training; accuracy by update (smoothed)."
            figures.append(Figure(name, caption, svg(canvas, name)))
    return figures


def finetuning(collection: Collection) -> list[Figure]:
    """Fine-tuning loss of the pairs, with t90: a row for each source, a column for each regime, one figure for each model."""
    by_model: dict[tuple[str, str, int | None], dict[Setting, list[tuple[FinetuneRun, FinetuneRun]]]] = {}
    for setting, both in pairs(collection).items():
        by_model.setdefault((setting.scale, setting.label, setting.step), {})[setting] = both
    last = {key[:2]: key for key in sorted(by_model, key=lambda key: key[2] or 0)}
    figures = []
    for scale, label, step in last.values():
        settings = by_model[scale, label, step]
        sources, regimes = (_distinct(getattr(s, part) for s in settings) for part in ("source", "regime"))
        with drawing(len(sources), len(regimes), 0.7 + 1.9 * len(sources)) as (canvas, axes):
            for axis in axes.flat:
                axis.set_visible(False)
            for setting, both in settings.items():
                axis = axes[sources.index(setting.source), regimes.index(setting.regime)]
                axis.set_visible(True)
                _finetuning_panel(axis, both)
                axis.set_title(f"{setting.source}, {setting.regime}")
            for axis in axes[:, 0]:
                axis.set_ylabel("loss (nats/word)")
            for axis in axes[-1]:
                axis.set_xlabel("step")
            _figure_legend(canvas, next(axis for axis in axes.flat if axis.get_visible()))
            name = _slug("finetuning", scale, label)
            caption = f"Fine-tuning loss of {_title(scale, label)} (smoothed), one line a seed; the mark is t90 on the run's whole curve."
            figures.append(Figure(name, caption, svg(canvas, name)))
    return figures


def _finetuning_panel(axis: Axes, both: Sequence[tuple[FinetuneRun, FinetuneRun]]) -> None:
    for run in (run for pair in both for run in reversed(pair)):
        steps, curve = np.arange(1, len(run.losses) + 1), smoothed(run.losses)
        _line(axis, steps, curve, run.objective)
        t90 = measure(run.losses).t90
        if not np.isnan(t90):
            axis.plot(
                t90,
                curve[int(t90) - 1],
                MARKERS[run.objective],
                color=COLOURS[run.objective],
                markersize=6,
                markeredgecolor="white",
            )


def _with_intervals(
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


def _line(axis: Axes, x: np.ndarray, y: np.ndarray, objective: str) -> None:
    colour = COLOURS.get(objective, OTHER_COLOUR)
    axis.plot(*_thinned(x, y), color=colour, label=NAMES.get(objective, objective), alpha=0.9)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most MAX_POINTS points, the first and the last among them."""
    index = (
        np.unique(np.linspace(0, len(x) - 1, min(len(x), MAX_POINTS)).astype(int))
        if len(x)
        else np.array([], int)
    )
    return x[index], y[index]


def _legend(axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    if unique:
        axis.legend(  # above the axes, where no curve can pass
            unique.values(), unique.keys(), loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=len(unique)
        )


def _figure_legend(canvas: Canvas, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    canvas.legend(unique.values(), unique.keys(), loc="outside upper right", ncols=len(unique))


def _by_model(runs: Sequence[PretrainRun]) -> dict[tuple[str, str], list[PretrainRun]]:
    found: dict[tuple[str, str], list[PretrainRun]] = {}
    for run in runs:
        found.setdefault((run.scale, run.label), []).append(run)
    return found


def _distinct(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))


def _title(scale: str, label: str) -> str:
    return f"{scale}, {label}" if label else scale


def _slug(*parts: str) -> str:
    return "-".join(re.sub(r"[^A-Za-z0-9_]+", "_", part) for part in parts if part)


def _step(item: Average) -> int:
    """The pretraining step by which an average was taken."""
    step = item.key[0]
    assert isinstance(step, int)
    return step


def _millions(count: float) -> str:
    return f"{count / 1e6:.0f} M" if count >= 1e7 else f"{count / 1e6:.1f} M"


def _compact(value: float, _: int) -> str:
    """12,000,000 as 12M; from a billion on in powers of ten."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if size <= abs(value) < size * 1000:
            return f"{value / size:g}{unit}"
    return f"{value:g}" if abs(value) < 1e9 else f"{value:.1e}".replace("e+", "e").replace(".0e", "e")
