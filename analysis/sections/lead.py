"""The top of the page: the answer in one sentence, a forest plot of the differences behind it, and a short table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from ..figures.forest import ForestRow, forest
from ..figures.style import figure
from ..run_refs import Runs, counted, runs_of
from ..stats.comparison import Average, Comparison
from ..stats.significance import average_difference
from ..tables import RUNS, Cell, Column, Table
from .base import ReportData, Section
from .claims import EFFECT, Claim, claims, set_groups
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
    sides: tuple[str, str] = ("MAML", "vanilla")
    rows: Sequence[ForestRow] = ()
    runs: Runs = Runs(())
    table: Table | None = None
    notes: Sequence[str] = ()


def section(data: ReportData) -> Section:
    """The lead as a section of the report."""
    return lead_section(lead(data))


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


def lead(data: ReportData) -> Lead:
    """The claims about MAML against vanilla."""
    sentence, *notes = summary(data)
    families = {group: claims(data, names) for group, names in set_groups(data.collection).items()}
    found = [(group, claim) for group, family in families.items() for claim in family]
    if not found:
        return Lead(sentence, notes=notes)
    rows = [row for group, claim in found for row in _forest_rows(_title(group, claim, found), claim)]
    runs = runs_of(*(claim.average.runs for _, claim in found))
    return Lead(sentence, rows=rows, runs=runs, table=_table(found), notes=notes)


def _title(group: str, claim: Claim, found: Sequence[tuple[str, Claim]]) -> str:
    """What distinguishes a claim: the group of sets, and those parts of the setting in which the claims differ."""
    parts = zip(claim.average.key, *(other.average.key for _, other in found), strict=True)
    return ", ".join([group, *(str(own) for own, *others in parts if len(set(others)) > 1)])


def _forest_rows(title: str, claim: Claim) -> list[ForestRow]:
    """The difference on each set, mean over sources, and the mean of all."""
    by_set: list[tuple[str, list[Comparison]]] = [
        (name, list(items))
        for name, items in groupby(
            sorted(claim.average.comparisons, key=lambda item: item.set_name), lambda item: item.set_name
        )
    ]
    rows = []
    for name, items in by_set:
        difference = average_difference(item.difference for item in items).summary
        label = f"{name} ({items[0].gold_spans:,})"
        is_effect = claim.verdict == EFFECT and difference.excludes_zero
        rows.append(ForestRow(label, title, difference.value, *difference.interval, is_effect=is_effect))
    mean = claim.average.difference.summary
    label = f"mean of {counted(len(rows), 'set')}"
    is_effect = claim.verdict == EFFECT
    return [
        *rows,
        ForestRow(label, title, mean.value, *mean.interval, claim.verdict, is_mean=True, is_effect=is_effect),
    ]


def _table(found: Sequence[tuple[str, Claim]]) -> Table:
    """The claims in the columns that a reader needs first."""
    heads = ("sets", "scale", "variant", "tuning", "verdict", "difference", "95 % CI", "vanilla", "MAML")
    columns = [
        Column(head, interval=head == "95 % CI", signed=head in ("difference", "95 % CI")) for head in heads
    ]
    rows: list[list[Cell]] = []
    for group, claim in found:
        item: Average = claim.average
        summary_ = item.difference.summary
        cells: list[Cell] = [group, *item.key, claim.verdict, summary_.value, summary_.interval]
        rows.append([*cells, item.vanilla.value, item.maml.value, item.runs])
    shaded = {index for index, row in enumerate(rows) if EFFECT in row}
    note = "Shaded rows: an effect. All columns are in the section Claims."
    title = "Mean difference of micro-F1, MAML minus vanilla"
    return Table("lead", title, [*columns, RUNS], rows, note, shaded).without_constant("scale", "variant")
