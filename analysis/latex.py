"""Tables for a paper: LaTeX with booktabs, which pdfLaTeX, XeLaTeX and LuaLaTeX compile without other packages."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from .tables import Table

ESCAPES = {
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
    "|": r"\textbar{}",
    '"': r"{\char34}",  # an active character in some languages of babel
    "`": r"\`{}",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "‘": r"\textquoteleft{}",
    "’": r"\textquoteright{}",
    "“": r"\textquotedblleft{}",
    "”": r"\textquotedblright{}",
    "…": r"\textellipsis{}",
    "†": r"\textdagger{}",
    "\u00a0": "~",
    "\u202f": r"\,",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "→": r"$\rightarrow$",
    "Δ": r"$\Delta$",
    "µ": r"$\mu$",
    "ß": r"\ss{}",
    "Æ": r"\AE{}",
    "æ": r"\ae{}",
    "Ø": r"\O{}",
    "ø": r"\o{}",
    "Œ": r"\OE{}",
    "œ": r"\oe{}",
    "Ł": r"\L{}",
    "ł": r"\l{}",
    "ı": r"\i{}",
}
ACCENTS = {
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0304": "=",
    "\u0306": "u",
    "\u0307": ".",
    "\u0308": '"',
    "\u030a": "r",
    "\u030b": "H",
    "\u030c": "v",
    "\u0323": "d",
    "\u0327": "c",
}
"""combining characters to LaTeX's accents"""
OTHER = '\\providecommand{\\othercharacter}[1]{\\ifdefined\\Umathchar\\char"#1\\relax\\else[U+#1]\\fi}'
"""prints a character that pdfLaTeX has no font for: itself in XeLaTeX and LuaLaTeX, its code in pdfLaTeX"""


def to_latex(table: Table) -> str:
    """Format a table as a booktabs `tabular` with every cell escaped; title, note and notice are comments."""
    (heads, *rows), numeric = table.lines(table.columns_without_runs())
    comments = [line for line in (table.notice, table.title, table.full_note) if line]
    body = [
        rf"\begin{{tabular}}{{{''.join('r' if right else 'l' for right in numeric)}}}",
        r"\toprule",
        _row(heads),
        r"\midrule",
        *map(_row, rows),
        r"\bottomrule",
        r"\end{tabular}",
        "",
    ]
    needed = [OTHER] if any(r"\othercharacter" in line for line in body) else []
    return "\n".join([*(f"% {' '.join(line.split())}" for line in comments), *needed, *body])


@lru_cache(maxsize=100_000)
def latex_escape(text: str) -> str:
    """Escape a text so that LaTeX prints it literally, without ligatures; control characters are dropped."""
    text = re.sub(r"(?<=\d)[ \u00a0](?=%)", "\u202f", text)
    words = re.split(r"[ \t\n\r\f\v]+", text.strip(" \t\n\r\f\v"))
    escaped = " ".join("".join(map(_character, unicodedata.normalize("NFC", word))) for word in words)
    return re.sub(r"([-,'])(?=\1)", r"\1{}", escaped)


@lru_cache(maxsize=10_000)
def _character(character: str) -> str:
    if character in ESCAPES:
        return ESCAPES[character]
    if character.isascii():
        return character if character.isprintable() else ""
    base, *marks = list(unicodedata.normalize("NFD", character))
    if len(marks) == 1 and marks[0] in ACCENTS and base.isascii() and base.isalpha():
        return rf"\{ACCENTS[marks[0]]}{{{base}}}"
    if unicodedata.category(character) in ("Cc", "Cs"):
        return ""
    return rf"\othercharacter{{{ord(character):04X}}}"


def _row(cells: Sequence[str]) -> str:
    row = " & ".join(map(latex_escape, cells)) + r" \\"
    return "{}" + row if row.startswith(("[", "*")) else row  # else an argument of the line before
