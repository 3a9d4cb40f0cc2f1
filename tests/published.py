"""Tables of the report on published runs, and how the pages show their numbers."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pack_runs
import pytest
from conftest import REPO, extra_set

from analysis import report

RESULTS = REPO / "docs" / "results"
Rows = list[dict[str, str]]
Tables = Callable[[str], Rows]


def tables_of(grids: Sequence[Path], root: Path) -> Tables:
    """Unpack published grids into a folder and write their report; returns a function that reads one of its tables."""
    if "METAPT_UNER_DIR" not in os.environ:
        pytest.skip("METAPT_UNER_DIR is not set")
    extra_set("id_news2k")
    for packed in grids:
        pack_runs.unpack(packed, root / packed.name)
    out = root / "report"
    report.main([*(str(root / packed.name) for packed in grids), "--out", str(out), "--no-sentences"])

    def read(name: str) -> Rows:
        with (out / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    return read


def of_comparison(rows: Rows, arm: str, base: str = "vanilla", **cells: str) -> Rows:
    """The rows of a comparison with these cells, whatever variant and tuning its name has."""
    named = re.compile(rf"{arm}(/base)? minus {base}(/base)?( \([a-z_]+\))?")
    return [row for row in rows if named.fullmatch(row["comparison"]) and cells.items() <= row.items()]


def the(rows: Rows) -> dict[str, str]:
    """The only row."""
    [row] = rows
    return row


def points(value: str) -> str:
    """F1 in points."""
    return f"{100 * float(value):.1f}"


def difference(row: dict[str, str]) -> str:
    """A difference of F1 in points with its interval, as the pages show it."""
    value, low, high = (
        f"{100 * float(row[name]):+.1f}".replace("-", "−")
        for name in ("difference", "95 % CI low", "95 % CI high")
    )
    return f"{value} [{low}, {high}]"


def ratio(row: dict[str, str]) -> str:
    """A ratio of perplexities with its interval, as the pages show it."""
    names = ("perplexity, first / second", "95 % CI ratio low", "95 % CI ratio high")
    value, low, high = (f"{float(row[name]):.2f}" for name in names)
    return f"{value} [{low}, {high}]"


def page(path: Path) -> str:
    """The text of a page without emphasis."""
    return path.read_text(encoding="utf-8").replace("**", "")


def interval_of(row: dict[str, str], name: str, digits: int) -> str:
    """A value that is no F1, with its interval."""
    names = (next(key for key in row if key.startswith(name)), f"95 % CI {name} low", f"95 % CI {name} high")
    value, low, high = (f"{float(row[key]):+.{digits}f}".replace("-", "−") for key in names)
    return f"{value} [{low}, {high}]"
