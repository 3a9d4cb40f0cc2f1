"""The page in Chromium: filter, groups of columns, sorting, and its width on a phone and on a screen."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest
from analysis_runs import write_grid

from analysis import report as program
from analysis.html_table import to_html
from analysis.run_refs import RunRef, Runs
from analysis.tables import RUNS, WIDE, Cell, Column, Table

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
SHELL = '<nav><details open></details></nav><button class="theme"></button><div>{table}</div><script>{script}</script>'
USE = """
const table = document.querySelector("table"), tools = document.querySelector(".tools");
const visible = (cells) => [...cells].filter((cell) => !cell.hidden).map((cell) => cell.textContent);
const state = () => ({
  rows: visible(table.tBodies[0].rows).length,
  heads: visible(table.querySelectorAll("thead th")),
  cells: visible(table.tBodies[0].rows[0].cells).length,
  first: [...table.tBodies[0].rows].map((row) => row.querySelector("summary").textContent),
  count: tools.querySelector("output").value,
});
const found = { start: state() };
const input = tools.querySelector("input[type=search]");
const type = (value) => { input.value = value; input.dispatchEvent(new Event("input")); };
type("NAME1 finds"); found.filtered = state();
type("finetune"); found.runs = state();
type(""); found.cleared = state();
tools.querySelectorAll("input[type=checkbox]")[1].click(); found.closed = state();
tools.querySelectorAll("input[type=checkbox]")[2].click(); found.opened = state();
const n = [...table.querySelectorAll("thead th")].find((head) => head.textContent === "n").querySelector("button");
n.click(); found.up = state(); n.click(); found.down = state();
document.title = JSON.stringify(found);
"""


def title_of(page: Path, width: int = 1280) -> Any:
    """What the scripts of a page left in its title, as JSON."""
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--window-size={width},900",
        "--dump-dom",
    ]
    done = subprocess.run([*command, str(page)], capture_output=True, text=True, check=True, timeout=300)
    return json.loads(unescape(re.findall(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[0]))


def test_filter_groups_and_sorting(tmp_path: Path) -> None:
    columns = [Column("name"), Column("n"), Column("text")]
    columns += [Column(f"target {index}", group="targets") for index in range(2)]
    columns += [Column(f"other {index}", group="others") for index in range(2 * WIDE)]
    numbers = [5, -3, 1200, 40, 7, 0, 2, 1, 9, 8, 6, 3]
    runs = Runs((RunRef(Path("finetune/a"), "maml", 0),))
    rows: list[list[Cell]] = [
        [f"name{index}", number, "it finds" if index % 2 else "it misses", *[0.5] * (2 + 2 * WIDE), runs]
        for index, number in enumerate(numbers)
    ]
    table = to_html(Table("t", "A table", [*columns, RUNS], rows).with_means())
    script = (program.TEMPLATES / "report.js").read_text() + USE
    (tmp_path / "page.html").write_text(
        f"<!doctype html><title>{{}}</title>{SHELL.format(table=table, script=script)}"
    )
    found = title_of(tmp_path / "page.html")
    heads = [
        "name",
        "n",
        "text",
        "means",
        "targets",
        "targets, 2 sets",
        f"others, {2 * WIDE} sets",
        "target 0",
        "target 1",
    ]
    assert (found["start"]["rows"], found["start"]["heads"], found["start"]["cells"]) == (12, heads, 7)
    assert (found["filtered"]["rows"], found["filtered"]["count"]) == (2, "2 of 12 rows")  # name1 and name11
    assert found["runs"]["rows"] == 0  # the names of runs are not searched
    assert (found["cleared"]["rows"], found["cleared"]["count"]) == (12, "")
    assert "target 0" not in found["closed"]["heads"]
    assert found["closed"]["cells"] == 5
    assert found["opened"]["cells"] == 5 + 2 * WIDE
    order = sorted(range(12), key=lambda index: numbers[index])
    assert found["up"]["first"] == [f"name{index}" for index in order]
    assert found["down"]["first"] == [f"name{index}" for index in reversed(order)]


def test_a_last_column_of_intervals_is_sorted_by_value(tmp_path: Path) -> None:
    lows = [5.0, -0.03, 12.0, 0.1]
    rows: list[list[Cell]] = [[f"name{index}", (low, low + 1)] for index, low in enumerate(lows)]
    table = to_html(Table("t", "A table", [Column("name"), Column("CI", interval=True)], rows))
    use = """
    document.querySelectorAll("thead button")[1].click();
    document.title = JSON.stringify([...document.querySelectorAll("tbody th")].map((head) => head.textContent));
    """
    script = (program.TEMPLATES / "report.js").read_text() + use
    (tmp_path / "page.html").write_text(
        f"<!doctype html><title>{{}}</title>{SHELL.format(table=table, script=script)}"
    )
    assert title_of(tmp_path / "page.html") == ["name1", "name3", "name0", "name2"]


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_as_wide_as_the_window_and_the_answer_is_on_its_first_screen(
    tmp_path: Path, width: int
) -> None:
    """Tables and figures scroll in their own regions."""
    root = write_grid(tmp_path / "grid", tunings=("head_only",))
    program.main([str(root)])
    page = (root / "report" / "index.html").read_text(encoding="utf-8")
    measure = """
    const frame = document.querySelector("iframe");
    frame.onload = () => {
      const page = frame.contentDocument, top = (name) => page.querySelector(name).getBoundingClientRect().top;
      const below = [...page.querySelectorAll("main *")].filter((part) => !part.closest(".scroll, .drawing"));
      document.title = JSON.stringify({
        inner: frame.contentWindow.innerWidth,
        right: Math.max(...below.map((part) => part.getBoundingClientRect().right)),
        answer: top(".answer"), figure: top("#lead figure"), table: top("#lead .table"), claims: top("#claims"),
      });
    };
    """
    frame = f'<iframe srcdoc="{escape(page)}" style="width:{width}px;height:900px;border:0"></iframe>'
    (tmp_path / "frame.html").write_text(
        f"<!doctype html><title>{{}}</title>{frame}<script>{measure}</script>"
    )
    found = title_of(tmp_path / "frame.html", 1400)
    assert found["inner"] == width
    assert found["right"] <= width
    assert found["answer"] < 300
    assert found["figure"] < 600
    assert found["figure"] < found["table"] < found["claims"]
