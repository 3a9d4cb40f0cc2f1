"""The figures that go with the tables: scale curve, sources, checkpoints, pretraining, fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from analysis import published
from analysis.collect import Collection
from analysis.comparison import Average, Comparison, averages, pairs
from analysis.convergence import measured_first, smoothed
from analysis.drawing import (
    COLOURS,
    MARKERS,
    OTHER_COLOUR,
    QUIET,
    Figure,
    compact,
    distinct,
    drawing,
    figure_legend,
    finished,
    legend,
    line,
    lines,
    millions,
    slug,
    thinned,
    title,
    with_intervals,
)
from analysis.dynamics import BUDGETS, FEED_FORWARD, edges, heldout, language_model_loss
from analysis.provenance import NAMES, Runs, counted, runs_of
from analysis.records import FinetuneRun, PretrainRun, Setting


def scale_curve(collection: Collection, found: Sequence[Comparison]) -> list[Figure]:
    """F1 by number of parameters for each regime, and the relative gain; one figure for each variant."""
    figures = []
    for label in distinct(item.setting.label for item in found):
        sizes = collection.sizes(label)
        chosen = [item for item in found if item.setting.label == label]
        regimes = distinct(item.setting.regime for item in chosen)
        means = averages(chosen, lambda setting: (setting.regime, setting.scale))
        with drawing(1, len(regimes) + 1, 3.1) as (canvas, axes):
            for axis, regime in zip(axes[0], regimes, strict=False):
                part = [item for item in means if item.key[0] == regime]
                _scale_panel(axis, [sizes[str(item.key[1])] for item in part], part)
                axis.set_title(f"{regime}{f', {label}' if label else ''}")
                _published_marks(
                    axis, tuple(collection.target_sets()), [sizes[str(item.key[1])] for item in part]
                )
            high = max(axis.get_ylim()[1] for axis in axes[0, :-1])
            for axis in axes[0, :-1]:
                axis.set_ylim(0, max(high, 0.01))
                axis.yaxis.set_major_locator(MaxNLocator(6))
            axes[0, 0].set_ylabel("micro-F1")
            figure_legend(canvas, axes[0, 0])
            _gain_panel(axes[0, -1], averages(chosen, lambda setting: (setting.scale,)), sizes)
            name = slug("scale_curve", label)
            figures.append(finished(canvas, name, _scale_caption(collection, label), _behind(chosen)))
    return figures


def _scale_caption(collection: Collection, label: str) -> str:
    variant = f" Variant {label}." if label else ""
    return (
        f"Mean micro-F1 on {', '.join(collection.target_sets())} by scale and regime, with 95 % intervals, and the gain of "
        f"MAML relative to vanilla over all regimes.{variant} Hollow marks, where there are any, are published figures over both regimes (see there)."
    )


def _scale_panel(axis: Axes, parameters: Sequence[int], part: Sequence[Average]) -> None:
    for shift, objective in ((0.97, "vanilla"), (1.03, "maml")):
        estimates = [getattr(item, objective) for item in part]
        x = [count * shift for count in parameters]
        with_intervals(axis, x, estimates, objective, line=True)
    _scale_axis(axis, parameters, [str(item.key[1]) for item in part])


def _published_marks(axis: Axes, sets: tuple[str, ...], parameters: Sequence[int]) -> None:
    """Hollow marks for the published means at the scales that are drawn, where they are about the same sets."""
    found = published.curve(sets)
    points = [point for point in (found["points"] if found else ()) if point["parameters"] in parameters]
    for objective in NAMES if points else ():
        at = [point["parameters"] for point in points]
        values = [point[objective] for point in points]
        axis.plot(at, values, MARKERS[objective], color=COLOURS[objective], fillstyle="none", label=f"{NAMES[objective]}, published")  # fmt: skip


def _gain_panel(axis: Axes, means: Sequence[Average], sizes: dict[str, int]) -> None:
    gains = [item.maml.relative_to(item.vanilla) for item in means]
    parameters = [sizes[str(item.key[0])] for item in means]
    with_intervals(axis, parameters, gains, "maml", line=True)
    axis.axhline(0, color=QUIET, linewidth=1)
    axis.yaxis.set_major_formatter(FuncFormatter(_gain))
    axis.set_title("MAML relative to vanilla")
    _scale_axis(axis, parameters, [str(item.key[0]) for item in means])


def _gain(value: float, _: int) -> str:
    return f"{100 * value:+.3g} %" if value else "0 %"


def _perplexity(value: float, _: int) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def _scale_axis(axis: Axes, parameters: Sequence[int], scales: Sequence[str]) -> None:
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(list(parameters)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(
        list(parameters),
        [f"{scale}\n{millions(count)}" for scale, count in zip(scales, parameters, strict=True)],
    )
    axis.set_xlim(min(parameters) / 1.7, max(parameters) * 1.7)


def _behind(found: Sequence[Comparison]) -> Runs:
    return runs_of(*(item.runs for item in found))


def by_source(collection: Collection, found: Sequence[Comparison]) -> list[Figure]:
    """F1 by fine-tuning source, a panel for each scale; one figure for each variant."""
    figures = []
    for label in distinct(item.setting.label for item in found):
        chosen = [item for item in found if item.setting.label == label]
        scales = [
            scale for scale in collection.sizes() if any(item.setting.scale == scale for item in chosen)
        ]
        sources = distinct(item.setting.source for item in chosen)
        with drawing(1, len(scales), 1.3 + 0.42 * len(sources), sharey=True) as (canvas, axes):
            for axis, scale in zip(axes[0], scales, strict=True):
                part = [item for item in chosen if item.setting.scale == scale]
                means = {item.key[0]: item for item in averages(part, lambda setting: (setting.source,))}
                for shift, objective in ((-0.14, "vanilla"), (0.14, "maml")):
                    rows = [index + shift for index, source in enumerate(sources) if source in means]
                    estimates = [getattr(means[source], objective) for source in sources if source in means]
                    with_intervals(axis, rows, estimates, objective, upright=False)
                axis.set_title(title(scale, label))
                axis.set_xlabel("micro-F1")
                axis.set_yticks(range(len(sources)), sources)
                axis.grid(visible=False, axis="y")
            right = max(axis.get_xlim()[1] for axis in axes[0])
            for axis in axes[0]:
                axis.set_xlim(0, right)
                axis.xaxis.set_major_locator(MaxNLocator(4))
            axes[0, 0].set_ylim(len(sources) - 0.5, -0.5)
            figure_legend(canvas, axes[0, 0])
            name = slug("by_source", label)
            caption = f"Mean micro-F1 on {', '.join(collection.target_sets())} by fine-tuning source{f' ({label})' if label else ''}, over {' and '.join(distinct(item.setting.regime for item in chosen))}, with 95 % intervals."
            figures.append(finished(canvas, name, caption, _behind(chosen)))
    return figures


def by_step(collection: Collection, found: Sequence[Comparison]) -> list[Figure]:
    """F1 by pretraining step, where several checkpoints of a scale were tuned."""
    figures = []
    for scale, label in distinct((item.setting.scale, item.setting.label) for item in found):
        chosen = [item for item in found if (item.setting.scale, item.setting.label) == (scale, label)]
        means = averages(chosen, lambda setting: (setting.step or 0,))
        if len(means) < 2:
            continue
        means.sort(key=_step)
        with drawing(1, 1, 3.0) as (canvas, axes):
            axis = axes[0, 0]
            for objective in NAMES:
                estimates = [getattr(item, objective) for item in means]
                with_intervals(axis, [_step(item) for item in means], estimates, objective, line=True)
            axis.set_ylim(bottom=0)
            axis.set(xlabel="pretraining updates", ylabel="micro-F1")
            legend(axis)
            name = slug("by_step", scale, label)
            caption = f"Mean micro-F1 on {', '.join(collection.target_sets())} by pretraining step of the checkpoint that was tuned ({title(scale, label)}), {counted(len(means), 'checkpoint')}, with 95 % intervals."
            figures.append(finished(canvas, name, caption, _behind(chosen)))
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
                axis.yaxis.set_major_formatter(FuncFormatter(_perplexity))
            for axis in axes.flat:
                axis.xaxis.set_major_locator(MaxNLocator(3))
                axis.xaxis.set_major_formatter(FuncFormatter(compact))
            axes[0, 0].set_ylabel("LM loss (nats)")
            axes[1, 0].set_ylabel("held-out perplexity")
            figure_legend(canvas, axes[0, 0])
            name = slug("pretraining", scale, label)
            skipped = sum(len(run.skipped["step"]) for run in runs)
            caption = f"Pretraining of {title(scale, label)}: loss of the autoregressive steps (smoothed) and held-out perplexity (logarithmic axis), by four budgets; the loss of episodes is another quantity and not in it. One line a run. Crosses on the axis: {skipped} skipped update(s)."
            figures.append(finished(canvas, name, caption, runs))
    return figures


def _pretraining_run(axes: np.ndarray, run: PretrainRun) -> None:
    """The curves of one run; a small cross on the axis for every skipped update."""
    loss_axes, losses = language_model_loss(run)
    heldout_axes, heldout_losses = heldout(run)
    for column, budget in enumerate(BUDGETS):
        line(axes[0, column], loss_axes[budget], smoothed(losses), run.objective)
        line(axes[1, column], heldout_axes[budget], np.exp(heldout_losses), run.objective)
        skipped = run.skipped[BUDGETS[budget]]
        if len(skipped):
            bottom = axes[0, column].get_xaxis_transform()
            colour = COLOURS.get(run.objective, OTHER_COLOUR)
            axes[0, column].plot(skipped, np.full_like(skipped, 0.02), "x", color=colour, transform=bottom)


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
                    *thinned(steps, smoothed(after)),
                    color=OTHER_COLOUR,
                    label="support, after the inner loop",
                )
                axes[0, 1].plot(
                    *thinned(steps, smoothed(run.episodes["query_accuracy"])),
                    color=COLOURS["maml"],
                    label="query",
                )
                axes[0, 1].axhline(1 / run.n_way, color=QUIET, linestyle="--", linewidth=1, label="chance")
            axes[0, 0].set(xlabel="inner step", ylabel="support loss (nats)")
            axes[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
            axes[0, 1].set(xlabel="updates", ylabel="accuracy")
            axes[0, 1].set_ylim(bottom=0)
            for axis in axes[0]:
                legend(axis)
            name = slug("episodes", scale, label)
            caption = f"Episodes of {title(scale, label)}: support loss within the inner loop at the start and the end of training; accuracy by update (smoothed). One line of each kind a run."
            figures.append(finished(canvas, name, caption, runs))
    return figures


def dynamics(collection: Collection) -> list[Figure]:
    """Effective ranks, attention entropy and probe accuracy over pretraining; one figure for each scale and variant."""
    measured = [run for run in collection.pretraining if len(run.dynamics) > 1]
    figures = []
    for (scale, label), runs in _by_model(measured).items():
        with drawing(1, len(MEASURED), 2.8) as (canvas, axes):
            for axis, (head, value) in zip(axes[0], MEASURED.items(), strict=True):
                for run in runs:
                    points = [(item["step"], value(item)) for item in run.dynamics if value(item) is not None]
                    if points:
                        steps, values = np.array(points, dtype=np.float64).T
                        line(axis, steps, values, run.objective)
                axis.set(title=head, xlabel="updates")
                axis.xaxis.set_major_locator(MaxNLocator(3))
                axis.xaxis.set_major_formatter(FuncFormatter(compact))
            figure_legend(canvas, axes[0, 0])
            name = slug("dynamics", scale, label)
            caption = (
                f"Learning dynamics of {title(scale, label)}, one line a run: proportional effective rank of attention and "
                "feed-forward matrices and entropy of attention (share of uniform), means over blocks; query accuracy of the probe episode after adaptation (MAML only)."
            )
            figures.append(finished(canvas, name, caption, runs))
    return figures


MEASURED = {
    "effective rank, attention": lambda item: np.mean([item["effective_rank"][kind] for kind in "qkvo"]),
    "effective rank, feed-forward": lambda item: np.mean(
        [item["effective_rank"][kind] for kind in FEED_FORWARD]
    ),
    "attention entropy": lambda item: np.mean(item["attention_entropy_share"]),
    "probe accuracy": lambda item: (item.get("probe_query_accuracy") or [None])[-1],
}


def finetuning(collection: Collection) -> list[Figure]:
    """Fine-tuning loss of the pairs, with t90: a row for each source, a column for each regime, one figure for each model."""
    by_model: dict[tuple[str, str, int | None], dict[Setting, list[tuple[FinetuneRun, FinetuneRun]]]] = {}
    for setting, both in pairs(collection).items():
        by_model.setdefault((setting.scale, setting.label, setting.step), {})[setting] = both
    last = {key[:2]: key for key in sorted(by_model, key=lambda key: key[2] or 0)}
    figures = []
    for scale, label, step in last.values():
        settings = by_model[scale, label, step]
        sources, regimes = (distinct(getattr(s, part) for s in settings) for part in ("source", "regime"))
        with drawing(len(sources), len(regimes), 0.7 + 1.9 * len(sources), alike=True) as (canvas, axes):
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
            figure_legend(canvas, next(axis for axis in axes.flat if axis.get_visible()))
            name = slug("finetuning", scale, label)
            caption = f"Fine-tuning loss of {title(scale, label)} (smoothed), one line a seed; the mark is t90 on the run's whole curve."
            shown = (run for both in settings.values() for pair in both for run in pair)
            figures.append(finished(canvas, name, caption, shown))
    return figures


def _finetuning_panel(axis: Axes, both: Sequence[tuple[FinetuneRun, FinetuneRun]]) -> None:
    for runs in reversed(list(zip(*both, strict=True))):
        curves = [smoothed(run.losses) for run in runs]
        lines(axis, [(np.arange(1, len(curve) + 1), curve) for curve in curves], runs[0].objective)
        reached = [measured_first(run, len(run.losses)).t90 for run in runs]
        marks = [(t90, curve[int(t90) - 1]) for t90, curve in zip(reached, curves, strict=True) if not np.isnan(t90)]  # fmt: skip
        axis.plot(*np.reshape(marks, (-1, 2)).T, MARKERS[runs[0].objective], color=COLOURS[runs[0].objective], markersize=6, markeredgecolor="white")  # fmt: skip


def _by_model(runs: Sequence[PretrainRun]) -> dict[tuple[str, str], list[PretrainRun]]:
    found: dict[tuple[str, str], list[PretrainRun]] = {}
    for run in runs:
        found.setdefault((run.scale, run.label), []).append(run)
    return found


def _step(item: Average) -> int:
    """The pretraining step by which an average was taken."""
    step = item.key[0]
    assert isinstance(step, int)
    return step
