"""Published results on the same evaluation sets."""

from __future__ import annotations

from ..load.collect import Collection
from ..load.published_results import published_results, published_scale_curve
from ..tables import Cell, Column, Table
from .base import ReportData, Section

CONDITIONS = {
    "training data": "training",
    "metric": "metric",
    "conditions": "conditions",
    "source": "source",
}
"""columns that say what a number means, and their keys in published.yaml"""


def section(data: ReportData) -> Section:
    tables = [systems_table(data.collection), scales_table(data.collection)]
    text = [
        "Numbers from publications, under their own conditions. None was measured with metapt. Supervised systems were trained "
        "on sentences of the same set, zero-shot ones on other languages. A micro-F1 over the tags of tokens is not comparable "
        "with one over spans."
    ]
    if not any(table.rows for table in tables):
        text = [
            "None: published results are on Tagalog and Cebuano sets (of Universal NER, CebuaNER and TLUnified-NER) that were not "
            "evaluated."
        ]
    return Section("published", "Published results", text, tables=tables)


def systems_table(collection: Collection) -> Table:
    """Systems with published F1 on a set in the report."""
    systems = published_results()["systems"]
    names = [name for name in collection.set_names() if any(name in system["f1"] for system in systems)]
    columns = [Column("system"), *map(Column, (*names, *CONDITIONS))]
    rows: list[list[Cell]] = []
    for system in systems if names else ():
        f1 = [system["f1"].get(name) for name in names]
        rows.append([system["system"], *f1, *(system[key] for key in CONDITIONS.values())])
    return Table("published", "Published F1 of other systems", columns, rows)


def scales_table(collection: Collection) -> Table:
    """The published means by scale; empty unless the report has the same target sets."""
    heads = ("scale", "parameters", "vanilla", "MAML")
    columns = [*map(Column, (*heads, *CONDITIONS))]
    curve = published_scale_curve(collection.target_sets())
    rows: list[list[Cell]] = []
    if curve is not None:
        for point in curve["points"]:
            values = [point[key] for key in ("scale", "parameters", "vanilla", "maml_paper")]
            rows.append([*values, *(curve[key] for key in CONDITIONS.values())])
    title = "Published mean micro-F1 by scale, over ten sources, two tunings and three sets"
    return Table("published_scales", title, columns, rows)
