"""What kind of mistakes: every gold span has exactly one fate, and what is predicted beside all of them is spurious."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..load.collect import Collection
from ..load.records import Evaluation
from ..load.span_matching import COLUMNS, FATES, LENGTHS
from ..stats.comparison import Group, groups
from ..stats.run_refs import runs_of
from ..tables import RUNS, Cell, Column, Table

DEFINITION = (
    "Errors: a gold span is correct if it is predicted with its type and both boundaries; wrong type if exactly these "
    "words are predicted with another type; wrong boundary if neither, but a predicted span (of any type) shares a word with it; "
    "missed otherwise. A predicted span is spurious if it shares no word with any gold span. One word and several words: "
    "the length of the gold span, of the predicted span where it is spurious. Counts are means over seeds, summed over sets."
)


def tally(evaluations: Sequence[Evaluation]) -> Counter[tuple[str, str]]:
    """Spans by (length, fate or `spurious`), over several evaluations."""
    nothing = np.zeros((len(LENGTHS), COLUMNS), dtype=int)
    found = sum((evaluation.tally for evaluation in evaluations), start=nothing)
    kinds = (*FATES, "spurious")
    return Counter({(length, kind): int(found[i, j]) for i, length in enumerate(LENGTHS) for j, kind in enumerate(kinds)})  # fmt: skip


def errors_table(collection: Collection) -> Table:
    """Fates of the gold spans of all target sets together, by group and length."""
    sets = collection.target_sets()
    rows: list[list[Cell]] = []
    for group in groups(collection):
        rows += _rows(group, sets, list(group.cells))
    title = f"Errors on {', '.join(sets)} together"
    return Table("errors", title, _columns(), rows).without_constant(*Group.OPTIONAL)


def errors_by_set_table(collection: Collection) -> Table:
    """The same for each set by itself."""
    rows: list[list[Cell]] = []
    for group in groups(collection):
        for name in collection.set_names():
            rows += _rows(group, [name], [*group.cells, name])
    return Table("errors_by_set", "Errors by set", _columns("set"), rows, on_page=False)


def _columns(*heads: str) -> list[Column]:
    columns = [Column(head) for head in (*Group.HEADS, *heads, "length")]
    columns += [Column(head, digits=4, significant=True) for head in ("gold", *FATES, "spurious")]
    return [*columns, RUNS]


def _rows(group: Group, sets: Sequence[str], cells: list[Cell]) -> list[list[Cell]]:
    """A row for each length, from the runs that were scored on all of the sets; none without such a run."""
    runs = [run for run in group.runs if all(name in run.sets for name in sets)]
    found = tally([run.sets[name] for run in runs for name in sets])
    rows: list[list[Cell]] = []
    for length in LENGTHS if runs else ():
        counts = [found[length, kind] / len(runs) for kind in (*FATES, "spurious")]
        rows.append([*cells, length, sum(counts[:-1]), *counts, runs_of(runs)])
    return rows
