"""The F1 table: every system on every set, the difference below each pair, the rule baseline at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np

from ..load.collect import Collection
from ..load.records import FinetuneRun
from ..stats.comparison import Comparison, Group, groups
from ..stats.run_refs import runs_of
from ..stats.significance import Scores
from ..tables import RUNS, Cell, Column, Table
from .particle_recall import RULE_NAME, rule_f1

DEFINITION = (
    "F1: micro-averaged over entity spans, strict IOB2: a span counts only if both boundaries and the type are right. "
    "It is computed here from the predictions and must agree with what the run recorded. Numbers in the column heads are "
    "gold spans of the set: on 25 spans, one span more or less found moves recall by 4 points. "
    "Conlleval F1 is that of the CoNLL shared tasks' script: an I-X that does not continue an X starts a span too. "
    "Where a row has several seeds it holds their mean. Seed spread: the standard deviation over seeds (n - 1)."
)


def f1_table(collection: Collection, scores: Scores, found: Sequence[Comparison]) -> Table:
    """Rows: setting and objective, the difference after each pair, the rule. Columns: the evaluation sets."""
    names = collection.set_names()
    columns = [
        *(Column(head) for head in Group.HEADS),
        *(Column(_head(collection, name)) for name in names),
        RUNS,
    ]
    differences = {(item.setting, item.set_name): item for item in found}
    rows: list[list[Cell]] = []
    tinted = set()
    for group in groups(collection):
        rows.append(
            [
                *group.cells,
                *(_mean(group.runs, name, scores.value) for name in names),
                runs_of(group.runs),
            ]
        )
        items = [differences.get((group.setting, name)) for name in names]
        seeds = max((item.seeds for item in items if item), default=0)
        if group.objective == "maml" and seeds:
            tinted.add(len(rows))
            values = [item.difference.value if item else None for item in items]
            rows.append(
                [*group.cells[:-2], "difference", seeds, *values, runs_of(*(i.runs for i in items if i))]
            )
    if rows and not any(run.setting.scale == "particle" for run in collection.finetuning if run.is_baseline):
        golds = [collection.gold_sets(name)[0] for name in names]
        holders = runs_of(*(collection.holder(gold) for gold in golds))
        rows.append([RULE_NAME, None, None, "", "", "", None, *map(rule_f1, golds), holders])
    note = "Number of gold spans in brackets. Difference: MAML minus vanilla, paired by seed."
    title = "Micro-F1 by system and evaluation set"
    return Table("f1", title, columns, rows, note, tinted).without_constant(*Group.OPTIONAL)


def intervals_table(collection: Collection, scores: Scores) -> Table:
    """One row for each group and set: precision, recall, F1 with its interval and its spread over seeds."""
    heads = ("sentences", "gold spans", "precision", "recall", "F1")
    columns = [Column(head) for head in (*Group.HEADS, "set", *heads)]
    columns += [Column("95 % interval", interval=True), Column("seed spread"), Column("conlleval F1"), RUNS]
    scored = [
        (group, name, runs)
        for group in groups(collection)
        for name in collection.set_names()
        if (runs := [run for run in group.runs if name in run.sets])
    ]
    means = scores.means([(runs, name) for _, name, runs in scored])
    rows: list[list[Cell]] = []
    for (group, name, runs), estimate in zip(scored, means, strict=True):
        gold = runs[0].sets[name].gold
        values = [scores.value(run, name) for run in runs]
        spread = float(np.std(values, ddof=1)) if len(runs) > 1 else None
        cells: list[Cell] = [*group.cells, name, len(gold.ids), gold.gold_spans]
        cells += [_mean(runs, name, _precision), _mean(runs, name, _recall), estimate.value]
        rows.append([*cells, estimate.interval, spread, _mean(runs, name, _conlleval), runs_of(runs)])
    return Table("f1_intervals", "F1, precision and recall with 95 % intervals", columns, rows, on_page=False)


def types_table(collection: Collection) -> Table:
    """F1 of each entity type, by set; types without a gold span in a set are left out."""
    gold = {
        (name, kind): sum(span[0] == kind for found in collection.gold_sets(name)[0].spans for span in found)
        for name in collection.set_names()
        for kind in sorted(
            {kind for run in collection.finetuning if name in run.sets for kind in run.sets[name].per_type}
        )
    }
    pairs = [pair for pair, spans in gold.items() if spans]
    columns = [*(Column(head) for head in Group.HEADS)]
    columns += [*(Column(f"{name} {kind} ({gold[name, kind]})") for name, kind in pairs), RUNS]
    rows: list[list[Cell]] = [
        [
            *group.cells,
            *(_mean(group.runs, name, _type_f1(kind)) for name, kind in pairs),
            runs_of(group.runs),
        ]
        for group in groups(collection)
    ]
    note = "Number of gold spans of the type in brackets."
    return Table("f1_types", "F1 by entity type", columns, rows, note).without_constant(*Group.OPTIONAL)


def _head(collection: Collection, name: str) -> str:
    sizes = sorted({gold.gold_spans for gold in collection.gold_sets(name)})
    return f"{name} ({', '.join(map(str, sizes))})"


def _mean(runs: Sequence[FinetuneRun], name: str, value: Callable[[FinetuneRun, str], float]) -> float | None:
    values = [value(run, name) for run in runs if name in run.sets]
    return fmean(values) if values else None


def _precision(run: FinetuneRun, name: str) -> float:
    correct, predicted, _ = run.sets[name].totals
    return correct / predicted if predicted else 0.0


def _recall(run: FinetuneRun, name: str) -> float:
    correct, _, gold = run.sets[name].totals
    return correct / gold if gold else float("nan")


def _conlleval(run: FinetuneRun, name: str) -> float:
    return run.sets[name].conlleval_f1


def _type_f1(kind: str) -> Callable[[FinetuneRun, str], float]:
    return lambda run, name: run.sets[name].per_type.get(kind, 0.0)
