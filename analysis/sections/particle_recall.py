"""Case particles: the rule baseline, and persons after a particle against persons elsewhere.

The rule is that of metapt/evaluation/baselines.py: the word after si or ni is a person of one word. Words are compared in lower case.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from metapt.data.iob2 import spans
from metapt.data.particles import CASE_PARTICLES, RULE_PARTICLES, follows_particle
from metapt.data.statistics import labelled_statistics
from metapt.evaluation.baselines import after_particle
from metapt.evaluation.bootstrap import micro_f1
from metapt.evaluation.span_f1 import Span, count

from ..load.collect import Collection
from ..load.records import Evaluation, GoldSet
from ..load.span_matching import FATES
from ..stats.comparison import Group, groups
from ..stats.run_refs import runs_of
from ..tables import RUNS, Cell, Column, Table

RULE_NAME = "rule: word after si/ni"

DEFINITION = (
    "Rule baseline: the word after si or ni (in any case) is a person of one word; nothing else is tagged. It is scored "
    "like a model. A person stands after a particle if the word directly before the span is one of "
    f"{', '.join(sorted(CASE_PARTICLES))}. Recall of persons counts a span as found only if boundaries and type are right."
)


def rule_spans(words: Sequence[str]) -> tuple[Span, ...]:
    """What the rule predicts for a sentence."""
    return tuple(spans(after_particle(RULE_PARTICLES)(words)))


def rule_f1(gold: GoldSet) -> float:
    """Micro-F1 of the rule over all types; NaN for a set without gold spans."""
    counts = count([rule_spans(words) for words in gold.words], gold.spans)
    return float(micro_f1(counts.sum(axis=0))) if gold.gold_spans else float("nan")


@lru_cache(maxsize=64)
def _persons_after(gold: GoldSet) -> dict[bool, np.ndarray]:
    """The persons among the gold spans, [spans], by whether they follow a particle."""
    parts = zip(gold.words, gold.spans, strict=True)
    places = [
        (kind == "PER", follows_particle(start, words)) for words, found in parts for kind, start, _ in found
    ]
    is_person, after = np.array(places, dtype=bool).reshape(-1, 2).T
    return {True: is_person & after, False: is_person & ~after}


def person_recall(evaluation: Evaluation) -> dict[bool, tuple[int, int]]:
    """(found, gold) spans of persons, by whether the span follows a particle."""
    correct = evaluation.fates == FATES.index("correct")
    chosen = _persons_after(evaluation.gold)
    return {after: (int(correct[persons].sum()), int(persons.sum())) for after, persons in chosen.items()}


def data_table(collection: Collection) -> Table:
    """For each set: how many persons follow a particle, and what the rule scores."""
    columns = [Column("set"), Column("sentences"), Column("gold spans"), Column("gold persons")]
    columns += [Column("after a particle"), Column("share", percent=True, digits=1)]
    columns += [Column("rule: predicted"), Column("rule: correct"), Column("rule: F1"), RUNS]
    rows: list[list[Cell]] = []
    for name in collection.set_names():
        for gold in collection.gold_sets(name):
            persons = labelled_statistics(list(zip(gold.words, gold.spans, strict=True)))
            after, total = persons["after_particle"]["PER"], persons["spans"]["PER"]["count"]
            correct, predicted, _ = (
                count([rule_spans(words) for words in gold.words], gold.spans).sum(axis=0).tolist()
            )
            row: list[Cell] = [
                name,
                len(gold.ids),
                gold.gold_spans,
                total,
                after["spans"],
                after["share"],
            ]
            rows.append([*row, predicted, correct, rule_f1(gold), runs_of(collection.holder(gold))])
    return Table("particles", "Persons after a case particle, and the rule baseline", columns, rows)


def recall_table(collection: Collection) -> Table:
    """Recall of persons after a particle against elsewhere, on the target sets, summed over seeds."""
    columns = [
        *(Column(head) for head in Group.HEADS),
        Column("set"),
        Column("persons after"),
        Column("recall after"),
    ]
    columns += [Column("persons elsewhere"), Column("recall elsewhere"), RUNS]
    rows: list[list[Cell]] = []
    for group in groups(collection):
        for name in collection.target_sets():
            runs = [run for run in group.runs if name in run.sets]
            if runs:
                tallies = [person_recall(run.sets[name]) for run in runs]
                sums = {
                    side: [sum(part) for part in zip(*(t[side] for t in tallies), strict=True)]
                    for side in (True, False)
                }
                cells: list[Cell] = []
                for found, total in (sums[True], sums[False]):
                    cells += [total // len(runs), found / total if total else None]
                rows.append([*group.cells, name, *cells, runs_of(runs)])
    note = "The rule finds persons after si and ni only; a model that has learnt the particles shows it here."
    return Table(
        "person_recall", "Recall of persons after a particle and elsewhere", columns, rows, note
    ).without_constant(*Group.OPTIONAL)
