"""One table type, written as CSV, LaTeX, Markdown and HTML.

The last cell of a row says which runs it was computed from (`Runs`, under RUNS): links on the page, paths in the files
for machines, a number elsewhere.
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

from .stats.run_refs import Runs, counted, runs_of

Interval = tuple[float, float]
Cell = str | int | float | bool | None | Interval | Runs
Flat = str | int | float | bool | None | list[str]

ABSENT = "–"
LONG = 24  # characters of a cell
MOST_LINKS = 24  # in a cell of the page; files have all
MOST_ROWS = 300  # of a table on the page, and in report.md
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
ESCAPED = str.maketrans(LATEX_ESCAPES)


@dataclass(frozen=True)
class Column:
    """A column head, and how its numbers look outside of CSV (which keeps every digit).

    Args:
        digits: after the point; with `significant`, in all.
        signed: a plus sign stands before positive numbers.
        percent: shown times 100.
        interval: its cells are pairs (low, high); in CSV they are two columns.
    """

    head: str
    digits: int = 3
    signed: bool = False
    percent: bool = False
    significant: bool = False
    interval: bool = False

    @property
    def csv_heads(self) -> list[str]:
        """The name in CSV; of an interval, its two names."""
        return [f"{self.head} low", f"{self.head} high"] if self.interval else [self.head]

    def show(self, value: Cell) -> str:
        """The text of a cell; a missing value, NaN among them, is a dash."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ABSENT
        if isinstance(value, Runs):
            return counted(len(value), "run")
        if isinstance(value, tuple):
            return ABSENT if math.isnan(value[0]) else f"{self._number(value[0])} to {self._number(value[1])}"
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, int):
            return f"{value:+,}" if self.signed else f"{value:,}"
        if isinstance(value, float):
            return self._number(value)
        return value

    def _number(self, value: float) -> str:
        sign = "+" if self.signed else ""
        form = f"{sign},.{self.digits}{'g' if self.significant else 'f'}"
        text = format(value * 100 if self.percent else value, form)
        return text.replace("-", "−") + ("\u00a0%" if self.percent else "")


RUNS = Column("runs")


