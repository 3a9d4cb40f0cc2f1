"""Tables, and their text as CSV, Markdown and for a terminal; latex.py and html_table.py have the other formats.

The last column of a table, RUNS, holds the runs that each row is computed from (`Runs`): links to their folders in a
row's details on the page, paths in CSV, JSON and Parquet, and the number of runs in Markdown.

Rows of runs on synthetic data are marked: with a notice in their last cell in CSV, JSON and Parquet; in the other formats
with one notice at the table if this concerns all rows, and otherwise with a dagger in the first cell of each.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from statistics import fmean

from markupsafe import escape

from metapt.data import DEMO_NOTICE

from .run_refs import Runs, counted, runs_of

Interval = tuple[float, float]
Cell = str | int | float | bool | None | Interval | Runs
FlatCell = str | int | float | bool | None | list[str]

MISSING = "–"
DAGGER = "†"
NOTICE = "notice"
"""the last column of CSV, JSON and Parquet in a table with synthetic data"""
MAX_ROWS = 200  # in a table on the page and in report.md; CSV, LaTeX, JSON and Parquet have all rows
WIDE = 8  # evaluation sets above which a table gets means, and a button to show or hide each group of sets
MEANS = "means"
"""the group of the columns that `Table.with_means` adds"""


@dataclass(frozen=True)
class Column:
    """A column and the format of its numbers. CSV, JSON and Parquet keep full precision instead.

    Args:
        digits: digits after the decimal point; with `significant`, significant digits.
        signed: whether positive numbers get a plus sign.
        percent: whether fractions are shown as percentages.
        interval: whether cells are pairs (low, high), which are two columns in CSV, JSON and Parquet.
        optional: whether the column is omitted if no row has a text in it.
        group: what the column has in common with its neighbours, such as a kind of evaluation set; may be empty.
    """

    head: str
    digits: int = 3
    signed: bool = False
    percent: bool = False
    significant: bool = False
    interval: bool = False
    optional: bool = False
    group: str = ""

    @property
    def csv_heads(self) -> list[str]:
        """The column names in CSV: one, or two for an interval."""
        return [f"{self.head} low", f"{self.head} high"] if self.interval else [self.head]

    def format(self, value: Cell) -> str:
        """Format a cell as text; a missing value or NaN is a dash."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return MISSING
        if isinstance(value, Runs):
            return counted(len(value), "run")
        if isinstance(value, tuple):
            low, high = value
            return MISSING if math.isnan(low) else f"[{self._number(low)}, {self._number(high)}]"
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, int):
            return f"{value:+,}" if self.signed else f"{value:,}"
        if isinstance(value, float):
            return self._number(value)
        return value

    def _number(self, value: float) -> str:
        sign = "+" if self.signed else ""
        specification = f"{sign},.{self.digits}{'g' if self.significant else 'f'}"
        text = f"{value * 100 if self.percent else value:{specification}}"
        return text.replace("-", "−") + ("\u202f%" if self.percent else "")


RUNS = Column("runs")


