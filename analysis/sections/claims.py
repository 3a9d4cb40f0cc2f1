"""Claims: families of comparisons with Holm's correction and a verdict each, and variants against the base variant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from metapt.evaluation.bootstrap import holm

from ..load.collect import Collection
from ..load.records import FinetuneRun, Setting
from ..stats.budgets import UPDATES
from ..stats.comparison import (
    DIFFERENCE_COLUMNS,
    Average,
    Comparison,
    averages,
    compared,
    difference_cells,
    last_steps,
)
from ..stats.significance import Scores
from ..stats.verdicts import EFFECT, definition, verdict
from ..tables import RUNS, Cell, Column, Table
from .base import ReportData, Section

BASE = "base"
SMALL = 0.02

DEFINITION = (
    "Claims: mean differences over sources and over the sets of a group, one for each scale, variant and tuning, at the last step "
    "that both objectives have. There are two groups: the target sets, and the sets in a language that no run was fine-tuned on. "
    f"Each group is a family of hypotheses. {definition(SMALL)} Variants: MAML under a variant minus MAML under "
    f"`{BASE}`, paired by seed, source and tuning, at the last step that both have. Comparisons of variants are descriptive; their "
    "p values are not corrected."
)


@dataclass(frozen=True)
class Claim:
    """A mean difference with its corrected p and its verdict."""

    average: Average
    corrected_p: float
    verdict: str


def section(data: ReportData) -> Section:
    families = {group: claims(data, names) for group, names in set_groups(data.collection).items()}
    tables = [_claims_table(families)]
    if data.budget == UPDATES:
        tables.append(_variants_table(data))
    needed = "Needed: a MAML and a vanilla run with identical fine-tuning."
    return Section("claims", "Claims", [] if any(families.values()) else [needed], tables=tables)


def set_groups(collection: Collection) -> dict[str, list[str]]:
    """The evaluation sets of each group, by the group's name; a set belongs to one group at most."""
    return {"target sets": collection.target_sets(), "other languages": collection.other_language_sets()}


def claims(data: ReportData, names: Iterable[str]) -> list[Claim]:
    """One family: a claim for each scale, variant and tuning, averaged over these sets."""
    chosen = set(names)
    found = last_steps([item for item in data.comparisons if item.set_name in chosen])
    means = averages(found, _system)
    corrected = holm([item.difference.p for item in means])
    return [
        Claim(item, p, verdict(item.difference, p, SMALL)) for item, p in zip(means, corrected, strict=True)
    ]


def _claims_table(families: dict[str, list[Claim]]) -> Table:
    heads = ("group", "scale", "variant", "tuning", "verdict", "vanilla", "MAML")
    columns = [*map(Column, heads), *DIFFERENCE_COLUMNS, Column("corrected p", digits=4)]
    columns += [Column("comparisons"), Column("sets"), RUNS]
    rows: list[list[Cell]] = []
    for group, family in families.items():
        for claim in family:
            item = claim.average
            cells: list[Cell] = [group, *item.key, claim.verdict, item.vanilla.value, item.maml.value]
            cells += [*difference_cells(item.difference), claim.corrected_p, len(item.comparisons)]
            rows.append([*cells, _set_names(item.comparisons), item.runs])
    shaded = {index for index, row in enumerate(rows) if EFFECT in row}
    note = "Shaded rows: an effect. p values are corrected within each group."
    title = "MAML minus vanilla, by variant and tuning"
    return Table("claims", title, columns, rows, note, shaded).without_constant("scale", "variant")


def variants(collection: Collection, scores: Scores, names: Sequence[str]) -> list[Average]:
    """Compare each MAML variant with the base variant on these sets.

    Returns:
        One average for each scale, variant and tuning; its `vanilla` is MAML under the base variant.
    """
    maml = [run for run in collection.finetuning if run.objective == "maml"]
    base = {_ignoring_variant(run): run for run in maml if run.setting.variant == BASE}
    pairs: dict[Setting, list[tuple[FinetuneRun, FinetuneRun]]] = {}
    for run in maml:
        if run.setting.variant != BASE and _ignoring_variant(run) in base:
            pairs.setdefault(run.setting, []).append((run, base[_ignoring_variant(run)]))
    return averages(last_steps(compared(pairs, names, scores)), _system)


def _variants_table(data: ReportData) -> Table:
    heads = ("group", "scale", "variant", "tuning", BASE, "this variant")
    columns = [*map(Column, heads), *DIFFERENCE_COLUMNS, Column("comparisons"), Column("sets"), RUNS]
    rows: list[list[Cell]] = []
    for group, names in set_groups(data.collection).items():
        for item in variants(data.collection, data.scores, names):
            cells: list[Cell] = [group, *item.key, item.vanilla.value, item.maml.value]
            cells += [*difference_cells(item.difference), len(item.comparisons)]
            rows.append([*cells, _set_names(item.comparisons), item.runs])
    title = f"MAML: each variant minus {BASE}"
    note = "Descriptive: p values are not corrected."
    return Table("variants", title, columns, rows, note).without_constant("scale")


def _system(setting: Setting) -> tuple[Cell, ...]:
    return (setting.scale, setting.variant, setting.tuning)


def _ignoring_variant(run: FinetuneRun) -> tuple[object, ...]:
    """A key that is equal for two runs that differ in the variant of their pretraining only."""
    setting = run.setting
    return (setting.scale, setting.tuning, setting.source, setting.step, run.seeds, run.corpus)


def _set_names(comparisons: Sequence[Comparison]) -> str:
    return ", ".join(dict.fromkeys(item.set_name for item in comparisons))
