"""A table in all formats: numbers are kept, and text of the data is never interpreted as markup."""

from __future__ import annotations

import csv
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis.html_table import to_html
from analysis.latex import latex_escape, to_latex
from analysis.run_refs import RunRef, Runs
from analysis.stats.agreement import remark
from analysis.tables import DAGGER, MAX_ROWS, MISSING, NOTICE, RUNS, WIDE, Cell, Column, Table, unbroken
from metapt.data import DEMO_NOTICE

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


def runs(*synthetic: bool) -> Runs:
    return Runs(
        tuple(RunRef(Path(f"runs/{index}"), "MAML", index, kind) for index, kind in enumerate(synthetic))
    )


def test_synthetic_data_marks_the_rows_it_concerns_and_no_others() -> None:
    rows: list[list[Cell]] = [["a", runs(False)], ["b", runs(False, True)], ["c", None], ["d", runs(True)]]
    mixed = Table("t", "A title", [Column("name"), RUNS], rows)
    assert [row[NOTICE] for row in csv.DictReader(io.StringIO(mixed.to_csv()))] == [
        "",
        DEMO_NOTICE,
        "",
        DEMO_NOTICE,
    ]
    assert [row[0] for row in mixed.texts()] == ["a", f"b {DAGGER}", "c", f"d {DAGGER}"]
    assert mixed.notice == f"{DAGGER} {DEMO_NOTICE}"
    for text in (mixed.to_markdown(), mixed.to_text(), to_html(mixed)):
        assert text.count(DAGGER) == 2
    assert to_latex(mixed).count(r"\textdagger{} \\") == 2
    assert to_latex(mixed).startswith(f"% {DAGGER} {DEMO_NOTICE}\n")
    only = Table("t", "A title", [Column("name"), RUNS], [rows[1], rows[3]])
    assert only.notice == DEMO_NOTICE
    assert [row[0] for row in only.texts()] == ["b", "d"]
    real = Table("t", "A title", [Column("name"), RUNS], [rows[0], rows[2]])
    assert real.notice == ""
    assert NOTICE not in real.flat_heads
    long = Table(
        "t",
        "",
        [Column("name"), RUNS],
        [[str(index), runs(index < MAX_ROWS)] for index in range(2 * MAX_ROWS)],
    )
    assert to_html(long).count(DAGGER) == long.to_markdown().count(DAGGER) == MAX_ROWS


def test_runs_say_how_many_of_them_are_synthetic() -> None:
    assert str(runs(False, False)) == "From 2 runs (2 MAML) of 2 seeds."
    assert str(runs(True)) == "From 1 run (1 MAML) of 1 seed, all on synthetic demo data."
    assert str(runs(True, False)) == "From 2 runs (2 MAML) of 2 seeds, 1 of them on synthetic demo data."


def test_a_wide_table_has_means_of_complete_groups_and_a_head_for_each_group() -> None:
    sizes = {"targets": 2, "others": WIDE}
    columns = [
        Column("name"),
        *(Column(f"{kind} {n}", group=kind) for kind, size in sizes.items() for n in range(size)),
        RUNS,
    ]
    full: list[Cell] = ["full", 0.1, 0.3, *(n / 10 for n in range(WIDE)), runs(False)]
    missing: list[Cell] = ["missing", 0.1, None, *(0.5 for _ in range(WIDE)), runs(False)]
    wide = Table("t", "", columns, [full, missing]).with_means()
    assert [column.head for column in wide.columns[:4]] == [
        "name",
        "targets, 2 sets",
        f"others, {WIDE} sets",
        "targets 0",
    ]
    assert wide.rows[0][1:3] == pytest.approx([0.2, (WIDE - 1) / 20])
    assert wide.rows[1][1:3] == [None, 0.5]
    heads = re.findall(r"<thead>.*</thead>", to_html(wide))[0]
    assert re.findall(r'colspan="(\d+)">(\w+)<', heads) == [
        ("2", "means"),
        ("2", "targets"),
        (str(WIDE), "others"),
    ]
    assert heads.count('rowspan="2"') == 1
    assert heads.count('scope="col"') == len(wide.columns) - 1
    shown = wide.to_text().splitlines()[0]
    assert "targets 1" in shown
    assert "others 0" not in shown
    narrow = Table("t", "", columns[:4], [full[:4]])
    assert narrow.with_means() is narrow
    assert "colspan" not in to_html(narrow)


