"""The figures of curves: pretraining, its episodes and dynamics, and fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ..load.collect import Collection
from ..load.records import FinetuneRun, PretrainRun, Setting
from ..load.schema import Dynamics
from ..sections.learning_dynamics import (
    ATTENTION,
    BUDGETS,
    FEED_FORWARD,
    edges,
    eval_losses_of,
    language_model_loss,
)
from ..stats.comparison import pairs
from ..stats.convergence import measured_first, smoothed
from .style import (
    COLOURS,
    FEW_POINTS,
    MARKERS,
    OTHER_COLOUR,
    QUIET,
    Curve,
    Figure,
    compact,
    distinct,
    drawing,
    figure,
    figure_legend,
    legend,
    lines,
    slug,
    thinned,
    title,
)

ENDS = {"start": ":", "end": "-"}
MEASURED: dict[str, Callable[[Dynamics], float | None]] = {
    "effective rank, attention": lambda item: item.rank(ATTENTION),
    "effective rank, feed-forward": lambda item: item.rank(FEED_FORWARD),
    "attention entropy": lambda item: item.entropy,
    "probe accuracy": lambda item: item.adapted("query"),
}


@dataclass(frozen=True)
class Pretraining:
    """The curves of a run by budget: loss, held-out perplexity, and where updates were skipped."""

    objective: str
    losses: Mapping[str, Curve]
    perplexities: Mapping[str, Curve]
    skipped: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Episodes:
    """The curves of a run: loss over the inner steps by part of training, accuracies over training."""

    inner: Mapping[str, np.ndarray]
    support: Curve
    query: Curve
    chance: float


@dataclass(frozen=True)
class Tuned:
    """The curves of the runs of one objective, and where each reached t90."""

    objective: str
    curves: Sequence[Curve]
    marks: np.ndarray


def pretraining(collection: Collection) -> list[Figure]:
    """Language-model loss and held-out perplexity over the four budgets; one figure for each scale and variant."""
    figures = []
    for (scale, label), runs in _by_model(collection.pretraining).items():
        name = slug("pretraining", scale, label)
        skipped = sum(len(run.skipped["step"]) for run in runs)
        caption = f"Pretraining of {title(scale, label)}: loss of the autoregressive steps (smoothed) and held-out perplexity (logarithmic axis), by four budgets; the loss of episodes is another quantity and not in it. One line a run. Crosses on the axis: {skipped} skipped update(s)."
        figures.append(figure(name, caption, runs, draw_pretraining, [_pretraining(run) for run in runs]))
    return figures


def _pretraining(run: PretrainRun) -> Pretraining:
    loss_axes, losses = language_model_loss(run)
    eval_axes, eval_losses = eval_losses_of(run)
    return Pretraining(
        run.objective,
        {budget: thinned(at, smoothed(losses)) for budget, at in loss_axes.items()},
        {budget: thinned(at, np.exp(eval_losses)) for budget, at in eval_axes.items()},
        {budget: run.skipped[field] for budget, field in BUDGETS.items()},
    )


def draw_pretraining(runs: Sequence[Pretraining]) -> Canvas:
    """A small cross on the axis for every skipped update."""
    with drawing(2, len(BUDGETS), 4.6, sharey="row") as (canvas, axes):
        for run in runs:
            for (above, below), budget in zip(axes.T, BUDGETS, strict=True):
                lines(above, [run.losses[budget]], run.objective)
                lines(below, [run.perplexities[budget]], run.objective)
                if len(skipped := run.skipped[budget]):
                    colour = COLOURS.get(run.objective, OTHER_COLOUR)
                    above.plot(skipped, np.full_like(skipped, 0.02), "x", color=colour, transform=above.get_xaxis_transform())  # fmt: skip
        for axis, budget in zip(axes[1], BUDGETS, strict=True):
            axis.set_xlabel(budget)
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=7))
            axis.yaxis.set_minor_locator(NullLocator())
            axis.yaxis.set_major_formatter(FuncFormatter(_perplexity))
        for axis in axes.flat:
            _few_ticks(axis)
        axes[0, 0].set_ylabel("LM loss (nats)")
        axes[1, 0].set_ylabel("held-out perplexity")
        figure_legend(canvas, axes[0, 0])
        return canvas


def _perplexity(value: float, _: int) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def _few_ticks(axis: Axes) -> None:
    axis.xaxis.set_major_locator(MaxNLocator(3))
    axis.xaxis.set_major_formatter(FuncFormatter(compact))


def episodes(collection: Collection) -> list[Figure]:
    """Support loss over the inner steps, support and query accuracy over training; one figure for each scale and variant."""
    figures = []
    trained = [run for run in collection.pretraining if len(run.episodes["step"])]
    for (scale, label), runs in _by_model(trained).items():
        name = slug("episodes", scale, label)
        caption = f"Episodes of {title(scale, label)}: support loss within the inner loop at the start and the end of training; accuracy by update (smoothed). One line of each kind a run."
        figures.append(figure(name, caption, runs, draw_episodes, [_episodes(run) for run in runs]))
    return figures


def _episodes(run: PretrainRun) -> Episodes:
    steps, losses = run.episodes["step"], run.episodes["support_loss_nats"]
    return Episodes(
        {part: losses[chosen].mean(axis=0) for part, chosen in edges(len(steps)).items()},
        thinned(steps, smoothed(run.episodes["support_accuracy"][:, -1])),
        thinned(steps, smoothed(run.episodes["query_accuracy"])),
        1 / run.n_way,
    )


def draw_episodes(runs: Sequence[Episodes]) -> Canvas:
    """Within the inner loop, and over training."""
    with drawing(1, 2, 2.9) as (canvas, axes):
        for run in runs:
            for part, curve in run.inner.items():
                axes[0, 0].plot(curve, ENDS[part], color=COLOURS["maml"], label=f"{part} of training")
            axes[0, 1].plot(*run.support, color=OTHER_COLOUR, label="support, after the inner loop")
            axes[0, 1].plot(*run.query, color=COLOURS["maml"], label="query")
            axes[0, 1].axhline(run.chance, color=QUIET, linestyle="--", linewidth=1, label="chance")
        axes[0, 0].set(xlabel="inner step", ylabel="support loss (nats)")
        axes[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0, 1].set(xlabel="updates", ylabel="accuracy")
        axes[0, 1].set_ylim(bottom=0)
        for axis in axes[0]:
            legend(axis)
        return canvas


def dynamics(collection: Collection) -> list[Figure]:
    """Effective ranks, attention entropy and probe accuracy over pretraining; one figure for each scale and variant."""
    measured = [run for run in collection.pretraining if len(run.dynamics) > 1]
    figures = []
    for (scale, label), runs in _by_model(measured).items():
        curves = {head: [(run.objective, _measured(run, head)) for run in runs] for head in MEASURED}
        name = slug("dynamics", scale, label)
        caption = (
            f"Learning dynamics of {title(scale, label)}, one line a run: proportional effective rank of attention and "
            "feed-forward matrices and entropy of attention (share of uniform), means over blocks; query accuracy of the probe episode after adaptation (MAML only)."
        )
        figures.append(figure(name, caption, runs, draw_dynamics, curves))
    return figures


def _measured(run: PretrainRun, head: str) -> Curve:
    """One of MEASURED by update, where it was measured."""
    points = [(item.step, value) for item in run.dynamics if (value := MEASURED[head](item)) is not None]
    steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return thinned(steps, values)


def draw_dynamics(curves: Mapping[str, Sequence[tuple[str, Curve]]]) -> Canvas:
    """A panel for each of MEASURED, a curve for each run that has it."""
    with drawing(1, len(curves), 2.8) as (canvas, axes):
        for axis, (head, found) in zip(axes[0], curves.items(), strict=True):
            for objective, curve in found:
                if len(curve[0]):
                    lines(axis, [curve], objective)
            axis.set(title=head, xlabel="updates")
            _few_ticks(axis)
        figure_legend(canvas, axes[0, 0])
        return canvas


def finetuning(collection: Collection) -> list[Figure]:
    """Fine-tuning loss of the pairs, with t90: a row for each source, a column for each tuning, one figure for each model."""
    by_model: dict[tuple[str, str, int | None], dict[Setting, list[tuple[FinetuneRun, FinetuneRun]]]] = {}
    for setting, both in pairs(collection).items():
        by_model.setdefault((setting.scale, setting.variant, setting.step), {})[setting] = both
    last = {key[:2]: key for key in sorted(by_model, key=lambda key: key[2] or 0)}
    figures = []
    for scale, label, step in last.values():
        settings = by_model[scale, label, step]
        sources, tunings = (distinct(getattr(s, part) for s in settings) for part in ("source", "tuning"))
        panels = {
            (setting.source, setting.tuning): [
                _tuned(runs) for runs in reversed(list(zip(*both, strict=True)))
            ]
            for setting, both in settings.items()
        }
        name = slug("finetuning", scale, label)
        caption = f"Fine-tuning loss of {title(scale, label)} (smoothed), one line a seed; the mark is t90 on the run's whole curve."
        shown = (run for both in settings.values() for pair in both for run in pair)
        figures.append(figure(name, caption, shown, draw_finetuning, panels, sources, tunings))
    return figures


def _tuned(runs: Sequence[FinetuneRun]) -> Tuned:
    curves = [smoothed(run.losses) for run in runs]
    reached = [measured_first(run, len(run.losses)).t90 for run in runs]
    marks = [(t90, curve[int(t90) - 1]) for t90, curve in zip(reached, curves, strict=True) if not np.isnan(t90)]  # fmt: skip
    thin = [thinned(np.arange(1, len(curve) + 1), curve, FEW_POINTS) for curve in curves]
    return Tuned(runs[0].objective, thin, np.reshape(marks, (-1, 2)))


def draw_finetuning(panels: Mapping[tuple[str, str], Sequence[Tuned]], sources: Sequence[str], tunings: Sequence[str]) -> Canvas:  # fmt: skip
    """A row for each source, a column for each tuning; what was not tuned stays empty."""
    with drawing(len(sources), len(tunings), 0.7 + 1.9 * len(sources), alike=True) as (canvas, axes):
        for axis in axes.flat:
            axis.set_visible(False)
        for (source, tuning), sides in panels.items():
            axis = axes[sources.index(source), tunings.index(tuning)]
            axis.set_visible(True)
            for side in sides:
                lines(axis, side.curves, side.objective)
                axis.plot(*side.marks.T, MARKERS[side.objective], color=COLOURS[side.objective], markersize=6, markeredgecolor="white")  # fmt: skip
            axis.set_title(f"{source}, {tuning}")
        for axis in axes[:, 0]:
            axis.set_ylabel("loss (nats/word)")
        for axis in axes[-1]:
            axis.set_xlabel("step")
        figure_legend(canvas, next(axis for axis in axes.flat if axis.get_visible()))
        return canvas


def _by_model(runs: Sequence[PretrainRun]) -> dict[tuple[str, str], list[PretrainRun]]:
    found: dict[tuple[str, str], list[PretrainRun]] = {}
    for run in runs:
        found.setdefault((run.scale, run.variant), []).append(run)
    return found
