"""Figures of curves: pretraining, its episodes and learning dynamics, and fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ..load.collect import Collection
from ..load.contrasts import Contrast
from ..load.records import FinetuneRun, PretrainRun, Setting
from ..run_refs import distinct
from ..stats.budgets import BUDGETS, UPDATES, eval_losses, lm_losses, per_update, spent_at, start_and_end
from ..stats.convergence import measure_start, smoothed
from ..stats.dynamics_means import MEASURES
from .style import (
    ARM_COLOURS,
    ARM_MARKERS,
    FIRST,
    MAX_POINTS_SMALL,
    OTHER_COLOUR,
    QUIET,
    SECOND,
    Curve,
    Figure,
    colour,
    compact,
    drawing,
    figure,
    figure_legend,
    legend,
    lines,
    slug,
    thinned,
    title,
)

LINE_STYLES = {"start": ":", "end": "-"}
"""by part of training"""


@dataclass(frozen=True)
class PretrainingCurves:
    """The curves of a run, by label of the axis: training loss, held-out perplexity, and the positions of skipped updates."""

    objective: str
    losses: Mapping[str, Curve]
    perplexities: Mapping[str, Curve]
    skipped: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class EpisodeCurves:
    """The episodes of a run.

    Attributes:
        inner_losses: support loss over the inner steps, by part of training.
        support, query: accuracy over training.
        chance: accuracy of a random answer.
    """

    inner_losses: Mapping[str, np.ndarray]
    support: Curve
    query: Curve
    chance: float


@dataclass(frozen=True)
class FinetuningCurves:
    """The loss curves of the runs of one arm, and the points (t90, loss) [curves with t90, 2]."""

    arm: str
    name: str
    curves: Sequence[Curve]
    t90_points: np.ndarray


def pretraining(collection: Collection) -> list[Figure]:
    """Show language-model loss and held-out perplexity over the budgets; one figure for each model."""
    figures = []
    for (scale, variant), runs in _by_model(collection.pretraining).items():
        skipped = sum(len(run.skipped["step"]) for run in runs)
        caption = (
            f"Pretraining of {title(scale, variant)}: loss of the language-model updates (smoothed) and held-out perplexity "
            "(logarithmic axis), by budget; budgets of which every update spends the same share an axis. The losses of episodes are "
            "not included. One line per run. "
            f"Crosses on the axis: {skipped} skipped update(s)."
        )
        name = slug("pretraining", scale, variant)
        labels = _axis_labels(runs)
        curves = [_pretraining_curves(run, labels) for run in runs]
        figures.append(figure(name, caption, runs, draw_pretraining, curves))
    return figures


def _axis_labels(runs: Sequence[PretrainRun]) -> dict[str, str]:
    """The label of the axis of each budget; the budgets of which every update spends the same share that of updates."""
    same = per_update(runs)
    amounts = [f"1 = {_amount(value)} {budget}" for budget, value in same.items() if budget != UPDATES]
    others = {budget: budget for budget in BUDGETS if budget not in same}
    return {UPDATES: "\n".join([UPDATES, *amounts])} | others


def _amount(value: float) -> str:
    return f"{value:,.0f}" if 100 <= value < 1e9 else f"{value:.3g}"


def _pretraining_curves(run: PretrainRun, labels: Mapping[str, str]) -> PretrainingCurves:
    loss_axes, losses = lm_losses(run)
    eval_axes, held_out_losses = eval_losses(run)
    skipped = spent_at(run, run.skipped)
    return PretrainingCurves(
        run.objective,
        {label: thinned(loss_axes[budget], smoothed(losses)) for budget, label in labels.items()},
        {label: thinned(eval_axes[budget], np.exp(held_out_losses)) for budget, label in labels.items()},
        {label: skipped[budget] for budget, label in labels.items()},
    )


def draw_pretraining(runs: Sequence[PretrainingCurves]) -> Canvas:
    """Draw a column for each axis: loss above, perplexity below."""
    labels = list(runs[0].losses)
    with drawing(2, len(labels), 4.6, sharey="row") as (canvas, axes):
        for run in runs:
            for (loss_axis, perplexity_axis), label in zip(axes.T, labels, strict=True):
                lines(loss_axis, [run.losses[label]], run.objective)
                lines(perplexity_axis, [run.perplexities[label]], run.objective)
                _mark_skipped(loss_axis, run.skipped[label], run.objective)
        for axis, label in zip(axes[1], labels, strict=True):
            axis.set_xlabel(label)
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


def _mark_skipped(axis: Axes, skipped: np.ndarray, objective: str) -> None:
    """Plot a small cross near the x-axis for each skipped update."""
    if len(skipped):
        heights = np.full_like(skipped, 0.02)
        axis.plot(skipped, heights, "x", color=colour(objective), transform=axis.get_xaxis_transform())


def _perplexity(value: float, _: int) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def _few_ticks(axis: Axes) -> None:
    axis.xaxis.set_major_locator(MaxNLocator(3))
    axis.xaxis.set_major_formatter(FuncFormatter(compact))


def episodes(collection: Collection) -> list[Figure]:
    """Show support loss over the inner steps, and accuracies over training; one figure for each model."""
    figures = []
    with_episodes = [run for run in collection.pretraining if len(run.episodes["step"])]
    for (scale, variant), runs in _by_model(with_episodes).items():
        caption = (
            f"Episodes of {title(scale, variant)}: support loss within the inner loop at the start and the end of training; "
            "accuracy by update (smoothed). One line of each kind per run."
        )
        name = slug("episodes", scale, variant)
        figures.append(figure(name, caption, runs, draw_episodes, [_episode_curves(run) for run in runs]))
    return figures


def _episode_curves(run: PretrainRun) -> EpisodeCurves:
    steps, losses = run.episodes["step"], run.episodes["support_loss_nats"]
    return EpisodeCurves(
        {part: losses[chosen].mean(axis=0) for part, chosen in start_and_end(len(steps)).items()},
        thinned(steps, smoothed(run.episodes["support_accuracy"][:, -1])),
        thinned(steps, smoothed(run.episodes["query_accuracy"])),
        1 / run.n_way,
    )


def draw_episodes(runs: Sequence[EpisodeCurves]) -> Canvas:
    """Draw the inner loop on the left and accuracies over training on the right."""
    with drawing(1, 2, 2.9) as (canvas, axes):
        inner, over_training = axes[0]
        for run in runs:
            for part, losses in run.inner_losses.items():
                inner.plot(losses, LINE_STYLES[part], color=ARM_COLOURS[FIRST], label=f"{part} of training")
            over_training.plot(*run.support, color=OTHER_COLOUR, label="support, after the inner loop")
            over_training.plot(*run.query, color=ARM_COLOURS[FIRST], label="query")
            over_training.axhline(run.chance, color=QUIET, linestyle="--", linewidth=1, label="chance")
        inner.set(xlabel="inner step", ylabel="support loss (nats)")
        inner.xaxis.set_major_locator(MaxNLocator(integer=True))
        over_training.set(xlabel="updates", ylabel="accuracy")
        over_training.set_ylim(bottom=0)
        for axis in axes[0]:
            legend(axis)
        return canvas


def dynamics(collection: Collection) -> list[Figure]:
    """Show effective ranks, attention entropy and probe accuracy over pretraining; one figure for each model."""
    measured = [run for run in collection.pretraining if len(run.dynamics) > 1]
    figures = []
    for (scale, variant), runs in _by_model(measured).items():
        curves = {head: [(run.objective, _dynamics_curve(run, head)) for run in runs] for head in MEASURES}
        curves = {head: found for head, found in curves.items() if any(len(x) for _, (x, _) in found)}
        caption = (
            f"Learning dynamics of {title(scale, variant)}, one line per run: proportional effective rank of attention and "
            "feed-forward matrices and attention entropy (fraction of uniform), means over blocks; query accuracy of the "
            "probe episode after adaptation (objectives with episodes only)."
        )
        name = slug("dynamics", scale, variant)
        figures.append(figure(name, caption, runs, draw_dynamics, curves))
    return figures


def _dynamics_curve(run: PretrainRun, head: str) -> Curve:
    """Return one of MEASURES by update, where it was measured."""
    values = [(item.step, MEASURES[head](item)) for item in run.dynamics]
    points = [point for point in values if point[1] is not None]
    return thinned(*np.array(points, dtype=np.float64).reshape(-1, 2).T)


def draw_dynamics(curves: Mapping[str, Sequence[tuple[str, Curve]]]) -> Canvas:
    """Draw a panel for each measure, with a curve for each run that has it."""
    with drawing(1, len(curves), 2.8) as (canvas, axes):
        for axis, (head, of_runs) in zip(axes[0], curves.items(), strict=True):
            for objective, curve in of_runs:
                if len(curve[0]):
                    lines(axis, [curve], objective)
            axis.set(title=head, xlabel="updates")
            _few_ticks(axis)
        figure_legend(canvas, axes[0, 0])
        return canvas


def finetuning(
    contrast: Contrast, pairs: Mapping[Setting, Sequence[tuple[FinetuneRun, FinetuneRun]]]
) -> list[Figure]:
    """Show the fine-tuning losses of the pairs, with t90, at the last step of each model; one figure for each model."""
    by_model: dict[tuple[str, str, int | None], dict[Setting, Sequence[tuple[FinetuneRun, FinetuneRun]]]] = {}
    for setting, setting_pairs in pairs.items():
        model = (setting.scale, setting.variant, setting.step)
        by_model.setdefault(model, {})[setting] = setting_pairs
    last = {key[:2]: key for key in sorted(by_model, key=lambda key: key[2] or 0)}
    figures = []
    for scale, variant, step in last.values():
        settings = by_model[scale, variant, step]
        sources = distinct(setting.source for setting in settings)
        tunings = distinct(setting.tuning for setting in settings)
        panels = {
            (setting.source, setting.tuning): _curves_of_pairs(contrast, setting_pairs)
            for setting, setting_pairs in settings.items()
        }
        caption = (
            f"Fine-tuning loss of {title(scale, variant)} (smoothed), one line per seed. The marker is t90 of the run's "
            "whole curve."
        )
        runs = (run for setting_pairs in settings.values() for pair in setting_pairs for run in pair)
        name = slug("finetuning", scale, variant)
        figures.append(figure(name, caption, runs, draw_finetuning, panels, sources, tunings))
    return figures


def _curves_of_pairs(
    contrast: Contrast, setting_pairs: Sequence[tuple[FinetuneRun, FinetuneRun]]
) -> list[FinetuningCurves]:
    """Return the curves of the second arm, then those of the first."""
    first, second = zip(*setting_pairs, strict=True)
    return [
        _finetuning_curves(SECOND, contrast.second, second),
        _finetuning_curves(FIRST, contrast.first, first),
    ]


def _finetuning_curves(arm: str, name: str, runs: Sequence[FinetuneRun]) -> FinetuningCurves:
    curves = [smoothed(run.losses) for run in runs]
    times = [measure_start(run, len(run.losses)).t90 for run in runs]
    points = [
        (t90, curve[int(t90) - 1]) for t90, curve in zip(times, curves, strict=True) if not np.isnan(t90)
    ]
    thin = [thinned(np.arange(1, len(curve) + 1), curve, MAX_POINTS_SMALL) for curve in curves]
    return FinetuningCurves(arm, name, thin, np.reshape(points, (-1, 2)))


def draw_finetuning(
    panels: Mapping[tuple[str, str], Sequence[FinetuningCurves]],
    sources: Sequence[str],
    tunings: Sequence[str],
) -> Canvas:
    """Draw a row for each source and a column for each tuning; missing combinations stay empty."""
    with drawing(len(sources), len(tunings), 0.7 + 1.9 * len(sources)) as (canvas, axes):
        for axis in axes.flat:
            axis.set_visible(False)
        for (source, tuning), arms in panels.items():
            axis = axes[sources.index(source), tunings.index(tuning)]
            axis.set_visible(True)
            axis.set_title(f"{source}, {tuning}")
            for item in arms:
                lines(axis, item.curves, item.name, ARM_COLOURS[item.arm])
                axis.plot(
                    *item.t90_points.T,
                    ARM_MARKERS[item.arm],
                    color=ARM_COLOURS[item.arm],
                    markersize=6,
                    markeredgecolor="white",
                )
        for axis in axes[:, 0]:
            axis.set_ylabel("loss (nats/word)")
        for axis in axes[-1]:
            axis.set_xlabel("step")
        figure_legend(canvas, next(axis for axis in axes.flat if axis.get_visible()))
        return canvas


def _by_model(runs: Sequence[PretrainRun]) -> dict[tuple[str, str], list[PretrainRun]]:
    """Return the runs by scale and variant."""
    by_model: dict[tuple[str, str], list[PretrainRun]] = {}
    for run in runs:
        by_model.setdefault((run.scale, run.variant), []).append(run)
    return by_model
