"""Error analysis: every gold span has exactly one outcome; predicted spans that overlap no gold span are spurious."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from metapt.evaluation.span_matching import LENGTHS, OUTCOMES, SPURIOUS

from ..load.collect import Collection
from ..load.records import Evaluation
from ..run_refs import runs_of
from ..stats.comparison import Group, groups
from ..tables import RUNS, Cell, Column, Table
from .base import ReportData, Section, finetuning_needed

DEFINITION = (
    "Errors: a gold span is correct if it is predicted with its type and both boundaries. It is a wrong type if exactly these words "
    "are predicted with another type, a wrong boundary if a predicted span of any type overlaps it otherwise, and missed if no "
    "predicted span overlaps it. A predicted span is spurious if it overlaps no gold span. The length is that of the gold span; for "
    "spurious spans, that of the predicted span. Counts are means over seeds and sums over sets."
)


def section(data: ReportData) -> Section:
    tables = [errors_table(data.collection), errors_by_set_table(data.collection)]
    return Section("errors", "Errors", finetuning_needed(data), tables=tables)


def tally(evaluations: Sequence[Evaluation]) -> Counter[tuple[str, str]]:
    """Count spans by (length, outcome or `spurious`) over several evaluations."""
    zeros = np.zeros((len(LENGTHS), len(OUTCOMES) + 1), dtype=int)
    total = sum((evaluation.tally for evaluation in evaluations), start=zeros)
    return Counter(
        {
            (length, outcome): int(total[row, column])
            for row, length in enumerate(LENGTHS)
            for column, outcome in enumerate((*OUTCOMES, SPURIOUS))
        }
    )


def errors_table(collection: Collection) -> Table:
    """Outcomes of the gold spans of all target sets together, by group and length."""
    sets = collection.target_sets()
    rows: list[list[Cell]] = []
    for group in groups(collection):
        rows += _rows(group, sets)
    title = f"Errors on the target sets ({', '.join(sets)})"
    return Table("errors", title, _columns(), rows).without_constant(*Group.OPTIONAL)


def errors_by_set_table(collection: Collection) -> Table:
    """Outcomes of the gold spans of each set, by group and length."""
    rows: list[list[Cell]] = []
    for group in groups(collection):
        for name in collection.set_names():
            rows += _rows(group, [name], name)
    return Table("errors_by_set", "Errors by set", _columns("set"), rows, on_page=False)


def _columns(*heads: str) -> list[Column]:
    columns = [Column(head) for head in (*Group.HEADS, *heads, "length")]
    columns += [Column(head, digits=4, significant=True) for head in ("gold", *OUTCOMES, SPURIOUS)]
    return [*columns, RUNS]


def _rows(group: Group, sets: Sequence[str], *cells: Cell) -> list[list[Cell]]:
    """A row for each length, from the runs that were evaluated on all of the sets; empty without such a run."""
    scored = group.scored_on(*sets)
    runs = scored.runs
    if not runs:
        return []
    counts = tally([run.sets[name] for run in runs for name in sets])
    rows: list[list[Cell]] = []
    for length in LENGTHS:
        means = [counts[length, outcome] / len(runs) for outcome in (*OUTCOMES, SPURIOUS)]
        rows.append([*scored.cells, *cells, length, sum(means[:-1]), *means, runs_of(runs)])
    return rows
