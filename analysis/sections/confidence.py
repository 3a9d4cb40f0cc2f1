"""Token confidence: the probability of the gold tag for the most frequent words of a set, by checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure as Canvas

from ..figures.style import SEQUENTIAL, Figure, drawing, figure, heat_map, slug
from ..load.records import FinetuneRun, GoldSet
from ..run_refs import counted, distinct, runs_of
from ..stats.significance import comparable
from ..tables import RUNS, Cell, Column, Table
from .base import ReportData, Section, needed_pair
from .learning_curves import (
    MIN_CHECKPOINTS,
    Model,
    complete_block,
    complete_models,
    model_title,
    models_to_plot,
    unplotted_note,
)

WORDS = 10
MAX_ANNOTATED_STEPS = 8
LOCATIONS = {True: "in entities", False: "outside entities"}

DEFINITION = (
    "Confidence: the model's probability of the gold tag, p(correct), averaged over the occurrences of a word, for the "
    f"{WORDS} most frequent words inside gold spans and the {WORDS} most frequent words outside them. Ties are broken by first "
    "appearance. Words are case-sensitive."
)


@dataclass(frozen=True)
class Panel:
    """p(correct) of words inside or outside entities, by objective, each [words, checkpoints]."""

    inside: bool
    words: Sequence[str]
    probabilities: Mapping[str, np.ndarray]


def section(data: ReportData) -> Section:
    """Heat maps over checkpoints, and a table of the last one."""
    models = complete_models(data.collection.finetuning)
    figures = [
        heat_map
        for model, runs in models_to_plot(models).items()
        for name in data.collection.target_sets()
        for heat_map in heat_maps(model, runs, name)
    ]
    if figures:
        text = unplotted_note(models)
    else:
        text = [
            f"Needed for the heat maps: fine-tuning runs from at least {MIN_CHECKPOINTS} checkpoints of one pretraining "
            "run, with log-probabilities in `predictions/` (see `grid=checkpoints`)."
        ]
    table = words_table(data)
    if not table.rows:
        text.append(f"Needed for the table: {needed_pair(data)}, with log-probabilities in `predictions/`.")
    return Section("confidence", "Token confidence", text, figures, [table])


def frequent_words(gold: GoldSet) -> dict[bool, dict[str, np.ndarray]]:
    """Find the most frequent words inside and outside gold spans.

    Returns:
        By location (True: inside), then by word: the positions of the word among all words of the set.
    """
    words = np.array([word for sentence in gold.words for word in sentence], dtype=object)
    frequent = {}
    for inside in LOCATIONS:
        positions = np.flatnonzero(gold.in_span == inside)
        ranked = Counter(words[positions]).most_common(WORDS)
        frequent[inside] = {word: positions[words[positions] == word] for word, _ in ranked}
    return frequent


def heat_maps(model: Model, runs: Sequence[FinetuneRun], name: str) -> list[Figure]:
    """Plot p(correct) by word and checkpoint, with a column for each objective; empty if data are missing."""
    scored = [run for run in runs if name in run.sets and len(run.sets[name].logprobs)]
    runs = complete_block([run for run in scored if run.sets[name].gold is scored[0].sets[name].gold])
    if not runs:
        return []
    gold = runs[0].sets[name].gold
    steps = sorted({run.setting.step or 0 for run in runs})
    probabilities = {
        objective: [_probabilities(_runs_at(runs, objective, step), name) for step in steps]
        for objective in distinct(run.objective for run in runs)
    }
    panels = [
        Panel(inside, list(words), _by_word(probabilities, list(words.values())))
        for inside, words in frequent_words(gold).items()
        if words
    ]
    caption = (
        f"p(correct tag) on {name} by checkpoint, {model_title(model)}, "
        f"{counted(len(steps), 'checkpoint')}, mean over seeds; dark: 0, light: 1."
    )
    return [figure(slug("confidence", *model, name), caption, runs, draw_heat_maps, panels, steps)]


def _runs_at(runs: Sequence[FinetuneRun], objective: str, step: int) -> list[FinetuneRun]:
    return [run for run in runs if run.objective == objective and run.setting.step == step]


def _by_word(
    probabilities: Mapping[str, Sequence[np.ndarray]], positions: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Mean p(correct) by objective, each [words, checkpoints]."""
    return {
        objective: np.array([[_mean(checkpoint, at) for checkpoint in checkpoints] for at in positions])
        for objective, checkpoints in probabilities.items()
    }


