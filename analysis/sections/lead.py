"""The top of the page: the answer in one sentence, a forest plot of the differences behind it, and a short table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ..figures.forest import ForestRow, forest
from ..figures.style import figure
from ..run_refs import Runs, counted, runs_of
from ..stats.comparison import Average, arms, by_set
from ..tables import RUNS, Cell, Column, Table
from .base import ReportData, Section, Views
from .claims import EFFECT, Claim, claims_at
from .summary import summary

MAX_ROWS = 45  # of the forest plot; of the groups beyond, it shows means only


@dataclass(frozen=True)
class Lead:
    """What the page shows first.

    Attributes:
        sentence: the answer.
        sides: the names of the two systems of each difference, first minus second.
        rows: of the forest plot: the differences by set, and their means with verdicts.
        runs: of all rows.
        table: the means in numbers.
        notes: paragraphs below the table: what limits the answer.
    """

    sentence: str
    sides: tuple[str, str]
    rows: Sequence[ForestRow] = ()
    runs: Runs = Runs(())
    table: Table | None = None
    notes: Sequence[str] = ()


def sections(views: Views) -> list[Section]:
    """The lead of each primary contrast at its matched budgets."""
    found = []
    for data in (data for groups in views.primary for data in groups):
        budget = views.budget if views.budget in data.budgets else data.budgets[0]
        content = lead(data, claims_at(views, budget))
        found.append(lead_section(content).without_empty_tables().for_view(data, views))
    return found


def lead_section(content: Lead) -> Section:
    """Show the sentence, then the figure, then the table, then the notes."""
    figures = []
    if content.rows:
        rows = _at_most(content.rows, MAX_ROWS)
        caption = (
            f"Difference of micro-F1 ({content.sides[0]} minus {content.sides[1]}) on evaluation sets (gold spans in brackets), "
            "in points, with 95 % CI. Diamonds: means over the sets of a group. Coloured: the mean is an effect and the CI of "
            "the row excludes 0."
        )
        figures = [figure("lead", caption, content.runs, forest, rows, *content.sides)]
    tables = [content.table] if content.table else []
    return Section("lead", "Result", [content.sentence, *content.notes], figures, tables)


def _at_most(rows: Sequence[ForestRow], count: int) -> list[ForestRow]:
    """The rows of groups, whole as long as they are not too many, and of the other groups the means."""
    groups = [list(members) for _, members in groupby(rows, key=lambda row: row.group)]
    shown: list[ForestRow] = []
    for number, group in enumerate(groups):
        fits = len(shown) + len(group) + len(groups) - number - 1 <= count
        shown += group if fits else [row for row in group if row.is_mean]
    return shown


def lead(data: ReportData, families: Mapping[str, Sequence[Claim]]) -> Lead:
    """The claims about the contrast of `data`.

    Args:
        families: the claims about all contrasts at a budget of `data`, by group of sets.
    """
    found = [
        (group, claim)
        for group, family in families.items()
        for claim in family
        if claim.average.contrast == data.contrast
    ]
    sentence, *notes = summary(data, [claim.verdict for _, claim in found])
    sides = (data.contrast.first, data.contrast.second)
    if not found:
        return Lead(sentence, sides, notes=notes)
    rows = [row for group, claim in found for row in _forest_rows(_title(group, claim, found), claim)]
    runs = runs_of(*(claim.average.runs for _, claim in found))
    return Lead(sentence, sides, rows, runs, _table(found), notes)


def _title(group: str, claim: Claim, found: Sequence[tuple[str, Claim]]) -> str:
    """What distinguishes a claim: the group of sets, and those parts of the setting in which the claims differ."""
    parts = zip(claim.average.key, *(other.average.key for _, other in found), strict=True)
    return ", ".join([group, *(str(own) for own, *others in parts if len(set(others)) > 1)])


def _forest_rows(title: str, claim: Claim) -> list[ForestRow]:
    """The difference on each set, mean over sources, and the mean of all."""
    rows = []
    for part in by_set(claim.average):
        label = f"{part.key[-1]} ({part.comparisons[0].gold_spans:,})"
        is_effect = claim.verdict == EFFECT and part.difference.excludes_zero
        difference = part.difference
        rows.append(ForestRow(label, title, difference.value, *difference.interval, is_effect=is_effect))
    mean = claim.average.difference
    label = f"mean of {counted(len(rows), 'set')}"
    is_effect = claim.verdict == EFFECT
    return [
        *rows,
        ForestRow(label, title, mean.value, *mean.interval, claim.verdict, is_mean=True, is_effect=is_effect),
    ]


def _table(found: Sequence[tuple[str, Claim]]) -> Table:
    """The claims in the columns that a reader needs first."""
    heads = (
        "sets",
        "scale",
        "variant",
        "tuning",
        "verdict",
        "difference",
        "95 % CI",
        *arms([found[0][1].average]),
    )
    columns = [
        Column(head, interval=head == "95 % CI", signed=head in ("difference", "95 % CI")) for head in heads
    ]
    rows: list[list[Cell]] = []
    for group, claim in found:
        item: Average = claim.average
        difference = item.difference
        cells: list[Cell] = [group, *item.key, claim.verdict, difference.value, difference.interval]
        rows.append([*cells, item.first.value, item.second.value, item.runs])
    shaded = {index for index, row in enumerate(rows) if EFFECT in row}
    note = "Shaded rows: an effect. All columns are in the section Claims."
    title = f"Mean difference of micro-F1, {found[0][1].average.contrast}"
    return Table("lead", title, [*columns, RUNS], rows, note, shaded).without_constant("scale", "variant")