@dataclass
class Table:
    """Rows under columns.

    Args:
        name: the file name without its ending.
        title: one line over the table.
        note: what a reader must know to read it; may be empty.
        tinted: indices of rows that are set apart on the page.
        on_page: False for a table too long for the page, which is written to files only.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: list[list[Cell]] = field(default_factory=list)
    note: str = ""
    tinted: set[int] = field(default_factory=set)
    on_page: bool = True
    _flat: dict[Path, list[list[Flat]]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.name}: a row of {len(row)} cells under {len(self.columns)} columns"
                )

    def without_constant(self, *heads: str) -> Table:
        """The table without those of the named columns that hold no two values (an absent one aside)."""
        drop = {
            index
            for index, column in enumerate(self.columns)
            if column.head in heads and len({row[index] for row in self.rows} - {None}) <= 1
        }
        return self._only([index for index in range(len(self.columns)) if index not in drop])

    def _only(self, kept: Sequence[int]) -> Table:
        """The table with these columns."""
        columns = [self.columns[index] for index in kept]
        return replace(self, columns=columns, rows=[[row[index] for index in kept] for row in self.rows])

    def _for_reading(self) -> Table:
        """Without the column of runs."""
        return self._only([index for index, column in enumerate(self.columns) if column is not RUNS])

    @cached_property
    def runs(self) -> Runs:
        """All runs that the rows name."""
        return runs_of(*(cell for row in self.rows for cell in row if isinstance(cell, Runs)))

    @property
    def about(self) -> str:
        """The note, and from how many runs the table is."""
        return f"{self.note} {self.runs or ''}".strip()

    @property
    def cut(self) -> str:
        """A sentence on the rows that the page leaves out, if there are any."""
        if len(self.rows) <= MOST_ROWS:
            return ""
        return f"The first {MOST_ROWS} of {len(self.rows):,} rows; tables/{self.name}.csv has all."

    def _for_page(self) -> Table:
        """The rows that the page shows."""
        return replace(self, rows=self.rows[:MOST_ROWS])

    def shown(self) -> list[list[str]]:
        """Every cell as text."""
        return [
            [column.show(value) for column, value in zip(self.columns, row, strict=True)] for row in self.rows
        ]

    def is_numeric(self, index: int) -> bool:
        """Whether a column holds numbers only (missing values aside), so that it is set flush right."""
        values = [row[index] for row in self.rows if row[index] is not None]
        return all(isinstance(value, int | float | tuple) and not isinstance(value, bool) for value in values)

    def flat_rows(self, base: Path = Path()) -> list[list[Flat]]:
        """The rows under the heads of CSV: an interval is two cells, NaN is None, runs are their folders seen from `base`.

        Kept, since every format for machines asks for them.
        """
        if base not in self._flat:
            self._flat[base] = [[value for cell in row for value in _flat(cell, base)] for row in self.rows]
        return self._flat[base]

    def to_csv(self, notice: str = "", base: Path = Path()) -> str:
        """Full precision, one head line; a notice becomes a last column, so that any reader keeps it. "; " parts folders."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        heads = [name for column in self.columns for name in column.csv_heads]
        writer.writerow(heads + (["notice"] if notice else []))
        for cells in self.flat_rows(base):
            texts = ["; ".join(value) if isinstance(value, list) else value for value in cells]
            writer.writerow(["" if text is None else text for text in texts] + ([notice] if notice else []))
        return text.getvalue()

    def to_markdown(self) -> str:
        """A pipe table of the rows that the page shows."""
        table = self._for_page()
        numeric = [table.is_numeric(index) for index in range(len(table.columns))]
        lines = [
            [_markdown(column.head) for column in table.columns],
            ["---:" if right else "---" for right in numeric],
        ]
        lines += [[_markdown(text) for text in row] for row in table.shown()]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def to_latex(self, notice: str = "") -> str:
        """A `tabular` for the package booktabs, every cell escaped; title, note and notice are comments."""
        table = self._for_reading()
        numeric = [table.is_numeric(index) for index in range(len(table.columns))]
        comments = [line for line in (notice, self.title, self.about) if line]
        lines = [f"% {' '.join(line.split())}" for line in comments]
        lines += [rf"\begin{{tabular}}{{{''.join('r' if right else 'l' for right in numeric)}}}", r"\toprule"]
        lines += [_latex_row([column.head for column in table.columns]), r"\midrule"]
        lines += [_latex_row(row) for row in table.shown()]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])

    def to_text(self) -> str:
        """Aligned columns for a terminal, of the rows that the page shows."""
        table = self._for_page()._for_reading()
        numeric = [table.is_numeric(index) for index in range(len(table.columns))]
        lines = [[column.head for column in table.columns], *table.shown()]
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
        """A `table` element for a page in the folder `base`, of its first rows; every text is escaped."""
        table = self._for_page()
        kinds = [' class="n"' if table.is_numeric(index) else "" for index in range(len(table.columns))]
        heads = [' class="runs"' if column is RUNS else kind for kind, column in zip(kinds, table.columns, strict=True)]  # fmt: skip
        head = "".join(f'<th scope="col"{kind}>{escape(column.head)}</th>' for kind, column in zip(heads, table.columns, strict=True))  # fmt: skip
        rows = []
        for index, (cells, texts) in enumerate(zip(table.rows, table.shown(), strict=True)):
            tinted = ' class="tinted"' if index in self.tinted else ""
            parts = (
                self._links(cell, text, base) if isinstance(cell, Runs) else _html_cell(text, kind)
                for kind, text, cell in zip(kinds, texts, cells, strict=True)
            )
            rows.append(f"<tr{tinted}>{''.join(parts)}</tr>\n")
        return Markup(f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody>\n</table>")

    def _links(self, runs: Runs, text: str, base: Path) -> str:
        """A cell that opens to links, one a run's folder; one run is a link by itself."""
        folders = runs.folders(base)
        if len(folders) == 1:
            return f'<td class="runs">{_link(folders[0], text)}</td>'
        items = [_link(folder, folder.rpartition("/")[2]) for folder in folders[:MOST_LINKS]]
        if more := len(folders) - len(items):
            items.append(f"{more:,} more: tables/{escape(self.name)}.csv")
        inner = f"<details><summary>{escape(text)}</summary>{'<br>'.join(items)}</details>"
        return f'<td class="runs">{inner if items else ABSENT}</td>'


def _html_cell(text: str, kind: str) -> str:
    if len(text) > LONG and not kind:
        kind = ' class="long"'  # may be broken anywhere on paper
    return f"<td{kind}>{escape(text)}</td>"


def _link(folder: str, text: str) -> str:
    return f'<a href="{escape(quote(folder))}" title="{escape(folder)}">{escape(text)}</a>'


def _flat(cell: Cell, base: Path) -> list[Flat]:
    """The values of a cell in files for machines."""
    if isinstance(cell, Runs):
        return [cell.folders(base)]
    if isinstance(cell, tuple):
        return [None if math.isnan(value) else value for value in cell]
    return [None if isinstance(cell, float) and math.isnan(cell) else cell]


@lru_cache(maxsize=100_000)
def latex_escape(text: str) -> str:
    """Text that LaTeX sets as it stands."""
    return " ".join(text.split()).translate(ESCAPED)


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(latex_escape(cell) for cell in cells) + r" \\"


def _markdown(text: str) -> str:
    """A cell of a pipe table: no line break or bar ends it, and no part of it is taken for HTML."""
    return str(escape(" ".join(text.split()))).replace("|", "\\|").replace("&#39;", "'").replace("&#34;", '"')
