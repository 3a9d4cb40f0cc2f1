"""The two arms of a contrast: matched checkpoints, all differences, and averages by scale and by tuning."""

from __future__ import annotations

from ..figures import scaling
from ..run_refs import runs_of
from ..stats import matched_budget
from ..stats.budgets import BUDGETS, UPDATES
from ..stats.comparison import averages, averages_table, balanced, differences_table, unbalanced
from ..tables import RUNS, Cell, Column, Table
from .base import ReportData, Section, Views, needed_pair


def matches_section(views: Views) -> Section:
    """Which checkpoints are compared at each matched budget, and which runs are compared with nothing."""
    text = [
        "Arms are compared at matched updates, next-token tokens, tokens, FLOPs and seconds. The switch at the top of the page "
        "selects the budget."
    ]
    found = [
        match for budget in BUDGETS for data in views.at(budget) for match in data.matched.matches[budget]
    ]
    table = matched_budget.matches_table(found)
    if not table.rows:
        text.append(
            "Needed: pretraining runs of both arms at one scale and seed, and fine-tuning runs of both."
        )
    return Section("matched_budgets", "Matched budgets", text, tables=[table, _unmatched_table(views)])


def _unmatched_table(views: Views) -> Table:
    rows: list[list[Cell]] = []
    for data in views.at(UPDATES):
        for run, reason in data.matched.pairing.unmatched:
            rows.append([str(data.contrast), run.path.name, reason, runs_of(run)])
    columns = [*map(Column, ("comparison", "run", "reason")), RUNS]
    note = "Each of these runs has a counterpart in the other arm that differs in a setting that should be equal: (first, second)."
    return Table("unmatched", "Unmatched runs", columns, rows, note)


def differences_section(data: ReportData) -> Section:
    text = [] if data.comparisons else [f"Needed: {needed_pair(data)}."]
    tables = [differences_table(data.comparisons)]
    return Section("differences", "Differences", text, tables=tables)


def scale_section(data: ReportData) -> Section:
    """Mean F1 by scale, with a scaling curve."""
    collection = data.collection
    comparisons = balanced(data.final_comparisons, "scale")
    variants = {item.setting.variant for item in comparisons}
    sizes = {variant: collection.parameters_by_scale(variant) for variant in variants}
    means = averages(
        comparisons,
        lambda setting: (setting.scale, setting.variant, sizes[setting.variant][setting.scale]),
    )
    heads = [Column("scale"), Column("variant"), Column("parameters")]
    table = averages_table("by_scale", "Mean F1 on the target sets by scale", heads, means)
    text = unbalanced(data.final_comparisons, "scale")
    scales = {item.setting.scale for item in data.final_comparisons}
    if len(scales) < 2:
        found = f"the runs have one ({scales.pop()})" if scales else "there are none"
        text.insert(0, f"Needed for a scaling curve: pairs of runs at two or more scales; {found}.")
    return Section("scale", "Scale", text, scaling.scale_curve(collection, comparisons), [table])


def tuning_section(data: ReportData) -> Section:
    """Mean F1 by tuning: head_only, full, lora."""
    comparisons = balanced(data.final_comparisons, "tuning")
    means = averages(comparisons, lambda setting: (setting.scale, setting.variant, setting.tuning))
    heads = [Column("scale"), Column("variant"), Column("tuning")]
    table = averages_table("by_tuning", "Mean F1 on the target sets by tuning", heads, means)
    text = unbalanced(data.final_comparisons, "tuning")
    tunings = {item.setting.tuning for item in data.final_comparisons}
    if len(tunings) < 2:
        found = f"the runs have one ({tunings.pop()})" if tunings else "there are none"
        text.insert(0, f"Needed to compare tunings: pairs of runs with two or more tunings; {found}.")
    return Section("tuning", "Tuning", text, tables=[table])
