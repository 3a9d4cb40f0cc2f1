"""A LaTeX document with tables of a report, compiled by pdflatex."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

PDFLATEX = shutil.which("pdflatex")
needs_pdflatex = pytest.mark.skipif(PDFLATEX is None, reason="no pdflatex on this machine")


def compile_tables(folder: Path, tables: Sequence[str]) -> None:
    """Compile a document with the tables.

    Raises:
        AssertionError: pdflatex reports an error.
    """
    body = "\n\n".join(f"\\resizebox{{0.5cm}}{{!}}{{%\n{table}}}" for table in tables)
    document = "\\documentclass{article}\n\\usepackage{booktabs,graphicx}\n\\begin{document}\n"
    (folder / "paper.tex").write_text(f"{document}{body}\n\\end{{document}}\n", encoding="utf-8")
    done = subprocess.run(
        [str(PDFLATEX), "-halt-on-error", "-interaction=nonstopmode", "-file-line-error", "paper.tex"],
        cwd=folder,
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-1500:]
    log = (folder / "paper.log").read_text(encoding="latin-1")
    assert "Missing character" not in log
