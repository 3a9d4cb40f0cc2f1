"""Token confidence: how probable the right tag is for the most frequent words of a set, by checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from analysis.checkpoints import Model, by_model, most_tuned, undrawn
from analysis.comparison import NAMES
from analysis.drawing import Figure, distinct, drawing, finished, heat_map, plt, slug
from analysis.records import FinetuneRun, GoldSet
from analysis.study import Section, Study, counted
from analysis.tables import Cell, Column, Table

WORDS = 10
KINDS = {True: "in entities", False: "outside"}

DEFINITION = (
    f"Confidence: p(correct), the model's probability of the gold tag (the exponential of its logarithm), mean over the occurrences of a word, "
    f"for the {WORDS} most frequent words within gold spans and the {WORDS} most frequent outside of them; ties by first appearance. "
    "Words are compared as they are written."
)


def section(study: Study) -> Section:
    sets = study.collection.target_sets()
    models = by_model(study.collection.finetuning)
    drawn = [figure for model, runs in most_tuned(models).items() for name in sets for figure in heat_maps(model, runs, name)]  # fmt: skip
    text = undrawn(models) if drawn else ["The heat maps over checkpoints need fine-tuning runs from at least three checkpoints of one pretraining run (grid=checkpoints)."]  # fmt: skip
    return Section("confidence", "Token confidence", text, drawn, [table(study)])


def frequent(gold: GoldSet) -> dict[bool, dict[str, np.ndarray]]:
    """(within spans or not) to the most frequent words and where they stand among all words of the set."""
    words = np.array([word for sentence in gold.words for word in sentence], dtype=object)
    found = {}
    for inside in KINDS:
        places = np.flatnonzero(gold.in_span == inside)
        ranked = Counter(words[places]).most_common(WORDS)
        found[inside] = {word: places[words[places] == word] for word, _ in ranked}
    return found


def heat_maps(model: Model, runs: Sequence[FinetuneRun], name: str) -> list[Figure]:
    """Word by checkpoint, a column for each objective; above the words within entities, below those outside."""
    runs = [run for run in runs if name in run.sets and len(run.sets[name].logprobs)]
    if not runs:
        return []
    gold = runs[0].sets[name].gold
    runs = [run for run in runs if run.sets[name].gold is gold]
    objectives = distinct(run.objective for run in runs)
    steps = sorted({run.setting.step or 0 for run in runs})
    words = {inside: found for inside, found in frequent(gold).items() if found}
    with drawing(len(words), len(objectives), 0.8 + 2.3 * len(words)) as (canvas, axes):
        for row, (inside, found) in zip(axes, words.items(), strict=True):
            for axis, objective in zip(row, objectives, strict=True):
                grid = np.array([[_mean([run for run in runs if (run.objective, run.setting.step) == (objective, step)], name, places) for step in steps] for places in found.values()])  # fmt: skip
                heat_map(axis, grid, list(found), [str(step) for step in steps], (0.0, 1.0), plt.get_cmap("cividis"), ".2f" if len(steps) <= 8 else "")  # fmt: skip
                axis.set_title(f"{NAMES[objective]}, {KINDS[inside]}")
        for axis in axes[-1]:
            axis.set_xlabel("pretraining updates")
        caption = (
            f"p(correct tag) on {name} by checkpoint, {', '.join(part for part in model if part)}, mean over "
            f"{counted(len({run.seeds for run in runs}), 'seed')}; dark 0, light 1. From {counted(len(runs), 'run')}."
        )
        return [finished(canvas, slug("confidence", *model, name), caption)]


def table(study: Study) -> Table:
    """At the last checkpoint: p(correct) by word and objective, mean over all runs of a scale on a set."""
    columns = [Column(head) for head in ("scale", "variant", "set", "word", "place", "occurrences", "runs")]
    columns += [Column(f"p(correct) {name}") for name in NAMES.values()]
    last: dict[tuple[str, str], int] = {}
    for run in study.collection.finetuning:
        key = (run.setting.scale, run.setting.label)
        last[key] = max(last.get(key, 0), run.setting.step or 0)
    rows: list[list[Cell]] = []
    for (scale, label), step in last.items():
        for name in study.collection.target_sets():
            gold = study.collection.gold_sets(name)[0]
            runs = [
                run
                for run in study.collection.finetuning
                if (run.setting.scale, run.setting.label, run.setting.step or 0) == (scale, label, step)
                and name in run.sets
                and run.sets[name].gold is gold
                and len(run.sets[name].logprobs)
                and run.objective in NAMES
            ]
            for inside, found in frequent(gold).items() if runs else ():
                for word, places in found.items():
                    means = [_mean([r for r in runs if r.objective == objective], name, places) for objective in NAMES]  # fmt: skip
                    rows.append([scale, label, name, word, KINDS[inside], len(places), len(runs), *means])
    title = "p(correct tag) of the most frequent words, at the last checkpoint"
    note = "Mean over the runs of the scale (sources, regimes and seeds)."
    return Table("confidence", title, columns, rows, note).without_constant("variant")


def _mean(runs: Sequence[FinetuneRun], name: str, places: np.ndarray) -> float:
    if not runs:
        return float("nan")
    return float(np.mean([np.exp(run.sets[name].logprobs[places]).mean() for run in runs]))
