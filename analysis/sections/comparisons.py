"""MAML against vanilla: matched checkpoints, all differences, and averages by scale and by tuning."""

from __future__ import annotations

from ..figures import scaling
from ..stats import matched_budget
from ..stats.comparison import averages, averages_table, balanced, differences_table, unbalanced
from ..tables import Column
from .base import ReportData, Section


def matches_section(data: ReportData) -> Section:
    """Which checkpoints are compared at each matched budget."""
    text = [
        "MAML and vanilla are compared at matched updates, tokens, FLOPs and seconds. The switch at the top of the page selects "
        "the budget."
    ]
    table = matched_budget.matches_table([match for matches in data.matches.values() for match in matches])
    if not table.rows:
        text.append("Needed: a MAML and a vanilla run of one scale and seed, and fine-tuning runs of both.")
    return Section("matched_budgets", "Matched budgets", text, tables=[table])


def differences_section(data: ReportData) -> Section:
    text = [] if data.comparisons else ["Needed: two runs that differ in the objective only."]
    tables = [differences_table(data.comparisons)]
    return Section("differences", "MAML minus vanilla", text, tables=tables)


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
