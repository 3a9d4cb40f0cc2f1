"""Token confidence: how probable the right tag is for the most frequent words of a set, by checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure as Canvas

from ..figures.style import SHARES, Figure, distinct, drawing, figure, heat_map, slug
from ..load.records import FinetuneRun, GoldSet
from ..stats.comparison import pairs
from ..stats.run_refs import NAMES, counted, runs_of
from ..stats.significance import comparable
from ..tables import RUNS, Cell, Column, Table
from .base import Section, Study
from .learning_curves import LEAST, Model, by_model, complete, model_title, most_tuned, undrawn

WORDS = 10
KINDS = {True: "in entities", False: "outside"}

DEFINITION = (
    f"Confidence: p(correct), the model's probability of the gold tag (the exponential of its logarithm), mean over the occurrences of a word, "
    f"for the {WORDS} most frequent words within gold spans and the {WORDS} most frequent outside of them; ties by first appearance. "
    "Words are compared as they are written."
)


@dataclass(frozen=True)
class Panel:
    """Words within entities, or outside of them, and p(correct) by objective: [words, checkpoints]."""

    inside: bool
    words: Sequence[str]
    shares: Mapping[str, np.ndarray]


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
    scored = [run for run in runs if name in run.sets and len(run.sets[name].logprobs)]
    runs = complete([run for run in scored if run.sets[name].gold is scored[0].sets[name].gold])
    if not runs:
        return []
    gold = runs[0].sets[name].gold
    steps = sorted({run.setting.step or 0 for run in runs})
    told = {objective: [_probabilities([run for run in runs if (run.objective, run.setting.step) == (objective, step)], name) for step in steps] for objective in distinct(run.objective for run in runs)}  # fmt: skip
    panels = [
        Panel(inside, list(found), {objective: np.array([[_mean(part, places) for part in parts] for places in found.values()]) for objective, parts in told.items()})
        for inside, found in frequent(gold).items() if found
    ]  # fmt: skip
    caption = (
        f"p(correct tag) on {name} by checkpoint, {model_title(model)}, "
        f"{counted(len(steps), 'checkpoint')}, mean over seeds; dark 0, light 1."
    )
    return [figure(slug("confidence", *model, name), caption, runs, draw_heat_maps, panels, steps)]


def draw_heat_maps(panels: Sequence[Panel], steps: Sequence[int]) -> Canvas:
    """A row for each panel, a column for each objective."""
    columns = [str(step) for step in steps]
    form = ".2f" if len(steps) <= 8 else ""
    with drawing(len(panels), len(panels[0].shares), 0.8 + 2.3 * len(panels), sharex="col", sharey="row") as (canvas, axes):  # fmt: skip
        for row, panel in zip(axes, panels, strict=True):
            for axis, (objective, shares) in zip(row, panel.shares.items(), strict=True):
                heat_map(axis, shares, panel.words, columns, (0.0, 1.0), SHARES, form)
                axis.set_title(f"{NAMES[objective]}, {KINDS[panel.inside]}")
        for axis in axes[-1]:
            axis.set_xlabel("pretraining updates")
        return canvas


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
            told = [_probabilities(side, name) for side in zip(*same, strict=True)]
            for inside, found in frequent(same[0][0].sets[name].gold).items() if same else ():
                for word, places in found.items():
                    means = [_mean(part, places) for part in reversed(told)]
                    rows.append([scale, label, name, word, KINDS[inside], len(places), *means, runs])
    title = "p(correct tag) of the most frequent words, at the last checkpoint that both objectives have"
    note = "Mean over the pairs of the scale (sources, tunings and seeds)."
    return Table("confidence", title, columns, rows, note).without_constant("variant")


def _last_pairs(study: Study) -> dict[tuple[str, str], list[tuple[FinetuneRun, FinetuneRun]]]:
    """The pairs of each scale and variant at its last step."""
    found: dict[tuple[str, str], dict[int, list[tuple[FinetuneRun, FinetuneRun]]]] = {}
    for setting, both in pairs(study.collection).items():
        steps = found.setdefault((setting.scale, setting.variant), {})
        steps.setdefault(setting.step or 0, []).extend(both)
    return {model: steps[max(steps)] for model, steps in found.items()}


def _probabilities(runs: Sequence[FinetuneRun], name: str) -> np.ndarray:
    """[runs, words]"""
    return np.exp([run.sets[name].logprobs for run in runs])


def _mean(probabilities: np.ndarray, places: np.ndarray) -> float:
    """Over the occurrences of a word, then over the runs."""
    return float(probabilities.take(places, axis=1).mean(axis=1).mean())
