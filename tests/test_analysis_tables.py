"""A table in all formats: numbers are kept, and text of the data is never interpreted as markup."""

from __future__ import annotations

import csv
import io
from html.parser import HTMLParser

import pytest

from analysis.tables import MAX_ROWS, MISSING, Cell, Column, Table, latex_escape

HOSTILE = "<script>alert(1)</script> a|b & 50% $x_1$ #{}~^\\"


def table() -> Table:
    columns = [Column("name"), Column("n"), Column("F1"), Column("gap", digits=2, signed=True)]
    columns += [Column("95 %", signed=True, interval=True), Column("yes?")]
    rows: list[list[Cell]] = [
        ["plain", 1234, 1 / 3, -0.5, (-0.125, 0.25), True],
        [HOSTILE, 0, float("nan"), 0.004, (float("nan"), float("nan")), False],
        ["", None, None, 12.0, (0.0, 1.0), None],
    ]
    return Table("t", "A title", columns, rows, "A note.")


def test_csv_keeps_full_precision() -> None:
    rows = list(csv.DictReader(io.StringIO(table().to_csv())))
    assert list(rows[0]) == ["name", "n", "F1", "gap", "95 % low", "95 % high", "yes?"]
    assert float(rows[0]["F1"]) == 1 / 3
    assert (float(rows[0]["95 % low"]), float(rows[0]["95 % high"])) == (-0.125, 0.25)
    assert rows[1]["name"] == HOSTILE
    assert rows[1]["F1"] == rows[1]["95 % low"] == rows[2]["n"] == ""


def test_csv_has_the_notice_in_a_column() -> None:
    rows = list(csv.DictReader(io.StringIO(table().to_csv("synthetic"))))
    assert [row["notice"] for row in rows] == ["synthetic"] * 3


def test_formatted_cells() -> None:
    texts = table().texts()
    assert texts[0] == ["plain", "1,234", "0.333", "−0.50", "[−0.125, +0.250]", "yes"]
    assert texts[1][2:] == [MISSING, "+0.00", MISSING, "no"]


class Texts(HTMLParser):
    """The texts of the cells, and the elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.elements: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data.strip("\n")


def test_html_has_the_texts_escaped() -> None:
    parsed = Texts(table().to_html())
    heads = [column.head for column in table().columns]
    assert parsed.cells == [*heads, *(text for row in table().texts() for text in row)]
    assert parsed.elements == {"table", "thead", "tbody", "tr", "th", "td"}


def test_markdown_has_the_same_number_of_cells_in_every_line() -> None:
    lines = table().to_markdown().splitlines()
    assert {line.replace("\\|", "").count("|") for line in lines} == {7}
    assert "<script>" not in table().to_markdown()


def test_latex_is_escaped_and_has_title_and_notice_as_comments() -> None:
    text = table().to_latex("synthetic\ndata")
    assert text.startswith("% synthetic data\n% A title\n% A note.\n\\begin{tabular}{lrrrrl}\n\\toprule\n")
    assert r"\textless{}script\textgreater{}" in text
    assert r"50\% \$x\_1\$ \#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{} & 0 &" in text
    body = text.split(r"\toprule")[1]
    assert {line.replace(r"\&", "").count("&") for line in body.splitlines() if line.endswith(r"\\")} == {5}


def test_latex_escape_of_an_en_dash_and_a_minus() -> None:
    assert latex_escape("−1 – 2") == "$-$1 -- 2"


def test_only_named_constant_columns_are_omitted() -> None:
    columns = [Column("a"), Column("b"), Column("c")]
    found = Table("t", "t", columns, [[1, "x", 5], [1, None, 6]]).without_constant("b", "c")
    assert [column.head for column in found.columns] == ["a", "c"]
    assert found.rows == [[1, 5], [1, 6]]


def test_terminal_text_is_aligned() -> None:
    lines = table().to_text().splitlines()
    assert lines[2].index("1,234") + 5 == lines[0].index(" n ") + 2
    assert len(lines) == 5


def test_a_row_of_the_wrong_length_raises() -> None:
    with pytest.raises(ValueError, match="2 cells, expected 1"):
        Table("t", "t", [Column("a")], [[1, 2]])


def test_the_page_truncates_a_long_table() -> None:
    rows: list[list[Cell]] = [[index] for index in range(MAX_ROWS + 7)]
    long, short = Table("t", "", [Column("n")], rows), Table("t", "", [Column("n")], rows[:MAX_ROWS])
    assert long.to_html().count("<tr>") == short.to_html().count("<tr>") == 1 + MAX_ROWS
    assert len(long.to_markdown().splitlines()) == 2 + MAX_ROWS
    assert long.truncation == f"The first {MAX_ROWS} of {MAX_ROWS + 7} rows are shown; tables/t.csv has all."
    assert short.truncation == ""
    assert len(long.to_csv().splitlines()) == 1 + len(rows)
    assert long.to_latex().count(r" \\") == 1 + len(rows)