@dataclass
class Table:
    """A table with a title and a note.

    Args:
        name: file name without suffix.
        title: heading of the table.
        note: what a reader needs to interpret the table; may be empty.
        shaded: indices of the rows that are shaded on the page.
        on_page: False if the page shows only the title until a reader opens the table.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: list[list[Cell]] = field(default_factory=list)
    note: str = ""
    shaded: set[int] = field(default_factory=set)
    on_page: bool = True
    _flat: dict[Path, list[list[FlatCell]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.name}: a row has {len(row)} cells, expected {len(self.columns)} (one for each column)"
                )
        kept = [index for index in range(len(self.columns)) if not self._is_omitted(index)]
        if len(kept) < len(self.columns):
            self.columns = [self.columns[index] for index in kept]
            self.rows = [[row[index] for index in kept] for row in self.rows]

    def _is_omitted(self, index: int) -> bool:
        return self.columns[index].optional and not any(row[index] for row in self.rows)

    def without_constant(self, *heads: str) -> Table:
        """The table without those of the named columns that have at most one distinct value, apart from None."""
        return self._with_columns(
            index
            for index, column in enumerate(self.columns)
            if column.head not in heads or len({row[index] for row in self.rows} - {None}) > 1
        )

    def _with_columns(self, kept: Iterable[int]) -> Table:
        """The table with the columns at these indices only."""
        indices = list(kept)
        columns = [self.columns[index] for index in indices]
        return replace(self, columns=columns, rows=[[row[index] for index in indices] for row in self.rows])

    @property
    def is_wide(self) -> bool:
        """Whether so many columns are in groups that a reader needs means and a choice of groups."""
        return sum(column.group not in ("", MEANS) for column in self.columns) > WIDE

    def with_means(self) -> Table:
        """A wide table with the mean of each group of numbers in front of the groups; another table unchanged.

        A row has a mean only if it has a number in every column of the group, so that means are comparable.
        """
        if not self.is_wide:
            return self
        groups: dict[str, list[int]] = {}
        for index, column in enumerate(self.columns):
            if column.group:
                groups.setdefault(column.group, []).append(index)
        start = min(index for indices in groups.values() for index in indices)
        means = [
            replace(self.columns[indices[0]], head=f"{group}, {counted(len(indices), 'set')}", group=MEANS)
            for group, indices in groups.items()
        ]
        rows = [
            [
                *row[:start],
                *(_mean([row[index] for index in indices]) for indices in groups.values()),
                *row[start:],
            ]
            for row in self.rows
        ]
        columns = [*self.columns[:start], *means, *self.columns[start:]]
        return replace(self, columns=columns, rows=rows)

    def column_groups(self) -> list[tuple[str, list[int]]]:
        """Neighbouring columns of the same group: (group, indices); the group is empty if the table is not wide."""
        shown = [column.group if self.is_wide else "" for column in self.columns]
        return [
            (group, list(indices)) for group, indices in groupby(range(len(shown)), key=shown.__getitem__)
        ]

    @cached_property
    def runs(self) -> Runs:
        """The runs of all rows."""
        return runs_of(*(cell for row in self.rows for cell in row if isinstance(cell, Runs)))

    @cached_property
    def synthetic(self) -> set[int]:
        """The indices of the rows that are computed from a run on synthetic data."""
        return {
            index
            for index, row in enumerate(self.rows)
            if any(isinstance(cell, Runs) and cell.synthetic for cell in row)
        }

    @property
    def notice(self) -> str:
        """The notice about synthetic data, which names the rows that it concerns; may be empty."""
        if not self.synthetic:
            return ""
        return DEMO_NOTICE if len(self.synthetic) == len(self.rows) else f"{DAGGER} {DEMO_NOTICE}"

    @property
    def full_note(self) -> str:
        """The note, and how many runs the table is computed from."""
        return f"{self.note} {self.runs or ''}".strip()

    @property
    def truncation(self) -> str:
        """A sentence on the rows that the page omits, or an empty string."""
        if len(self.rows) <= MAX_ROWS:
            return ""
        return f"The first {MAX_ROWS} of {len(self.rows):,} rows are shown; tables/{self.name}.csv has all."

    def texts(self, max_rows: int | None = None) -> list[list[str]]:
        """The cells of the first rows as text; in a table with and without synthetic data, its rows are marked."""
        texts = [
            [column.format(value) for column, value in zip(self.columns, row, strict=True)]
            for row in self.rows[:max_rows]
        ]
        if len(self.synthetic) < len(self.rows):
            for index in self.synthetic & set(range(len(texts))):
                texts[index][0] = f"{texts[index][0]} {DAGGER}".lstrip()
        return texts

    def lines(
        self, columns: Sequence[int], max_rows: int | None = None
    ) -> tuple[list[list[str]], list[bool]]:
        """The heads and the first rows as text, and whether each column is numeric.

        Args:
            columns: the indices of the columns.
        """
        lines = [[column.head for column in self.columns], *self.texts(max_rows)]
        return [[line[index] for index in columns] for line in lines], [*map(self.is_numeric, columns)]

    def columns_without_runs(self) -> list[int]:
        """The indices of all columns but RUNS, which is useless on paper and in a terminal."""
        return [index for index, column in enumerate(self.columns) if column is not RUNS]

    def is_numeric(self, index: int) -> bool:
        """Whether a column has only numbers and missing values, and is therefore aligned right."""
        values = [row[index] for row in self.rows if row[index] is not None]
        return all(isinstance(value, int | float | tuple) and not isinstance(value, bool) for value in values)

    @property
    def flat_heads(self) -> list[str]:
        """The names of the columns in CSV, JSON and Parquet."""
        heads = [head for column in self.columns for head in column.csv_heads]
        return [*heads, NOTICE] if self.synthetic else heads

    def flat_rows(self, base: Path = Path()) -> list[list[FlatCell]]:
        """The rows under `flat_heads`, as written to CSV, JSON and Parquet; computed once for all of them.

        An interval becomes two cells, NaN becomes None, and runs become the paths of their folders relative to `base`.
        """
        if base not in self._flat:
            rows = [[value for cell in row for value in _flat(cell, base)] for row in self.rows]
            if self.synthetic:
                for index, row in enumerate(rows):
                    row.append(DEMO_NOTICE if index in self.synthetic else None)
            self._flat[base] = rows
        return self._flat[base]

    def to_csv(self, base: Path = Path()) -> str:
        """Format as CSV in full precision; run folders are separated by "; "."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.flat_heads)
        for cells in self.flat_rows(base):
            values = ["; ".join(cell) if isinstance(cell, list) else cell for cell in cells]
            writer.writerow(["" if value is None else value for value in values])
        return text.getvalue()

    def to_markdown(self) -> str:
        """Format the rows on the page as a Markdown pipe table."""
        (heads, *rows), numeric = self.lines(range(len(self.columns)), MAX_ROWS)
        rule = ["---:" if right else "---" for right in numeric]
        lines = [[*map(_markdown, heads)], rule, *([*map(_markdown, row)] for row in rows)]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def to_text(self) -> str:
        """Format the rows on the page as aligned columns for a terminal; of a wide table, its means and first group."""
        groups = self.column_groups()
        first = next((group for group, _ in groups if group not in ("", MEANS)), "")
        shown = {index for group, indices in groups if group in ("", MEANS, first) for index in indices}
        lines, numeric = self.lines(
            [index for index in self.columns_without_runs() if index in shown], MAX_ROWS
        )
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["-" * width for width in widths])
        return "\n".join(
            "  ".join(
                text.rjust(width) if right else text.ljust(width)
                for text, width, right in zip(line, widths, numeric, strict=True)
            ).rstrip()
            for line in lines
        )