def test_the_runs_of_a_row_are_its_details(tmp_path: Path) -> None:
    rows: list[list[Cell]] = [["a <b>", 1, runs(False, False)], ["", 2, runs(False)], ["none", 3, None]]
    found = Table("t", "", [Column("name"), Column("n"), RUNS], rows)
    assert "<th>runs" not in to_html(found)
    first, second, third = to_html(found, Path()).split("<tr>")[2:]
    assert "<summary>a &lt;b&gt;</summary>" in first
    assert re.findall(r'href="([^"]*)"', first) == ["runs/0", "runs/1"]
    assert f"<summary>{MISSING}</summary>" in second
    assert "<details>" not in third
    standalone = to_html(found)
    assert "href" not in standalone
    assert "runs/0" not in standalone
    assert f"<summary>a &lt;b&gt;</summary><div>{runs(False, False)}</div>" in standalone


def test_a_page_without_links_counts_runs_unless_a_column_has_the_seeds() -> None:
    found = Table("t", "", [Column("name"), Column("seeds"), RUNS], [["a", 2, runs(False, False)]])
    assert "<details>" not in to_html(found)
    assert "2 runs" in to_html(found, Path())


def test_a_very_long_text_is_folded_after_its_start() -> None:
    names = ", ".join(f"set_{index}" for index in range(40))
    found = to_html(Table("t", "", [Column("name"), Column("sets")], [["a", names], ["b", "set_0"]]))
    assert "<details><summary>set_0, set_1, set_2, set_3 …</summary>" in found
    assert f"<div>{names}</div>" in found
    assert "<td>set_0\n" in found


def test_an_optional_column_is_omitted_if_it_is_empty() -> None:
    columns = [Column("a"), Column("remark", optional=True)]
    assert Table("t", "", columns, [[1, ""], [2, ""]]).rows == [[1], [2]]
    assert Table("t", "", columns, [[1, ""], [2, "why"]]).rows == [[1, ""], [2, "why"]]


@pytest.mark.parametrize(
    ("interval", "p", "start"),
    [
        ((-0.1, 0.2), 0.0001, "last p below 0.05, but the CI includes 0"),
        ((0.1, 0.2), 0.05, "last p not below 0.05, but the CI excludes 0"),
        ((-0.2, -0.1), 0.5, "last p not below 0.05, but the CI excludes 0"),
        ((0.1, 0.2), 0.049, ""),
        ((-0.1, 0.2), 0.05, ""),
        ((math.nan, math.nan), 0.001, ""),
        ((0.1, 0.2), math.nan, ""),
    ],
)
def test_a_remark_where_p_and_the_interval_disagree(
    interval: tuple[float, float], p: float, start: str
) -> None:
    text = remark(interval, p)
    assert bool(text) == bool(start)
    assert text.startswith(start)


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
    parsed = Texts(to_html(table()))
    heads = [unbroken(column.head) for column in table().columns]
    assert parsed.cells == [*heads, *(text for row in table().texts() for text in row)]
    assert parsed.elements == {"table", "thead", "tbody", "tr", "th", "td"}


def test_markdown_has_the_same_number_of_cells_in_every_line() -> None:
    lines = table().to_markdown().splitlines()
    assert {line.replace("\\|", "").count("|") for line in lines} == {7}
    assert "<script>" not in table().to_markdown()


def test_latex_is_escaped_and_has_title_and_note_as_comments() -> None:
    text = to_latex(table())
    assert text.startswith("% A title\n% A note.\n\\begin{tabular}{lrrrrl}\n\\toprule\n")
    assert r"\textless{}script\textgreater{}" in text
    assert r"50\% \$x\_1\$ \#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{} & 0 &" in text
    body = text.split(r"\toprule")[1]
    assert {line.replace(r"\&", "").count("&") for line in body.splitlines() if line.endswith(r"\\")} == {5}


def test_latex_escape_of_an_en_dash_and_a_minus() -> None:
    assert latex_escape("−1 – 2") == r"$-$1 \textendash{} 2"


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
    assert to_html(long).count("<tr>") == to_html(short).count("<tr>") == 1 + MAX_ROWS
    assert len(long.to_markdown().splitlines()) == 2 + MAX_ROWS
    assert long.truncation == f"The first {MAX_ROWS} of {MAX_ROWS + 7} rows are shown; tables/t.csv has all."
    assert short.truncation == ""
    assert len(long.to_csv().splitlines()) == 1 + len(rows)
    assert to_latex(long).count(r" \\") == 1 + len(rows)
