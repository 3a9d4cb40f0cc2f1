"""What can be claimed: families of comparisons with Holm's correction and a verdict each, and variants against their base."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from metapt.evaluation.bootstrap import holm

from ..load.collect import Collection
from ..load.records import FinetuneRun, Setting
from ..stats.comparison import (
    DIFFERENCE_COLUMNS,
    Average,
    Comparison,
    averages,
    compared,
    difference_cells,
    last_steps,
)
from ..stats.matched_budget import UPDATES
from ..stats.significance import Difference, Scores
from ..tables import RUNS, Cell, Column, Table
from .base import Section, Study

BASE = "base"
SMALL = 0.02
LEVEL = 0.05
EFFECT, NONE, UNKNOWN = "effect", "none of practical size", "cannot be told"

DEFINITION = (
    "Claims: mean differences over sources and the sets of a group, one figure a scale, variant and tuning, at the last step that both "
    "objectives have. The groups are the target sets, and the sets whose language no run was tuned on; each group is a family of its own, "
    f"whose p are corrected by Holm's method (1979). Effect: the corrected p is below {LEVEL} and the interval leaves out 0. None of practical size: "
    f"the interval lies within {100 * SMALL:.0f} points of 0. Anything else cannot be told from these runs; `detectable` says what could have been. "
    f"Variants: MAML under a variant minus MAML under `{BASE}`, paired by seed, source and tuning, at the last step that both have; descriptive, "
    "their p are not corrected."
)


@dataclass(frozen=True)
class Claim:
    """A mean difference in its family: p after the correction, and what may be said."""

    average: Average
    corrected: float
    verdict: str


def section(study: Study) -> Section:
    families = {group: claims(study, names) for group, names in groups(study.collection).items()}
    tables = [_claims_table(families)]
    if study.term == UPDATES:
        tables.append(_variants_table(study))
    text = [] if any(families.values()) else ["Needed: a pair of a MAML and a vanilla run, tuned alike."]
    return Section("claims", "What can be claimed", text, tables=tables)


def groups(collection: Collection) -> dict[str, list[str]]:
    """The sets that are averaged over, by the name of their group; a set belongs to one group at most."""
    return {"target sets": collection.target_sets(), "other languages": collection.other_sets()}


def claims(study: Study, names: Iterable[str]) -> list[Claim]:
    """A family: one claim for each scale, variant and tuning, on these sets."""
    chosen = set(names)
    found = last_steps([item for item in study.found if item.set_name in chosen])
    means = averages(found, _variant)
    corrected = holm([item.both.p for item in means])
    return [Claim(item, p, verdict(item.both, p)) for item, p in zip(means, corrected, strict=True)]


def verdict(both: Difference, corrected: float) -> str:
    """What the interval and the corrected p allow to say."""
    low, high = both.told.interval
    if corrected < LEVEL and both.told.excludes_zero:
        return EFFECT
    return NONE if low > -SMALL and high < SMALL else UNKNOWN


def _claims_table(families: dict[str, list[Claim]]) -> Table:
    columns = [Column(head) for head in ("group", "scale", "variant", "tuning", "verdict", "vanilla", "MAML")]
    columns += [
        *DIFFERENCE_COLUMNS,
        Column("corrected p", digits=4),
        Column("comparisons"),
        Column("sets"),
        RUNS,
    ]
    rows: list[list[Cell]] = []
    for group, found in families.items():
        for claim in found:
            item = claim.average
            cells: list[Cell] = [group, *item.key, claim.verdict, item.vanilla.value, item.maml.value]
            cells += [*difference_cells(item.both), claim.corrected, len(item.comparisons)]
            rows.append([*cells, _sets(item.comparisons), item.runs])
    tinted = {index for index, row in enumerate(rows) if EFFECT in row}
    note = "Tinted rows: an effect. p are corrected within each group."
    title = "MAML minus vanilla, by variant and tuning"
    return Table("claims", title, columns, rows, note, tinted).without_constant("scale", "variant")


def variants(collection: Collection, scores: Scores, names: Sequence[str]) -> list[Average]:
    """Each MAML variant against BASE on these sets, by scale, variant and tuning; `vanilla` is here MAML under BASE."""
    maml = [run for run in collection.finetuning if run.objective == "maml"]
    known = {_without_variant(run): run for run in maml if run.setting.variant == BASE}
    both: dict[Setting, list[tuple[FinetuneRun, FinetuneRun]]] = {}
    for run in maml:
        if run.setting.variant != BASE and _without_variant(run) in known:
            both.setdefault(run.setting, []).append((run, known[_without_variant(run)]))
    return averages(last_steps(compared(both, names, scores)), _variant)


def _variants_table(study: Study) -> Table:
    columns = [Column(head) for head in ("group", "scale", "variant", "tuning", BASE, "this variant")]
    columns += [*DIFFERENCE_COLUMNS, Column("comparisons"), Column("sets"), RUNS]
    rows: list[list[Cell]] = []
    for group, names in groups(study.collection).items():
        for item in variants(study.collection, study.scores, names):
            cells: list[Cell] = [group, *item.key, item.vanilla.value, item.maml.value]
            cells += [*difference_cells(item.both), len(item.comparisons)]
            rows.append([*cells, _sets(item.comparisons), item.runs])
    title = f"MAML under each variant minus MAML under {BASE}"
    return Table("variants", title, columns, rows, "Descriptive: p are not corrected.").without_constant(
        "scale"
    )


def _variant(setting: Setting) -> tuple[Cell, ...]:
    return (setting.scale, setting.variant, setting.tuning)


def _without_variant(run: FinetuneRun) -> tuple[object, ...]:
    """Equal for two runs that only differ in the variant of their pretraining."""
    setting = run.setting
    return (setting.scale, setting.tuning, setting.source, setting.step, run.seeds, run.corpus)


def _sets(found: Sequence[Comparison]) -> str:
    return ", ".join(dict.fromkeys(item.set_name for item in found))
