"""Case particles: the rule baseline, and recall of persons after a particle against persons elsewhere.

The rule is that of metapt/evaluation/baselines.py: the word after si or ni is a person of one word. Words are lower-cased
before they are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from metapt.data.iob2 import spans
from metapt.data.particles import CASE_PARTICLES, RULE_PARTICLES, follows_particle
from metapt.data.statistics import labelled_statistics
from metapt.evaluation.baselines import person_after_particle
from metapt.evaluation.bootstrap import micro_f1
from metapt.evaluation.span_f1 import Span, span_counts
from metapt.evaluation.span_matching import OUTCOMES

from ..load.collect import Collection
from ..load.records import Evaluation, GoldSet
from ..run_refs import runs_of
from ..stats.comparison import Group, groups
from ..tables import RUNS, Cell, Column, Table
from .base import ReportData, Section, finetuning_needed

RULE_NAME = "rule: word after si/ni"

DEFINITION = (
    "Rule baseline: the word after si or ni (in any case) is a person of one word; nothing else is tagged. It is scored in the same "
    "way as a model. A person follows a particle if the word directly before the span is one of "
    f"{', '.join(sorted(CASE_PARTICLES))}. Recall of persons counts a span as found only if its boundaries and type are right."
)


def section(data: ReportData) -> Section:
    tables = [particles_table(data.collection), recall_table(data.collection)]
    return Section("particles", "Case particles", finetuning_needed(data), tables=tables)


def rule_spans(words: Sequence[str]) -> tuple[Span, ...]:
    """Predict the spans of a sentence by the rule."""
    return tuple(spans(person_after_particle(RULE_PARTICLES)(words)))


def rule_f1(gold: GoldSet) -> float:
    """Micro-F1 of the rule over all types; NaN for a set without gold spans."""
    return float(micro_f1(_rule_counts(gold))) if gold.gold_spans else float("nan")


def _rule_counts(gold: GoldSet) -> np.ndarray:
    """(correct, predicted, gold) spans of the rule on a set."""
    return span_counts([rule_spans(words) for words in gold.words], gold.spans).sum(axis=0)


@lru_cache(maxsize=64)
def _persons(gold: GoldSet) -> dict[bool, np.ndarray]:
    """Masks of the persons among the gold spans, [spans], by whether they follow a particle."""
    flags = [
        (entity_type == "PER", follows_particle(start, words))
        for words, sentence in zip(gold.words, gold.spans, strict=True)
        for entity_type, start, _ in sentence
    ]
    is_person, follows = np.array(flags, dtype=bool).reshape(-1, 2).T
    return {True: is_person & follows, False: is_person & ~follows}


def person_recall(evaluation: Evaluation) -> dict[bool, tuple[int, int]]:
    """Count (found, gold) spans of persons, by whether the span follows a particle."""
    correct = evaluation.outcomes == OUTCOMES.index("correct")
    masks = _persons(evaluation.gold)
    return {follows: (int(correct[mask].sum()), int(mask.sum())) for follows, mask in masks.items()}


def particles_table(collection: Collection) -> Table:
    """For each set: the persons that follow a particle, and the score of the rule."""
    heads = ("set", "sentences", "gold spans", "gold persons", "after a particle")
    columns = [*map(Column, heads), Column("fraction", percent=True, digits=1)]
    columns += [Column("rule: predicted"), Column("rule: correct"), Column("rule: F1"), RUNS]
    rows: list[list[Cell]] = []
    for name in collection.set_names():
        for gold in collection.gold_sets(name):
            statistics = labelled_statistics(list(zip(gold.words, gold.spans, strict=True)))
            after = statistics["after_particle"]["PER"]["spans"]
            total = statistics["spans"]["PER"]["count"]
            correct, predicted, _ = _rule_counts(gold).tolist()
            row: list[Cell] = [name, len(gold.ids), gold.gold_spans, total, after]
            row += [after / total if total else None, predicted, correct, rule_f1(gold)]
            rows.append([*row, runs_of(collection.run_with(gold))])
    return Table("particles", "Persons after a case particle, and the rule baseline", columns, rows)


def recall_table(collection: Collection) -> Table:
    """Recall of persons after a particle and elsewhere on the target sets, pooled over seeds."""
    heads = ("set", "persons after", "recall after", "persons elsewhere", "recall elsewhere")
    columns = [*map(Column, (*Group.HEADS, *heads)), RUNS]
    rows: list[list[Cell]] = []
    for whole in groups(collection):
        for name in collection.target_sets():
            group = whole.scored_on(name)
            if runs := group.runs:
                counts = [person_recall(run.sets[name]) for run in runs]
                cells: list[Cell] = []
                for follows in (True, False):
                    found = sum(by_position[follows][0] for by_position in counts)
                    total = sum(by_position[follows][1] for by_position in counts)
                    cells += [total // len(runs), found / total if total else None]
                rows.append([*group.cells, name, *cells, runs_of(runs)])
    note = (
        "The rule finds persons after si and ni only. A model that has learned the particles has a higher recall "
        "after a particle than elsewhere."
    )
    title = "Recall of persons after a case particle and elsewhere"
    return Table("person_recall", title, columns, rows, note).without_constant(*Group.OPTIONAL)
