"""How fine-tuning and transfer change over pretraining, for models with several fine-tuned checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ..figures import scaling
from ..figures.style import Curve, Figure, colour, drawing, figure, figure_legend, slug, thinned
from ..load.records import FinetuneRun, Setting
from ..run_refs import counted, distinct
from ..stats.comparison import averages, averages_table, balanced, unbalanced
from ..stats.convergence import smoothed
from ..tables import Column
from .base import ReportData, Section

MAX_MODELS = 4  # a grid of all scales, sources and tunings would give hundreds of figures
MIN_CHECKPOINTS = 3  # for a curve
LINE_STYLES = ("-", "--", ":", "-.")

DEFINITION = (
    "Checkpoints: each point is a mean over the same seeds; runs of a checkpoint or seed that not every objective has are excluded. "
    "The fan shows the smoothed fine-tuning losses of all fine-tuned checkpoints of an objective, truncated to the shortest run: "
    "the median over checkpoints and seeds, and the interquartile range. Final loss: the last smoothed value."
)
Model = tuple[str, str, str, str]
"""scale, variant, tuning, source"""
Metric = Callable[[FinetuneRun], float]


@dataclass(frozen=True)
class MetricCurve:
    """A metric by checkpoint, mean over seeds, of one objective and, if given, of one entity type."""

    objective: str
    steps: Sequence[int]
    means: Sequence[float]
    style: str
    entity_type: str


def section(data: ReportData) -> Section:
    """Curves over checkpoints of the models with enough checkpoints, and which runs are needed for more."""
    collection = data.collection
    comparisons = balanced(data.target_comparisons, "step")
    figures = scaling.by_step(collection, comparisons)
    text: list[str] = unbalanced(data.target_comparisons, "step") if figures else []
    means = (
        averages(comparisons, lambda setting: (setting.scale, setting.variant, setting.step))
        if figures
        else []
    )
    heads = [Column("scale"), Column("variant"), Column("step")]
    table = averages_table("by_step", "Mean F1 on the target sets by pretraining step", heads, means)
    by_model = _runs_by_model(collection.finetuning)
    models = complete_models(collection.finetuning)
    for model, runs in models_to_plot(models).items():
        sets = shared_sets(runs, collection.target_sets())
        figures += [loss_fan(model, runs), final_metrics(model, runs, sets), *f1_by_type(model, runs, sets)]
        text += _exclusions(model, by_model[model], runs)
    text += unplotted_note(models)
    if not figures:
        text = [
            f"Needed: fine-tuning runs from at least {MIN_CHECKPOINTS} checkpoints of one pretraining run, with the "
            "same seeds for every checkpoint (see `grid=checkpoints`)."
        ]
    return Section("steps", "Pretraining checkpoints", text, figures, [table])


def complete_models(runs: Sequence[FinetuneRun]) -> dict[Model, list[FinetuneRun]]:
    """The runs of each model that form a complete block with enough checkpoints."""
    blocks = {model: complete_block(found) for model, found in _runs_by_model(runs).items()}
    return {model: block for model, block in blocks.items() if block}


def _runs_by_model(runs: Sequence[FinetuneRun]) -> dict[Model, list[FinetuneRun]]:
    models: dict[Model, list[FinetuneRun]] = {}
    for run in runs:
        if run.setting.step is not None:
            models.setdefault(_model(run.setting), []).append(run)
    return models


def complete_block(runs: Sequence[FinetuneRun]) -> list[FinetuneRun]:
    """The largest block of seeds and checkpoints that all objectives have, with at least MIN_CHECKPOINTS checkpoints.

    If the objectives have no such block in common, the largest block of a single objective; empty if there is none.
    """
    return _largest_block(runs) or max(map(_largest_block, _by_objective(runs).values()), key=len, default=[])


def _largest_block(runs: Sequence[FinetuneRun]) -> list[FinetuneRun]:
    """The largest block of all objectives; seeds are added in the order of their number of checkpoints."""
    by_objective = _by_objective(runs).values()
    steps: dict[tuple[int | None, int], set[int]] = {}
    for seeds in distinct(run.seeds for run in runs):
        per_objective = ({_step(run) for run in found if run.seeds == seeds} for found in by_objective)
        steps[seeds] = set.intersection(*per_objective)
    ranked = sorted(steps, key=lambda seeds: -len(steps[seeds]))
    best: list[FinetuneRun] = []
    for size in range(1, len(ranked) + 1):
        common = set.intersection(*(steps[seeds] for seeds in ranked[:size]))
        block = [run for run in runs if run.seeds in ranked[:size] and _step(run) in common]
        if len(common) >= MIN_CHECKPOINTS and len(block) > len(best):
            best = block
    return best


def _step(run: FinetuneRun) -> int:
    return run.setting.step or 0


def shared_sets(runs: Sequence[FinetuneRun], names: Sequence[str]) -> list[str]:
    """The sets on which all runs were evaluated with the same sentences."""
    golds = {name: [run.sets[name].gold for run in runs if name in run.sets] for name in names}
    return [name for name, found in golds.items() if len(found) == len(runs) and len(set(found)) == 1]


def _exclusions(model: Model, runs: Sequence[FinetuneRun], plotted: Sequence[FinetuneRun]) -> list[str]:
    """Which runs the curves of a model exclude, and which runs a comparison needs."""
    text = []
    if excluded := len(runs) - len(plotted):
        verb = "is" if excluded == 1 else "are"
        text.append(
            f"{model_title(model)}: {counted(excluded, 'run')} {verb} in no curve, because not every objective and seed has "
            "that checkpoint."
        )
    if absent := [objective for objective in _by_objective(runs) if objective not in _by_objective(plotted)]:
        text.append(
            f"Needed to compare objectives over checkpoints of {model_title(model)}: the same checkpoints of {absent[0]} with "
            "identical fine-tuning."
        )
    return text


def models_to_plot(models: Mapping[Model, list[FinetuneRun]]) -> dict[Model, list[FinetuneRun]]:
    """The MAX_MODELS models with the most runs."""
    return dict(sorted(models.items(), key=lambda item: -len(item[1]))[:MAX_MODELS])


def unplotted_note(models: Mapping[Model, list[FinetuneRun]]) -> list[str]:
    """A sentence on the models that are not plotted, if there are any."""
    if len(models) <= MAX_MODELS:
        return []
    return [
        f"The plots show {MAX_MODELS} of the {len(models)} models with several fine-tuned checkpoints: those with the most "
        "runs. The tables include all."
    ]


def loss_fan(model: Model, runs: Sequence[FinetuneRun]) -> Figure:
    """Plot the median and the quartiles of the fine-tuning loss over checkpoints."""
    bands = {}
    for objective, found in _by_objective(runs).items():
        length = min(len(run.losses) for run in found)
        curves = np.stack([smoothed(run.losses)[:length] for run in found])
        quartiles = np.quantile(curves, [0.25, 0.5, 0.75], axis=0)
        bands[objective] = thinned(np.arange(1, length + 1), quartiles)
    caption = (
        f"Fine-tuning loss over {_checkpoints(runs)} ({model_title(model)}): median and interquartile range."
    )
    return figure(slug("fan", *model), caption, runs, draw_loss_fan, bands)


def draw_loss_fan(bands: Mapping[str, Curve]) -> Canvas:
    """Draw the quartiles, [3, steps], of each objective over fine-tuning steps."""
    with drawing(1, 1, 3.0) as (canvas, axes):
        axis = axes[0, 0]
        for objective, (steps, (low, middle, high)) in bands.items():
            axis.fill_between(steps, low, high, color=colour(objective), alpha=0.2, linewidth=0)
            axis.plot(steps, middle, color=colour(objective), label=objective)
        axis.set(xlabel="fine-tuning step", ylabel="loss (nats/word)")
        figure_legend(canvas, axis)
        return canvas


def final_metrics(model: Model, runs: Sequence[FinetuneRun], sets: Sequence[str]) -> Figure:
    """Plot the final loss, and F1 on the development set and on each target set, by checkpoint."""
    metrics: dict[str, Metric] = {"final loss (nats/word)": _final_loss, "dev F1": _dev_f1}
    metrics |= {f"{name} F1": _set_f1(name) for name in sets}
    panels = {
        title: [_curve(found, metric, objective) for objective, found in _by_objective(runs).items()]
        for title, metric in metrics.items()
    }
    caption = f"Final fine-tuning loss and F1 by checkpoint ({model_title(model)}), {_checkpoints(runs)}, mean over seeds."
    return figure(slug("finals", *model), caption, runs, draw_final_metrics, panels)


def _final_loss(run: FinetuneRun) -> float:
    return float(smoothed(run.losses)[-1]) if len(run.losses) else np.nan


def _dev_f1(run: FinetuneRun) -> float:
    return np.nan if run.result.dev_f1 is None else run.result.dev_f1


def _set_f1(name: str) -> Metric:
    return lambda run: run.sets[name].f1


def _type_f1(name: str, entity_type: str) -> Metric:
    return lambda run: run.sets[name].per_type.get(entity_type, 0.0)


def draw_final_metrics(panels: Mapping[str, Sequence[MetricCurve]]) -> Canvas:
    """Draw a panel for each metric, with a y axis from 0."""
    with drawing(1, len(panels), 2.8) as (canvas, axes):
        for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
            _draw(axis, title, curves)
            axis.set_ylim(bottom=0)
        figure_legend(canvas, axes[0, 0])
        return canvas


def f1_by_type(model: Model, runs: Sequence[FinetuneRun], sets: Sequence[str]) -> list[Figure]:
    """Plot F1 of each entity type by checkpoint, for the types that a set has."""
    panels = {}
    for name in sets:
        types = sorted({span[0] for sentence in runs[0].sets[name].gold.spans for span in sentence})
        curves = [
            _curve(found, _type_f1(name, entity_type), objective, style, entity_type)
            for objective, found in _by_objective(runs).items()
            for entity_type, style in zip(types, cycle(LINE_STYLES), strict=False)
        ]
        if curves:
            panels[name] = curves
    if not panels:
        return []
    caption = (
        f"F1 by entity type and checkpoint ({model_title(model)}), {_checkpoints(runs)}, mean over seeds. Types without a gold "
        "span in a set are omitted."
    )
    return [figure(slug("types", *model), caption, runs, draw_f1_by_type, panels)]


def draw_f1_by_type(panels: Mapping[str, Sequence[MetricCurve]]) -> Canvas:
    """Draw a panel for each set."""
    with drawing(1, len(panels), 2.8, sharey=True) as (canvas, axes):
        for axis, (name, curves) in zip(axes[0], panels.items(), strict=True):
            _draw(axis, name, curves)
        axes[0, 0].set_ylabel("F1")
        figure_legend(canvas, axes[0, 0])
        return canvas


def _draw(axis: Axes, title: str, curves: Sequence[MetricCurve]) -> None:
    for curve in curves:
        label = f"{curve.objective} {curve.entity_type}".strip()
        axis.plot(
            curve.steps, curve.means, curve.style, color=colour(curve.objective), label=label, marker="."
        )
    axis.set_title(title)
    axis.set_xlabel("pretraining updates")


def _curve(
    runs: Sequence[FinetuneRun], metric: Metric, objective: str, style: str = "-", entity_type: str = ""
) -> MetricCurve:
    steps = sorted(set(map(_step, runs)))
    means = [float(np.mean([metric(run) for run in runs if _step(run) == step])) for step in steps]
    return MetricCurve(objective, steps, means, style, entity_type)


def _by_objective(runs: Sequence[FinetuneRun]) -> dict[str, list[FinetuneRun]]:
    objectives = distinct(run.objective for run in runs)
    return {objective: [run for run in runs if run.objective == objective] for objective in objectives}


def _model(setting: Setting) -> Model:
    return (setting.scale, setting.variant, setting.tuning, setting.source)


def model_title(model: Model) -> str:
    """The name of a model in captions."""
    return ", ".join(part for part in model if part)


def _checkpoints(runs: Sequence[FinetuneRun]) -> str:
    return counted(len({run.setting.step for run in runs}), "checkpoint")
