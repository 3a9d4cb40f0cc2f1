"""Tables, written as CSV, LaTeX, Markdown, HTML and plain text.

The last column of a table, RUNS, holds the runs that each row is computed from (`Runs`): links to their folders on the
page, paths in CSV, JSON and Parquet, and the number of runs in the other formats.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup, escape

from .run_refs import Runs, counted, runs_of

Interval = tuple[float, float]
Cell = str | int | float | bool | None | Interval | Runs
FlatCell = str | int | float | bool | None | list[str]

MISSING = "–"
LONG_TEXT = 24  # characters above which a cell may be broken anywhere in print
MAX_LINKS = 24  # in a cell on the page; files have all runs
MAX_ROWS = 300  # in a table on the page and in report.md; CSV, LaTeX, JSON and Parquet have all rows
LATEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
}
LATEX_TRANSLATION = str.maketrans(LATEX_ESCAPES)
RUNS_CLASS = ' class="runs"'


@dataclass(frozen=True)
class Column:
    """A column and the format of its numbers. CSV, JSON and Parquet keep full precision instead.

    Args:
        digits: digits after the decimal point; with `significant`, significant digits.
        signed: whether positive numbers get a plus sign.
        percent: whether fractions are shown as percentages.
        interval: whether cells are pairs (low, high), which are two columns in CSV, JSON and Parquet.
    """

    head: str
    digits: int = 3
    signed: bool = False
    percent: bool = False
    significant: bool = False
    interval: bool = False

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
        return text.replace("-", "−") + ("\u00a0%" if self.percent else "")


RUNS = Column("runs")


@dataclass
class Table:
    """A table with a title and a note.

    Args:
        name: file name without suffix.
        title: heading of the table.
        note: what a reader needs to interpret the table; may be empty.
        shaded: indices of the rows that are shaded on the page.
        on_page: False if the table is written to files only, because it is too long for the page.
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

    def without_constant(self, *heads: str) -> Table:
        """The table without those of the named columns that have at most one distinct value, apart from None."""
        drop = {
            index
            for index, column in enumerate(self.columns)
            if column.head in heads and len({row[index] for row in self.rows} - {None}) <= 1
        }
        return self._with_columns([index for index in range(len(self.columns)) if index not in drop])

    def _with_columns(self, kept: Sequence[int]) -> Table:
        """The table with the columns at these indices only."""
        columns = [self.columns[index] for index in kept]
        return replace(self, columns=columns, rows=[[row[index] for index in kept] for row in self.rows])

    def _without_runs(self) -> Table:
        return self._with_columns([index for index, column in enumerate(self.columns) if column is not RUNS])

    @cached_property
    def runs(self) -> Runs:
        """The runs of all rows."""
        return runs_of(*(cell for row in self.rows for cell in row if isinstance(cell, Runs)))

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

    def _for_page(self) -> Table:
        """The rows that the page shows."""
        return replace(self, rows=self.rows[:MAX_ROWS])

    def texts(self) -> list[list[str]]:
        """All cells as text."""
        return [
            [column.format(value) for column, value in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]

    def is_numeric(self, index: int) -> bool:
        """Whether a column has only numbers and missing values, and is therefore aligned right."""
        values = [row[index] for row in self.rows if row[index] is not None]
        return all(isinstance(value, int | float | tuple) and not isinstance(value, bool) for value in values)

    def flat_rows(self, base: Path = Path()) -> list[list[FlatCell]]:
        """The rows under `csv_heads`, as written to CSV, JSON and Parquet; computed once for all of them.

        An interval becomes two cells, NaN becomes None, and runs become the paths of their folders relative to `base`.
        """
        if base not in self._flat:
            self._flat[base] = [[value for cell in row for value in _flat(cell, base)] for row in self.rows]
        return self._flat[base]

    def to_csv(self, notice: str = "", base: Path = Path()) -> str:
        """Format as CSV in full precision; run folders are separated by "; ".

        A notice becomes the last column, so that every tool that reads the file keeps it.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        heads = [name for column in self.columns for name in column.csv_heads]
        writer.writerow(heads + (["notice"] if notice else []))
        for cells in self.flat_rows(base):
            values = ["; ".join(cell) if isinstance(cell, list) else cell for cell in cells]
            writer.writerow(
                ["" if value is None else value for value in values] + ([notice] if notice else [])
            )
        return text.getvalue()

    def to_markdown(self) -> str:
        """Format the rows on the page as a Markdown pipe table."""
        table = self._for_page()
        numeric = [table.is_numeric(index) for index in range(len(table.columns))]
        lines = [
            [_markdown(column.head) for column in table.columns],
            ["---:" if right else "---" for right in numeric],
        ]
        lines += [[_markdown(text) for text in row] for row in table.texts()]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def to_latex(self, notice: str = "") -> str:
        """Format as a booktabs `tabular`; every cell is escaped; title, note and notice are comments."""
        table = self._without_runs()
        numeric = [table.is_numeric(index) for index in range(len(table.columns))]
        comments = [line for line in (notice, self.title, self.full_note) if line]
        lines = [f"% {' '.join(line.split())}" for line in comments]
        lines += [rf"\begin{{tabular}}{{{''.join('r' if right else 'l' for right in numeric)}}}", r"\toprule"]
        lines += [_latex_row([column.head for column in table.columns]), r"\midrule"]
        lines += [_latex_row(row) for row in table.texts()]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])

    def to_text(self) -> str:
        """Format the rows on the page as aligned columns for a terminal."""
        table = self._for_page()._without_runs()
        numeric = [table.is_numeric(index) for index in range(len(table.columns))]
        lines = [[column.head for column in table.columns], *table.texts()]
        widths = [max(len(line[index]) for line in lines) for index in range(len(table.columns))]
        lines.insert(1, ["-" * width for width in widths])
        return "\n".join(
            "  ".join(
                text.rjust(width) if right else text.ljust(width)
                for text, width, right in zip(line, widths, numeric, strict=True)
            ).rstrip()
            for line in lines
        )

    def to_html(self, base: Path = Path()) -> Markup:
        """Format the first MAX_ROWS rows as a `table` element; every text is escaped.

        Args:
            base: folder of the page, to which links are relative.
        """
        table = self._for_page()
        classes = [' class="n"' if table.is_numeric(index) else "" for index in range(len(table.columns))]
        head = "".join(
            f'<th scope="col"{RUNS_CLASS if column is RUNS else html_class}>{escape(column.head)}</th>'
            for html_class, column in zip(classes, table.columns, strict=True)
        )
        rows = []
        for index, (cells, texts) in enumerate(zip(table.rows, table.texts(), strict=True)):
            shaded = ' class="shaded"' if index in self.shaded else ""
            parts = (
                self._html_runs(cell, text, base) if isinstance(cell, Runs) else _html_cell(text, html_class)
                for html_class, text, cell in zip(classes, texts, cells, strict=True)
            )
            rows.append(f"<tr{shaded}>{''.join(parts)}</tr>\n")
        return Markup(f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody>\n</table>")

    def _html_runs(self, runs: Runs, text: str, base: Path) -> str:
        """A cell that expands to links to the run folders; a single run is one link."""
        folders = runs.folders(base)
        if not folders:
            return f"<td{RUNS_CLASS}>{MISSING}</td>"
        if len(folders) == 1:
            return f"<td{RUNS_CLASS}>{_html_link(folders[0], text)}</td>"
        links = [_html_link(folder, folder.rpartition("/")[2]) for folder in folders[:MAX_LINKS]]
        if more := len(folders) - len(links):
            links.append(f"{more:,} more: tables/{escape(self.name)}.csv")
        return (
            f"<td{RUNS_CLASS}><details><summary>{escape(text)}</summary>{'<br>'.join(links)}</details></td>"
        )


def _html_cell(text: str, html_class: str) -> str:
    if len(text) > LONG_TEXT and not html_class:
        html_class = ' class="long"'
    return f"<td{html_class}>{escape(text)}</td>"


def _html_link(folder: str, text: str) -> str:
    return f'<a href="{escape(quote(folder))}" title="{escape(folder)}">{escape(text)}</a>'


def _flat(cell: Cell, base: Path) -> list[FlatCell]:
    """The values of a cell in CSV, JSON and Parquet."""
    if isinstance(cell, Runs):
        return [cell.folders(base)]
    if isinstance(cell, tuple):
        return [None if math.isnan(value) else value for value in cell]
    return [None if isinstance(cell, float) and math.isnan(cell) else cell]


@lru_cache(maxsize=100_000)
def latex_escape(text: str) -> str:
    """Escape a text so that LaTeX prints it literally."""
    return " ".join(text.split()).translate(LATEX_TRANSLATION)


def _latex_row(cells: Sequence[str]) -> str:
    row = " & ".join(latex_escape(cell) for cell in cells) + r" \\"
    return "{}" + row if row.startswith("[") else row  # else an argument of the previous row's \\


def _markdown(text: str) -> str:
    """Escape a cell of a pipe table: line breaks, bars and HTML."""
    return str(escape(" ".join(text.split()))).replace("|", "\\|").replace("&#39;", "'").replace("&#34;", '"')
