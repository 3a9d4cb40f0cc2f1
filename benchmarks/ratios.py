"""The shares that were measured, by kind of processor: ratios.json, and the table made from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timing import Row

FILE = Path(__file__).with_name("ratios.json")
HEAD = """# Benchmarks

`make bench` measured this: shares by medians of alternating repetitions in one run, one column for each kind of processor
(how it multiplies bf16). A dash: not measured on such a one.
"""


def recorded() -> dict[str, dict[str, Any]]:
    """kind of processor -> `machine`, `date`, and `shares`: "what / against" -> the first's share of the second."""
    found: dict[str, dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def name(what: str, against: str) -> str:
    """The key of a row's share."""
    return f"{what} / {against}"


def record(kind: str, machine: str, date: str, rows: Sequence[Row]) -> None:
    """Puts what was measured in place of what is known of that kind of processor."""
    shares = {name(what, against): round(share, 4) for what, against, share in rows}
    kinds = recorded() | {kind: {"machine": machine, "date": date, "shares": shares}}
    FILE.write_text(json.dumps(kinds, indent=1) + "\n", encoding="utf-8")


def table(kinds: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: the machines, and a row for each pair that was compared on any of them."""
    machines = [f"- {kind}: {found['machine']}; {found['date']}" for kind, found in kinds.items()]
    names = dict.fromkeys(pair for found in kinds.values() for pair in found["shares"])
    rows = [
        f"| {pair.replace(' / ', ' | ', 1)} | {' | '.join(_share(found['shares'], pair) for found in kinds.values())} |"
        for pair in names
    ]
    columns = [f"| what | against | {' | '.join(kinds)} |", f"|---|---|{'---|' * len(kinds)}"]
    return "\n".join([HEAD, *machines, "", *columns, *rows]) + "\n"


def _share(shares: Mapping[str, float], pair: str) -> str:
    return f"{shares[pair]:.2g}" if pair in shares else "–"
