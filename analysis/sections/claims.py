"""Claims: what the comparisons of the report allow to conclude, with Holm's correction over the primary ones."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from metapt.evaluation.bootstrap import holm

from ..load.collect import Collection
from ..load.records import Setting
from ..stats.comparison import (
    DIFFERENCE_COLUMNS,
    Average,
    Comparison,
    averages,
    by_set,
    difference_cells,
    last_steps,
)
from ..stats.verdicts import EFFECT, definition, verdict
from ..tables import RUNS, Cell, Column, Table, enumerated
from .base import ReportData, Section, Views

DESCRIPTIVE = "descriptive"
"""in place of a verdict"""

DEFINITION = (
    "Claims: mean differences over sources and over the sets of a group, one for each contrast, scale, variant and tuning, at the last step "
    "that both arms have with this tuning. There are two groups: the target sets, and the sets in a language that no run was fine-tuned on. "
    "The primary contrasts of a group are a family of hypotheses, at the matched budget that the page shows first; only these have a verdict. "
    "A hypothesis that two contrasts of the same arms have in common, such as for a tuning that both compare, counts once and is shown once. "
    f"Other contrasts and budgets are descriptive, and their p values are not corrected. {definition()}"
)


@dataclass(frozen=True)
class Claim:
    """A mean difference; with its corrected p and its verdict if its contrast is primary."""

    average: Average
    corrected_p: float | None
    verdict: str

    @property
    def hypothesis(self) -> Hashable:
        return _hypothesis(self.average)


def section(views: Views) -> Section:
    families = claims_at(views, views.budget)
    needed = "Needed: two runs that differ in the objective only, with identical fine-tuning."
    tables = [_claims_table(families), _by_set_table(families), _other_budgets_table(views)]
    return Section("claims", "Claims", [] if any(families.values()) else [needed], tables=tables)


def set_groups(collection: Collection) -> dict[str, list[str]]:
    """The evaluation sets of each group, by the group's name; a set belongs to one group at most."""
    return {"target sets": collection.target_sets(), "other languages": collection.other_language_sets()}


def claims_at(views: Views, budget: str) -> dict[str, list[Claim]]:
    """The claims of each group of sets at a budget; verdicts are given at the budget that the page shows first."""
    groups = set_groups(views.first.collection)
    return {group: claims(views.at(budget), names, budget == views.budget) for group, names in groups.items()}


def claims(contrasts: Iterable[ReportData], names: Iterable[str], with_verdicts: bool = True) -> list[Claim]:
    """A claim for each contrast, scale, variant and tuning, averaged over these sets. The primary ones are one family."""
    data = list(contrasts)
    means = [(_hypothesis(mean), mean) for item in data for mean in _means(item, names)]
    family = {name: mean.difference.p for name, mean in means if mean.contrast.primary and with_verdicts}
    corrected = dict(zip(family, holm([*family.values()]), strict=True))
    margin = data[0].collection.margin if data else 0.0
    return [_claim(mean, corrected.get(name), margin) for name, mean in means]


def _hypothesis(mean: Average) -> Hashable:
    """What a mean difference is about: the arms, the system, and the pairs of runs on each set."""
    pairs = frozenset(
        (item.set_name, first.path, second.path) for item in mean.comparisons for first, second in item.pairs
    )
    return (mean.contrast.first, mean.contrast.second, mean.key, pairs)


def _means(data: ReportData, names: Iterable[str]) -> list[Average]:
    chosen = set(names)
    return averages(last_steps([item for item in data.comparisons if item.set_name in chosen]), _system)


def _claim(mean: Average, corrected_p: float | None, margin: float) -> Claim:
    found = DESCRIPTIVE if corrected_p is None else verdict(mean.difference, corrected_p, margin / 100)
    return Claim(mean, corrected_p, found)


def _once(family: Iterable[Claim]) -> list[Claim]:
    """The claims, each hypothesis once."""
    found: dict[Hashable, Claim] = {}
    for claim in family:
        found.setdefault(claim.hypothesis, claim)
    return list(found.values())


def _claims_table(families: dict[str, list[Claim]]) -> Table:
    columns = [Column("verdict"), *_columns(), Column("corrected p", digits=4), RUNS]
    rows: list[list[Cell]] = []
    for group, family in families.items():
        for claim in _once(family):
            item = claim.average
            rows.append([claim.verdict, *_cells(group, item), claim.corrected_p, item.runs])
    shaded = {index for index, row in enumerate(rows) if row[0] == EFFECT}
    note = "Shaded rows: an effect. p values of primary comparisons are corrected within each group."
    title = "Differences by contrast and tuning"
    return Table("claims", title, columns, rows, note, shaded).without_constant("scale", "variant")


def _by_set_table(families: dict[str, list[Claim]]) -> Table:
    heads = ("comparison", "group", "scale", "variant", "tuning", "set", "gold spans", "first", "second")
    columns = [*map(Column, heads), *DIFFERENCE_COLUMNS, Column("sources"), RUNS]
    rows: list[list[Cell]] = []
    for group, family in families.items():
        for item in (part for claim in _once(family) for part in by_set(claim.average)):
            cells: list[Cell] = [str(item.contrast), group, *item.key, item.comparisons[0].gold_spans]
            cells += [item.first.value, item.second.value, *difference_cells(item.difference)]
            rows.append([*cells, len(item.comparisons), item.runs])
    note = "Means over sources. Descriptive: p values are not corrected, and there are no verdicts."
    table = Table("claims_by_set", "The same differences by set", columns, rows, note)
    return table.without_constant("scale", "variant")


def _other_budgets_table(views: Views) -> Table:
    columns = [Column("matched budget"), *_columns(), RUNS]
    rows: dict[Hashable, list[Cell]] = {}
    others = [data for groups in views.by_contrast for data in groups if views.budget not in data.budgets]
    for data in others:
        for group, names in set_groups(data.collection).items():
            for mean in _means(data, names):
                cells = [enumerated(data.budgets), *_cells(group, mean), mean.runs]
                rows.setdefault((*data.budgets, group, _hypothesis(mean)), cells)
    note = (
        "At the budgets that compare other runs than those above. Descriptive: p values are not corrected, and "
        "there are no verdicts."
    )
    title = "The same differences at the other matched budgets"
    return Table("claims_by_budget", title, columns, [*rows.values()], note).without_constant(
        "scale", "variant"
    )


def _columns() -> list[Column]:
    heads = ("comparison", "group", "scale", "variant", "tuning", "first", "second")
    return [*map(Column, heads), *DIFFERENCE_COLUMNS, Column("comparisons"), Column("sets")]


def _cells(group: str, item: Average) -> list[Cell]:
    cells: list[Cell] = [str(item.contrast), group, *item.key, item.first.value, item.second.value]
    return [*cells, *difference_cells(item.difference), len(item.comparisons), _set_names(item.comparisons)]


def _system(setting: Setting) -> tuple[Cell, ...]:
    return (setting.scale, setting.variant, setting.tuning)


def _set_names(comparisons: Sequence[Comparison]) -> str:
    return ", ".join(dict.fromkeys(item.set_name for item in comparisons))
