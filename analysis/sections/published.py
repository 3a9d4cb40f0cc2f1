"""What others have published on the same sets, labelled as such (published.yaml)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ..load.collect import Collection
from ..tables import Cell, Column, Table
from .base import Section, Study

FILE = Path(__file__).resolve().parents[1] / "published.yaml"


def section(study: Study) -> Section:
    tables = [systems_table(study.collection), curve_table(study.collection)]
    text = ["Numbers of others, under their conditions; none of them was measured here."]
    if not any(table.rows for table in tables):
        text = ["None: no set of Universal NER's Tagalog or Cebuano was evaluated, on which others have published."]  # fmt: skip
    return Section("published", "Published figures", text, tables=tables)


@cache
def figures() -> dict[str, Any]:
    """The content of published.yaml."""
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def curve(sets: tuple[str, ...]) -> dict[str, Any] | None:
    """The published scale curve, if it is about these sets."""
    found = figures()["scale_curve"]
    return found if set(found["sets"]) == set(sets) else None


def systems_table(collection: Collection) -> Table:
    """Systems that were scored on a set that is in the report."""
    names = [name for name in collection.set_names() if any(name in item["f1"] for item in figures()["systems"])]  # fmt: skip
    columns = [Column("published system"), *(Column(name) for name in names), Column("conditions"), Column("source")]  # fmt: skip
    rows: list[list[Cell]] = [
        [item["system"], *(item["f1"].get(name) for name in names), item["conditions"], item["source"]]
        for item in figures()["systems"]
        if names
    ]
    return Table("published", "Published: micro-F1 of other systems", columns, rows)


def curve_table(collection: Collection) -> Table:
    found = curve(tuple(collection.target_sets()))
    columns = [Column("published scale"), Column("parameters"), Column("vanilla"), Column("MAML"), Column("conditions"), Column("source")]  # fmt: skip
    rows: list[list[Cell]] = []
    if found is None:
        return Table("published_scales", "", columns)
    for point in found["points"]:
        cells: list[Cell] = [point[key] for key in ("scale", "parameters", "vanilla", "maml")]
        rows.append([*cells, found["conditions"], found["source"]])
    return Table("published_scales", "Published: mean over ten sources, two tunings and three sets", columns, rows)  # fmt: skip
