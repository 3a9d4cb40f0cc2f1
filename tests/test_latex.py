"""Every LaTeX table compiles with pdflatex and the package booktabs alone, whatever its texts contain."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from latex_document import compile_tables, needs_pdflatex

from analysis.latex import ESCAPES, latex_escape, to_latex
from analysis.tables import Cell, Column, Table

HOSTILE = "{}\\ $x_1$ 50% #&~^ <a|b> \"q\" 'r' ``s'' a--b ?`!` <<,, Δ ± µ 95 % é Çelik ǆ Łódź 中文 ไทย العربية 😀 \u0301 \u200b"


def table(rows: Sequence[Sequence[Cell]], heads: Sequence[str]) -> str:
    return to_latex(Table("t", heads[0], [*map(Column, heads)], [list(row) for row in rows], heads[-1]))


@needs_pdflatex
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(texts=["[2pt]", "*", "", "&"])
@example(texts=[HOSTILE, string.printable, "".join(ESCAPES)])
@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=60))
def test_any_text_compiles_in_any_cell(tmp_path: Path, texts: list[str]) -> None:
    rows: list[list[Cell]] = [[text, index, text[::-1]] for index, text in enumerate(texts)]
    compile_tables(tmp_path, [table(rows, [texts[0], "n", texts[-1]])])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Δ area", r"$\Delta$ area"),
        ("−1 – 2", r"$-$1 \textendash{} 2"),
        ("50% of a_b", r"50\% of a\_b"),
        ("95 % CI", r"95\,\% CI"),
        ("--seed", r"-{}-seed"),
        ("it''s ?`", r"it'{}'s ?\`{}"),
        ("Çelik é ǎ ø", r"\c{C}elik \'{e} \v{a} \o{}"),
        ("a\u0301", r"\'{a}"),
        ("中", r"\othercharacter{4E2D}"),
        ("a\x00\x7fb\n c", "ab c"),
    ],
)
def test_escapes(text: str, expected: str) -> None:
    assert latex_escape(text) == expected


@given(st.text(alphabet=string.ascii_letters + string.digits + " .:;()/+=@"))
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert latex_escape(text) == " ".join(text.split())


def test_only_a_table_with_such_a_character_defines_the_command_for_other_characters() -> None:
    assert "providecommand" not in table([["é"]], ["a"])
    assert table([["中"]], ["a"]).count("providecommand") == 1
