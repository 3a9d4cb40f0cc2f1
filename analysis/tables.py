"""One table type, written as CSV, LaTeX, Markdown and HTML."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

Interval = tuple[float, float]
Cell = str | int | float | bool | None | Interval

ABSENT = "–"
LONG = 24  # characters of a cell
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
        kept = [index for index in range(len(self.columns)) if index not in drop]
        return Table(
            self.name,
            self.title,
            [self.columns[index] for index in kept],
            [[row[index] for index in kept] for row in self.rows],
            self.note,
            self.tinted,
            self.on_page,
        )

    def shown(self) -> list[list[str]]:
        """Every cell as text."""
        return [
            [column.show(value) for column, value in zip(self.columns, row, strict=True)] for row in self.rows
        ]

    def is_numeric(self, index: int) -> bool:
        """Whether a column holds numbers only (missing values aside), so that it is set flush right."""
        values = [row[index] for row in self.rows if row[index] is not None]
        return all(isinstance(value, int | float | tuple) and not isinstance(value, bool) for value in values)

    def flat_rows(self) -> list[list[Cell]]:
        """The rows under the heads of CSV: an interval is two cells, NaN is None."""
        flat = (
            [value for cell in row for value in (cell if isinstance(cell, tuple) else (cell,))]
            for row in self.rows
        )
        return [
            [None if isinstance(value, float) and math.isnan(value) else value for value in row]
            for row in flat
        ]

    def to_csv(self, notice: str = "") -> str:
        """Full precision, one head line; a notice becomes a last column, so that any reader keeps it."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        heads = [name for column in self.columns for name in column.csv_heads]
        writer.writerow(heads + (["notice"] if notice else []))
        for cells in self.flat_rows():
            writer.writerow(
                ["" if value is None else value for value in cells] + ([notice] if notice else [])
            )
        return text.getvalue()

    def to_markdown(self) -> str:
        """A pipe table."""
        numeric = [self.is_numeric(index) for index in range(len(self.columns))]
        lines = [
            [_markdown(column.head) for column in self.columns],
            ["---:" if right else "---" for right in numeric],
        ]
        lines += [[_markdown(text) for text in row] for row in self.shown()]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def to_latex(self, notice: str = "") -> str:
        """A `tabular` for the package booktabs, every cell escaped; title, note and notice are comments."""
        numeric = [self.is_numeric(index) for index in range(len(self.columns))]
        comments = [line for line in (notice, self.title, self.note) if line]
        lines = [f"% {' '.join(line.split())}" for line in comments]
        lines += [rf"\begin{{tabular}}{{{''.join('r' if right else 'l' for right in numeric)}}}", r"\toprule"]
        lines += [_latex_row([column.head for column in self.columns]), r"\midrule"]
        lines += [_latex_row(row) for row in self.shown()]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])

    def to_text(self) -> str:
        """Aligned columns for a terminal."""
        numeric = [self.is_numeric(index) for index in range(len(self.columns))]
        lines = [[column.head for column in self.columns], *self.shown()]
        widths = [max(len(line[index]) for line in lines) for index in range(len(self.columns))]
        lines.insert(1, ["-" * width for width in widths])
        return "\n".join(
            "  ".join(
                text.rjust(width) if right else text.ljust(width)
                for text, width, right in zip(line, widths, numeric, strict=True)
            ).rstrip()
            for line in lines
        )

    def to_html(self) -> Markup:
        """A `table` element; every text is escaped."""
        numeric = [self.is_numeric(index) for index in range(len(self.columns))]
        classes = [Markup(' class="n"') if right else Markup("") for right in numeric]
        long = Markup(' class="long"')  # may be broken anywhere on paper
        head = Markup("").join(
            Markup('<th scope="col"{}>{}</th>').format(kind, column.head)
            for kind, column in zip(classes, self.columns, strict=True)
        )
        body = Markup("").join(
            Markup("<tr{}>{}</tr>\n").format(
                Markup(' class="tinted"') if index in self.tinted else Markup(""),
                Markup("").join(
                    Markup("<td{}>{}</td>").format(long if len(text) > LONG and not kind else kind, text)
                    for kind, text in zip(classes, row, strict=True)
                ),
            )
            for index, row in enumerate(self.shown())
        )
        return Markup("<table>\n<thead><tr>{}</tr></thead>\n<tbody>\n{}</tbody>\n</table>").format(head, body)


def latex_escape(text: str) -> str:
    """Text that LaTeX sets as it stands."""
    return "".join(LATEX_ESCAPES.get(character, character) for character in " ".join(text.split()))


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(latex_escape(cell) for cell in cells) + r" \\"


def _markdown(text: str) -> str:
    """A cell of a pipe table: no line break or bar ends it, and no part of it is taken for HTML."""
    return str(escape(" ".join(text.split()))).replace("|", "\\|").replace("&#39;", "'").replace("&#34;", '"')
