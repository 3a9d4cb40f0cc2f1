"""The notebook docs/python.ipynb runs, and its outputs have the form of those that are committed."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO

NOTEBOOK = REPO / "docs" / "python.ipynb"


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run a cell, and return the value of its last line if that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names)


def form(text: str) -> str:
    """A text without its numbers, which differ between processors, and without the white space that aligns them."""
    return re.sub(r"[\s\d.e+-]+", "", text)


@pytest.mark.commands
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    compared = 0
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        value = run_cell("".join(cell["source"]), names)
        for output in cell["outputs"]:
            if output["output_type"] == "execute_result":
                assert form(repr(value)) == form("".join(output["data"]["text/plain"]))
                compared += 1
    assert compared == 7
    assert names["tuned"].dev_f1 > 0.2  # it has learned
    assert names["runs"]["f1"].between(0, 1).all()
