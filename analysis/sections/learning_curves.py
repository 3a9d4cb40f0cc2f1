"""How tuning and transfer change over pretraining, where several checkpoints of a model were tuned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ..figures import scaling
from ..figures.style import COLOURS, Curve, Figure, distinct, drawing, figure, figure_legend, slug, thinned
from ..load.records import FinetuneRun, Setting
from ..stats.comparison import averages, averages_table, balanced, unbalanced
from ..stats.convergence import smoothed
from ..stats.run_refs import NAMES, counted
from ..tables import Column
from .base import Section, Study

MOST_DRAWN = 4  # models; a grid of all scales, sources and tunings would make hundreds of figures
LEAST = 3  # checkpoints, below which there is no curve over them
STYLES = ("-", "--", ":", "-.")

DEFINITION = (
    "Checkpoints: each point is a mean over the same seeds; runs of a checkpoint or seed that not every objective has are left out. "
    "The fan shows the smoothed fine-tuning losses of all tuned checkpoints of an objective, cut to the shortest: the "
    "median over checkpoints (and seeds) and the band between their quartiles. Final loss: the last smoothed value."
)
Model = tuple[str, str, str, str]


@dataclass(frozen=True)
class Means:
    """A figure of the runs of one objective by checkpoint, mean over seeds; of one entity type, if it has a name."""

    objective: str
    steps: Sequence[int]
    means: Sequence[float]
    style: str
    kind: str


def section(study: Study) -> Section:
    """Curves over checkpoints of the models with enough of them, and what is missing for more."""
    collection = study.collection
    steps = balanced(study.on_targets, "step")
    drawn = scaling.by_step(collection, steps)
    means = averages(steps, lambda setting: (setting.scale, setting.variant, setting.step)) if drawn else []
    heads = [Column("scale"), Column("variant"), Column("step")]
    table = averages_table("by_step", "Mean F1 on the target sets by pretraining step", heads, means)
    text = unbalanced(study.on_targets, "step") if drawn else []
    tuned = _by_model(collection.finetuning)
    models = _complete(tuned)
    for model, runs in most_tuned(models).items():
        sets = shared_sets(runs, collection.target_sets())
        drawn += [fan(model, runs), finals(model, runs, sets), *by_type(model, runs, sets)]
        text += _missing(model, tuned[model], runs)
    text += undrawn(models)
    if len(drawn) == 0:
        text = [f"Needed: fine-tuning runs from at least {LEAST} checkpoints of one pretraining run, of the same seeds for every checkpoint (grid=checkpoints)."]  # fmt: skip
    return Section("steps", "Pretraining checkpoints", text, drawn, [table])


def by_model(found: Sequence[FinetuneRun]) -> dict[Model, list[FinetuneRun]]:
    """The runs of each (scale, variant, tuning, source) that make a complete block of enough checkpoints."""
    return _complete(_by_model(found))


def _complete(models: Mapping[Model, list[FinetuneRun]]) -> dict[Model, list[FinetuneRun]]:
    blocks = {model: complete(runs) for model, runs in models.items()}
    return {model: runs for model, runs in blocks.items() if runs}


def _by_model(found: Sequence[FinetuneRun]) -> dict[Model, list[FinetuneRun]]:
    models: dict[Model, list[FinetuneRun]] = {}
    for run in found:
        if run.setting.step is not None and run.objective in NAMES:
            models.setdefault(_model(run.setting), []).append(run)
    return models


def complete(runs: Sequence[FinetuneRun]) -> list[FinetuneRun]:
    """The largest block of seeds and checkpoints that all objectives have, of at least LEAST checkpoints.

    Where they have none in common, the largest block of a single objective; empty where there is none either.
    """
    return _block(runs) or max(map(_block, _by_objective(runs).values()), key=len, default=[])


def _block(runs: Sequence[FinetuneRun]) -> list[FinetuneRun]:
    """The largest block of all objectives, seeds being taken in the order of how many checkpoints they have."""
    objectives = _by_objective(runs).values()
    steps: dict[tuple[int | None, int], set[int]] = {}
    for seeds in distinct(run.seeds for run in runs):
        each = ({_step(run) for run in chosen if run.seeds == seeds} for chosen in objectives)
        steps[seeds] = set.intersection(*each)
    ranked = sorted(steps, key=lambda seeds: -len(steps[seeds]))
    best: list[FinetuneRun] = []
    for size in range(1, len(ranked) + 1):
        common = set.intersection(*(steps[seeds] for seeds in ranked[:size]))
        block = [run for run in runs if run.seeds in ranked[:size] and _step(run) in common]
        if len(common) >= LEAST and len(block) > len(best):
            best = block
    return best


def _step(run: FinetuneRun) -> int:
    return run.setting.step or 0


def shared_sets(runs: Sequence[FinetuneRun], names: Sequence[str]) -> list[str]:
    """The sets of which all runs were scored on the same sentences."""
    golds = {name: [run.sets[name].gold for run in runs if name in run.sets] for name in names}
    return [name for name, found in golds.items() if len(found) == len(runs) and len(set(found)) == 1]


def _missing(model: Model, tuned: Sequence[FinetuneRun], shown: Sequence[FinetuneRun]) -> list[str]:
    """What the curves of a model leave out, and what they would need."""
    text = []
    if left := len(tuned) - len(shown):
        text.append(f"Of {model_title(model)}, {counted(left, 'run')} {'is' if left == 1 else 'are'} in no curve: not every objective and seed has their checkpoint.")  # fmt: skip
    if absent := [name for objective, name in NAMES.items() if objective not in _by_objective(shown)]:
        text.append(f"Needed for a comparison over checkpoints of {model_title(model)}: the same checkpoints of {absent[0]}, tuned alike.")  # fmt: skip
    return text


def most_tuned(models: Mapping[Model, list[FinetuneRun]]) -> dict[Model, list[FinetuneRun]]:
    """The models that are drawn: where there are more than MOST_DRAWN, those with the most runs."""
    return dict(sorted(models.items(), key=lambda item: -len(item[1]))[:MOST_DRAWN])


def undrawn(models: Mapping[Model, list[FinetuneRun]]) -> list[str]:
    """A sentence on the models that are not drawn, if there are any."""
    if len(models) <= MOST_DRAWN:
        return []
    return [f"Drawn for {MOST_DRAWN} of the {len(models)} models of which several checkpoints were tuned, those with the most runs; the tables have all."]  # fmt: skip


def fan(model: Model, runs: Sequence[FinetuneRun]) -> Figure:
    """Median and quartiles of the fine-tuning loss over checkpoints."""
    bands = {}
    for objective, chosen in _by_objective(runs).items():
        length = min(len(run.losses) for run in chosen)
        curves = np.stack([smoothed(run.losses)[:length] for run in chosen])
        quartiles = np.quantile(curves, [0.25, 0.5, 0.75], axis=0)
        bands[objective] = thinned(np.arange(1, length + 1), quartiles)
    caption = (
        f"Fine-tuning loss over {_checkpoints(runs)} ({model_title(model)}): median and interquartile band."
    )
    return figure(slug("fan", *model), caption, runs, draw_fan, bands)


def draw_fan(bands: Mapping[str, Curve]) -> Canvas:
    """By objective: the quartiles [3, steps] over steps."""
    with drawing(1, 1, 3.0) as (canvas, axes):
        axis = axes[0, 0]
        for objective, (steps, (low, middle, high)) in bands.items():
            axis.fill_between(steps, low, high, color=COLOURS[objective], alpha=0.2, linewidth=0)
            axis.plot(steps, middle, color=COLOURS[objective], label=NAMES[objective])
        axis.set(xlabel="fine-tuning step", ylabel="loss (nats/word)")
        figure_legend(canvas, axis)
        return canvas


def finals(model: Model, runs: Sequence[FinetuneRun], sets: Sequence[str]) -> Figure:
    """Final loss, and F1 on the development set and on each target set, by checkpoint."""
    values: dict[str, Callable[[FinetuneRun], float]] = {
        "final loss (nats/word)": lambda run: float(smoothed(run.losses)[-1]) if len(run.losses) else np.nan,
        "dev F1": lambda run: np.nan if run.result.dev_f1 is None else run.result.dev_f1,
    }
    values |= {f"{name} F1": lambda run, name=name: run.sets[name].f1 for name in sets}  # type: ignore[misc]
    panels = {head: [_curve(chosen, value, objective) for objective, chosen in _by_objective(runs).items()] for head, value in values.items()}  # fmt: skip
    caption = f"Final fine-tuning loss and F1 by checkpoint ({model_title(model)}), {_checkpoints(runs)}, mean over seeds."  # fmt: skip
    return figure(slug("finals", *model), caption, runs, draw_finals, panels)


def draw_finals(panels: Mapping[str, Sequence[Means]]) -> Canvas:
    """A panel for each figure, from 0 on."""
    with drawing(1, len(panels), 2.8) as (canvas, axes):
        for axis, (head, curves) in zip(axes[0], panels.items(), strict=True):
            _draw(axis, head, curves)
            axis.set_ylim(bottom=0)
        figure_legend(canvas, axes[0, 0])
        return canvas


def by_type(model: Model, runs: Sequence[FinetuneRun], sets: Sequence[str]) -> list[Figure]:
    """F1 of each entity type by checkpoint, for types that a set has."""
    panels = {}
    for name in sets:
        kinds = sorted({span[0] for spans in runs[0].sets[name].gold.spans for span in spans})
        curves = [
            _curve(chosen, lambda run, name=name, kind=kind: run.sets[name].per_type.get(kind, 0.0), objective, style, kind)  # type: ignore[misc]
            for objective, chosen in _by_objective(runs).items()
            for kind, style in zip(kinds, STYLES, strict=False)
        ]  # fmt: skip
        if curves:
            panels[name] = curves
    if not panels:
        return []
    caption = f"F1 by entity type and checkpoint ({model_title(model)}), {_checkpoints(runs)}, mean over seeds; types without a gold span in a set are not drawn."  # fmt: skip
    return [figure(slug("types", *model), caption, runs, draw_by_type, panels)]


def draw_by_type(panels: Mapping[str, Sequence[Means]]) -> Canvas:
    """A panel for each set."""
    with drawing(1, len(panels), 2.8, sharey=True) as (canvas, axes):
        for axis, (name, curves) in zip(axes[0], panels.items(), strict=True):
            _draw(axis, name, curves)
        axes[0, 0].set_ylabel("F1")
        figure_legend(canvas, axes[0, 0])
        return canvas


def _draw(axis: Axes, head: str, curves: Sequence[Means]) -> None:
    for curve in curves:
        label = f"{NAMES[curve.objective]} {curve.kind}".strip()
        axis.plot(curve.steps, curve.means, curve.style, color=COLOURS[curve.objective], label=label, marker=".")  # fmt: skip
    axis.set_title(head)
    axis.set_xlabel("update")


def _curve(runs: Sequence[FinetuneRun], value: Callable[[FinetuneRun], float], objective: str, style: str = "-", kind: str = "") -> Means:  # fmt: skip
    steps = sorted(set(map(_step, runs)))
    means = [float(np.mean([value(run) for run in runs if _step(run) == step])) for step in steps]
    return Means(objective, steps, means, style, kind)


def _by_objective(runs: Sequence[FinetuneRun]) -> dict[str, list[FinetuneRun]]:
    return {o: [run for run in runs if run.objective == o] for o in distinct(run.objective for run in runs)}


def _model(setting: Setting) -> Model:
    return (setting.scale, setting.variant, setting.tuning, setting.source)


def model_title(model: Model) -> str:
    """Its parts in a caption."""
    return ", ".join(part for part in model if part)


def _checkpoints(runs: Sequence[FinetuneRun]) -> str:
    return counted(len({run.setting.step for run in runs}), "checkpoint")
