"""Token confidence: how probable the right tag is for the most frequent words of a set, by checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from analysis.checkpoints import LEAST, Model, by_model, complete, model_title, most_tuned, undrawn
from analysis.comparison import pairs
from analysis.drawing import SHARES, Figure, distinct, drawing, finished, heat_map, slug
from analysis.provenance import NAMES, counted, runs_of
from analysis.records import FinetuneRun, GoldSet
from analysis.significance import comparable
from analysis.study import Section, Study
from analysis.tables import RUNS, Cell, Column, Table

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
    text = undrawn(models) if drawn else [f"The heat maps over checkpoints need fine-tuning runs from at least {LEAST} checkpoints of one pretraining run, with log-probabilities in predictions/ (grid=checkpoints)."]  # fmt: skip
    words = table(study)
    if not words.rows:
        text.append(
            "The table needs a MAML and a vanilla run tuned alike, with log-probabilities in predictions/."
        )
    return Section("confidence", "Token confidence", text, drawn, [words])


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
    told = [run for run in runs if name in run.sets and len(run.sets[name].logprobs)]
    runs = complete([run for run in told if run.sets[name].gold is told[0].sets[name].gold])
    if not runs:
        return []
    gold = runs[0].sets[name].gold
    objectives = distinct(run.objective for run in runs)
    steps = sorted({run.setting.step or 0 for run in runs})
    words = {inside: found for inside, found in frequent(gold).items() if found}
    with drawing(len(words), len(objectives), 0.8 + 2.3 * len(words), sharex="col", sharey="row") as (
        canvas,
        axes,
    ):
        for row, (inside, found) in zip(axes, words.items(), strict=True):
            for axis, objective in zip(row, objectives, strict=True):
                grid = np.array([[_mean([run for run in runs if (run.objective, run.setting.step) == (objective, step)], name, places) for step in steps] for places in found.values()])  # fmt: skip
                heat_map(axis, grid, list(found), [str(step) for step in steps], (0.0, 1.0), SHARES, ".2f" if len(steps) <= 8 else "")  # fmt: skip
                axis.set_title(f"{NAMES[objective]}, {KINDS[inside]}")
        for axis in axes[-1]:
            axis.set_xlabel("pretraining updates")
        caption = (
            f"p(correct tag) on {name} by checkpoint, {model_title(model)}, "
            f"{counted(len(steps), 'checkpoint')}, mean over seeds; dark 0, light 1."
        )
        return [finished(canvas, slug("confidence", *model, name), caption, runs)]


def table(study: Study) -> Table:
    """At the last checkpoint: p(correct) by word and objective, mean over all pairs of a scale on a set."""
    columns = [Column(head) for head in ("scale", "variant", "set", "word", "place", "occurrences")]
    columns += [*(Column(f"p(correct) {name}") for name in NAMES.values()), RUNS]
    rows: list[list[Cell]] = []
    for (scale, label), both in _last_pairs(study).items():
        for name in study.collection.target_sets():
            same = [
                pair for pair in comparable(both, name) if all(len(run.sets[name].logprobs) for run in pair)
            ]
            same = [pair for pair in same if pair[0].sets[name].gold is same[0][0].sets[name].gold]
            runs = runs_of(*same)
            for inside, found in frequent(same[0][0].sets[name].gold).items() if same else ():
                for word, places in found.items():
                    means = [_mean([run for pair in same for run in pair if run.objective == objective], name, places) for objective in NAMES]  # fmt: skip
                    rows.append([scale, label, name, word, KINDS[inside], len(places), *means, runs])
    title = "p(correct tag) of the most frequent words, at the last checkpoint that both objectives have"
    note = "Mean over the pairs of the scale (sources, regimes and seeds)."
    return Table("confidence", title, columns, rows, note).without_constant("variant")


def _last_pairs(study: Study) -> dict[tuple[str, str], list[tuple[FinetuneRun, FinetuneRun]]]:
    """The pairs of each scale and variant at its last step."""
    found: dict[tuple[str, str], dict[int, list[tuple[FinetuneRun, FinetuneRun]]]] = {}
    for setting, both in pairs(study.collection).items():
        steps = found.setdefault((setting.scale, setting.label), {})
        steps.setdefault(setting.step or 0, []).extend(both)
    return {model: steps[max(steps)] for model, steps in found.items()}


def _mean(runs: Sequence[FinetuneRun], name: str, places: np.ndarray) -> float:
    return float(np.mean([np.exp(run.sets[name].logprobs[places]).mean() for run in runs]))