def draw_heat_maps(panels: Sequence[Panel], steps: Sequence[int]) -> Canvas:
    """A row of axes for each panel, a column for each objective."""
    labels = [str(step) for step in steps]
    number_format = ".2f" if len(steps) <= MAX_ANNOTATED_STEPS else ""
    height = 0.8 + 2.3 * len(panels)
    shape = (len(panels), len(panels[0].probabilities))
    with drawing(*shape, height, sharex="col", sharey="row") as (canvas, axes):
        for row, panel in zip(axes, panels, strict=True):
            for axis, (objective, values) in zip(row, panel.probabilities.items(), strict=True):
                heat_map(axis, values, panel.words, labels, (0.0, 1.0), SEQUENTIAL, number_format)
                axis.set_title(f"{objective}, {LOCATIONS[panel.inside]}")
        for axis in axes[-1]:
            axis.set_xlabel("pretraining updates")
        return canvas


def words_table(data: ReportData) -> Table:
    """p(correct) by word and objective at the last checkpoint, mean over all pairs of a scale and variant on a set."""
    columns = [Column(head) for head in ("scale", "variant", "set", "word", "location", "occurrences")]
    columns += [*(Column(f"p(correct) {name}") for name in (data.contrast.first, data.contrast.second)), RUNS]
    rows: list[list[Cell]] = []
    for (scale, variant), candidates in _last_pairs(data).items():
        for name in data.collection.target_sets():
            scored = [
                pair
                for pair in comparable(candidates, name)
                if all(len(run.sets[name].logprobs) for run in pair)
            ]
            rows += [[scale, variant, name, *cells] for cells in _word_rows(scored, name)]
    title = "p(correct tag) of the most frequent words, at the last checkpoint that both arms have"
    note = "Mean over all pairs of the scale (sources, tunings and seeds)."
    return Table("confidence", title, columns, rows, note).without_constant("variant")


def _word_rows(pairs: Sequence[tuple[FinetuneRun, FinetuneRun]], name: str) -> list[list[Cell]]:
    """(word, location, occurrences, p(correct) of both arms, runs) for each frequent word of a set."""
    if not pairs:
        return []
    gold = pairs[0][0].sets[name].gold
    same = [pair for pair in pairs if pair[0].sets[name].gold is gold]
    first, second = (_probabilities(runs, name) for runs in zip(*same, strict=True))
    runs = runs_of(*same)
    return [
        [word, LOCATIONS[inside], len(at), _mean(first, at), _mean(second, at), runs]
        for inside, words in frequent_words(gold).items()
        for word, at in words.items()
    ]


def _last_pairs(data: ReportData) -> dict[tuple[str, str], list[tuple[FinetuneRun, FinetuneRun]]]:
    """The pairs of each scale and variant at its last step."""
    by_model: dict[tuple[str, str], dict[int, list[tuple[FinetuneRun, FinetuneRun]]]] = {}
    for setting, found in data.pairs.items():
        steps = by_model.setdefault((setting.scale, setting.variant), {})
        steps.setdefault(setting.step or 0, []).extend(found)
    return {model: steps[max(steps)] for model, steps in by_model.items()}


def _probabilities(runs: Sequence[FinetuneRun], name: str) -> np.ndarray:
    """p(correct) of every word, [runs, words]."""
    return np.exp([run.sets[name].logprobs for run in runs])


def _mean(probabilities: np.ndarray, positions: np.ndarray) -> float:
    """Mean over the occurrences of a word, then over runs."""
    return float(probabilities.take(positions, axis=1).mean(axis=1).mean())