def unbroken(text: str) -> str:
    """Join numbers to their percent sign by a narrow space, at which no line ends."""
    return re.sub(r"(?<=\d)[ \u00a0]?(?=%)", "\u202f", text)


def enumerated(names: Sequence[str]) -> str:
    """Join names as in a sentence: "a, b and c"."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _mean(cells: Sequence[Cell]) -> float | None:
    """The mean of numbers; None if one is missing."""
    numbers = [float(cell) for cell in cells if isinstance(cell, int | float) and not math.isnan(cell)]
    return fmean(numbers) if len(numbers) == len(cells) else None


def _flat(cell: Cell, base: Path) -> list[FlatCell]:
    """The values of a cell in CSV, JSON and Parquet."""
    if isinstance(cell, Runs):
        return [cell.folders(base)]
    if isinstance(cell, tuple):
        return [None if math.isnan(value) else value for value in cell]
    return [None if isinstance(cell, float) and math.isnan(cell) else cell]


def _markdown(text: str) -> str:
    """Escape a cell of a pipe table: line breaks, bars and HTML."""
    return str(escape(" ".join(text.split()))).replace("|", "\\|").replace("&#39;", "'").replace("&#34;", '"')


def points(f1: float) -> str:
    """Return a difference of F1 in points, such as "+1.5" or "−0.3"; never a negative zero."""
    return f"{round(100 * f1, 1) + 0.0:+.1f}".replace("-", "\u2212")
