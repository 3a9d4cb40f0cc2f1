"""How tuning and transfer change over pretraining, where several checkpoints of a model were tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from analysis import figures
from analysis.comparison import NAMES, averages, averages_table
from analysis.convergence import smoothed
from analysis.drawing import COLOURS, Figure, distinct, drawing, figure_legend, finished, plt, slug
from analysis.records import FinetuneRun, Setting
from analysis.study import Section, Study, counted
from analysis.tables import Column

MOST_DRAWN = 4  # models; a grid of all scales, sources and regimes would make hundreds of figures
LEAST = 3  # checkpoints, below which there is no curve over them
STYLES = ("-", "--", ":", "-.")

DEFINITION = (
    "Checkpoints: the fan shows the smoothed fine-tuning losses of all tuned checkpoints of an objective, cut to the shortest: the "
    "median over checkpoints (and seeds) and the band between their quartiles. Final loss: the last smoothed value."
)
Model = tuple[str, str, str, str]


def section(study: Study) -> Section:
    collection = study.collection
    drawn = figures.by_step(collection, study.on_targets)
    means = averages(study.on_targets, lambda setting: (setting.scale, setting.label, setting.step)) if drawn else []  # fmt: skip
    heads = [Column("scale"), Column("variant"), Column("step")]
    table = averages_table("by_step", "Mean F1 on the target sets by pretraining step", heads, means)
    models = by_model(collection.finetuning)
    for model, runs in most_tuned(models).items():
        sets = collection.target_sets()
        drawn += [fan(model, runs), finals(model, runs, sets), by_type(model, runs, sets)]
    text = undrawn(models)
    if len(drawn) == 0:
        text = [f"Needed: fine-tuning runs from at least {LEAST} checkpoints of one pretraining run (grid=checkpoints). The finished runs start from one checkpoint of each model."]  # fmt: skip
    return Section("steps", "Pretraining checkpoints", text, drawn, [table])


def by_model(found: Sequence[FinetuneRun]) -> dict[Model, list[FinetuneRun]]:
    """The runs of each (scale, variant, regime, source) of which enough checkpoints were tuned."""
    models: dict[Model, list[FinetuneRun]] = {}
    for run in found:
        if run.setting.step is not None and run.objective in NAMES:
            models.setdefault(_model(run.setting), []).append(run)
    return {key: runs for key, runs in models.items() if len({run.setting.step for run in runs}) >= LEAST}


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
    with drawing(1, 1, 3.0) as (canvas, axes):
        axis = axes[0, 0]
        for objective, chosen in _by_objective(runs).items():
            length = min(len(run.losses) for run in chosen)
            curves = np.stack([smoothed(run.losses)[:length] for run in chosen])
            low, middle, high = np.quantile(curves, [0.25, 0.5, 0.75], axis=0)
            steps = np.arange(1, length + 1)
            axis.fill_between(steps, low, high, color=COLOURS[objective], alpha=0.2, linewidth=0)
            axis.plot(steps, middle, color=COLOURS[objective], label=NAMES[objective])
        axis.set(xlabel="fine-tuning step", ylabel="loss (nats/word)")
        figure_legend(canvas, axis)
        caption = f"Fine-tuning loss over checkpoints ({_title(model)}): median and interquartile band. {_from(runs)}"
        return finished(canvas, slug("fan", *model), caption)


def finals(model: Model, runs: Sequence[FinetuneRun], sets: Sequence[str]) -> Figure:
    """Final loss, and F1 on the development set and on each target set, by checkpoint."""
    with drawing(1, 2 + len(sets), 2.8) as (canvas, axes):
        for objective, chosen in _by_objective(runs).items():
            _curve(axes[0, 0], chosen, lambda run: float(smoothed(run.losses)[-1]) if len(run.losses) else np.nan, objective)  # fmt: skip
            _curve(axes[0, 1], chosen, lambda run: run.result["dev_f1"], objective)
            for axis, name in zip(axes[0, 2:], sets, strict=True):
                _curve(axis, chosen, lambda run, name=name: study_f1(run, name), objective)
        for axis, head in zip(axes[0], ("final loss (nats/word)", "dev F1", *(f"{s} F1" for s in sets)), strict=True):  # fmt: skip
            axis.set_title(head)
            axis.set_xlabel("update")
            axis.set_ylim(bottom=0)
        figure_legend(canvas, axes[0, 0])
        caption = (
            f"Final fine-tuning loss and F1 by checkpoint ({_title(model)}), mean over seeds. {_from(runs)}"
        )
        return finished(canvas, slug("finals", *model), caption)


def by_type(model: Model, runs: Sequence[FinetuneRun], sets: Sequence[str]) -> Figure:
    """F1 of each entity type by checkpoint, for types that a set has."""
    golds = {name: next(run.sets[name].gold for run in runs if name in run.sets) for name in sets}
    kinds = {name: sorted({s[0] for spans in gold.spans for s in spans}) for name, gold in golds.items()}
    with drawing(1, len(sets), 2.8, sharey=True) as (canvas, axes):
        for axis, name in zip(axes[0], sets, strict=True):
            for objective, chosen in _by_objective(runs).items():
                for kind, style in zip(kinds[name], STYLES, strict=False):
                    _curve(axis, chosen, lambda run, name=name, kind=kind: _type(run, name, kind), objective, style, kind)  # fmt: skip
            axis.set_title(name)
            axis.set_xlabel("update")
        axes[0, 0].set_ylabel("F1")
        figure_legend(canvas, axes[0, 0])
        caption = f"F1 by entity type and checkpoint ({_title(model)}), mean over seeds; types without a gold span in a set are not drawn. {_from(runs)}"
        return finished(canvas, slug("types", *model), caption)


def study_f1(run: FinetuneRun, name: str) -> float:
    """Micro-F1 of a run on a set; NaN if it was not scored on it."""
    if name not in run.sets:
        return float("nan")
    correct, predicted, gold = run.sets[name].counts.sum(axis=0)
    return 2 * correct / (predicted + gold) if predicted + gold else 0.0


def _type(run: FinetuneRun, name: str, kind: str) -> float:
    return run.sets[name].per_type.get(kind, {}).get("f1", 0.0) if name in run.sets else float("nan")


def _curve(axis: plt.Axes, runs: Sequence[FinetuneRun], value, objective: str, style: str = "-", kind: str = "") -> None:  # type: ignore[no-untyped-def]  # fmt: skip
    steps = sorted({run.setting.step or 0 for run in runs})
    means = [
        float(np.mean([value(run) for run in runs if (run.setting.step or 0) == step])) for step in steps
    ]
    label = f"{NAMES[objective]} {kind}".strip()
    axis.plot(steps, means, style, color=COLOURS[objective], label=label, marker=".")


def _by_objective(runs: Sequence[FinetuneRun]) -> dict[str, list[FinetuneRun]]:
    return {o: [run for run in runs if run.objective == o] for o in distinct(run.objective for run in runs)}


def _model(setting: Setting) -> Model:
    return (setting.scale, setting.label, setting.regime, setting.source)


def _title(model: Model) -> str:
    return ", ".join(part for part in model if part)


def _from(runs: Sequence[FinetuneRun]) -> str:
    parts = [
        f"{NAMES[objective]}: {counted(len({run.setting.step for run in chosen}), 'checkpoint')}, {counted(len({run.seeds for run in chosen}), 'seed')}"
        for objective, chosen in _by_objective(runs).items()
    ]
    return "; ".join(parts) + "."
