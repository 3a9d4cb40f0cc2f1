"""Recorded ratios by kind of CPU: ratios.json, and the table in README.md that is generated from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timing import Row

FILE = Path(__file__).with_name("ratios.json")
INTRODUCTION = """# Benchmarks

`make bench` measured these ratios: time, or what the row names, divided by that of the baseline. A time ratio of 0.5 is 2x faster. Times are
medians of interleaved repetitions in one process. There is a column for each kind of CPU by its bf16 support; a dash means not measured.
"""


def recorded() -> dict[str, dict[str, Any]]:
    """`machine`, `date` and `ratios` ("name / baseline" to ratio) by kind of CPU."""
    content: dict[str, dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return content


def key(name: str, baseline: str) -> str:
    """The key of a row in `ratios`."""
    return f"{name} / {baseline}"


def record(cpu: str, machine: str, date: str, rows: Sequence[Row]) -> None:
    """Replace the recording of a kind of CPU."""
    ratios = {key(row.name, row.baseline): round(row.ratio, 4) for row in rows}
    content = recorded() | {cpu: {"machine": machine, "date": date, "ratios": ratios}}
    FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def table(recordings: Mapping[str, Mapping[str, Any]]) -> str:
    """README.md: the machines, and a row for each ratio that was measured on any of them."""
    machines = [
        f"- {cpu}: {recording['machine']}; {recording['date']}" for cpu, recording in recordings.items()
    ]
    keys = dict.fromkeys(key for recording in recordings.values() for key in recording["ratios"])
    rows = [
        f"| {key.replace(' / ', ' | ', 1)} | "
        f"{' | '.join(_cell(recording['ratios'], key) for recording in recordings.values())} |"
        for key in keys
    ]
    header = [f"| measured | baseline | {' | '.join(recordings)} |", f"|---|---|{'---|' * len(recordings)}"]
    return "\n".join([INTRODUCTION, *machines, "", *header, *rows]) + "\n"


def _cell(ratios: Mapping[str, float], key: str) -> str:
    return f"{ratios[key]:.2g}" if key in ratios else "–"
