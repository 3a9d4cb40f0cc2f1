"""The input of every section of the report, and the type of a section.

A section module has a function `section(data: ReportData) -> Section`, which is listed in SECTIONS of build.py. Nothing
else is needed to add one. A section says what it shows and how many runs it is computed from; where data are missing, it
says which runs are needed. A section that compares MAML with vanilla is also listed in PER_BUDGET of build.py: it is then
built once for each matched budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from markupsafe import Markup

from ..figures.style import Figure
from ..load.collect import Collection, with_shared_vanilla
from ..stats import matched_budget
from ..stats.budgets import BUDGETS, UPDATES
from ..stats.comparison import Comparison, comparable_by_set, comparisons, last_steps, pairs
from ..stats.matched_budget import Match
from ..stats.significance import RESAMPLES, Scores
from ..tables import Table


@dataclass
class Section:
    """One section of the report.

    Attributes:
        name: identifier, used as the anchor on the page.
        title: heading.
        blocks: extra HTML, shown on the page only.
        budget: the matched budget at which MAML and vanilla are compared; empty if the section compares nothing.
    """

    name: str
    title: str
    paragraphs: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    blocks: Sequence[Markup] = ()
    budget: str = ""

    @property
    def is_empty(self) -> bool:
        return not (self.paragraphs or self.figures or self.tables or self.blocks)

    def without_empty_tables(self) -> Section:
        return replace(self, tables=[table for table in self.tables if table.rows])

    def for_budget(self, budget: str) -> Section:
        """The section labelled with a matched budget, in captions, table notes and file names."""
        suffix = "" if budget == UPDATES else f"-{budget.lower()}"
        label = f"Matched {budget}."
        figures = [
            replace(figure, name=figure.name + suffix, caption=f"{figure.caption} {label}")
            for figure in self.figures
        ]
        tables = [
            replace(table, name=table.name + suffix, note=f"{table.note} {label}".strip())
            for table in self.tables
        ]
        return replace(self, figures=figures, tables=tables, budget=budget)


class ReportData:
    """Runs, their scores, and the comparisons of MAML with vanilla at one matched budget.

    Args:
        collection: the runs to compare.
        scores: F1 scores and bootstrap resamples of all runs.
        uner: folder with SET/train.iob2 for statistics of the training data, or None.
        budget: the matched budget of `collection`.
        matches: the matched checkpoints at every budget.
    """

    def __init__(
        self,
        collection: Collection,
        scores: Scores,
        uner: Path | None,
        budget: str,
        matches: Mapping[str, Sequence[Match]],
    ) -> None:
        self.collection = collection
        self.scores = scores
        self.uner = uner
        self.budget = budget
        self.matches = matches

    @property
    def has_comparisons(self) -> bool:
        """Whether `comparisons` is not empty; cheaper than computing them."""
        return any(comparable_by_set(pairs(self.collection), self.collection.set_names()))

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """All comparisons of MAML with vanilla."""
        return comparisons(self.collection, self.scores)

    @cached_property
    def target_comparisons(self) -> list[Comparison]:
        """The comparisons on target sets."""
        targets = set(self.collection.target_sets())
        return [item for item in self.comparisons if item.set_name in targets]

    @cached_property
    def final_comparisons(self) -> list[Comparison]:
        """The comparisons on target sets at the last step of each model."""
        return last_steps(self.target_comparisons)


def finetuning_needed(data: ReportData) -> list[str]:
    """A sentence on the missing data if there is no fine-tuning run."""
    return [] if data.collection.finetuning else ["Needed: a finished fine-tuning run."]


def data_by_budget(
    collection: Collection, resamples: int = RESAMPLES, uner: Path | None = None
) -> dict[str, ReportData]:
    """Build the input of the sections for each matched budget.

    Returns:
        By budget. The entry of matched updates has all runs; every other one has the matched checkpoints only.
    """
    scores = Scores(resamples)
    collection = with_shared_vanilla(collection)  # keeps run folders, which are the keys of `scores`
    matches = {budget: matched_budget.matches(collection, budget) for budget in BUDGETS}
    matched = {budget: matched_budget.matched(collection, matches[budget]) for budget in BUDGETS}
    matched[UPDATES] = collection
    return {budget: ReportData(matched[budget], scores, uner, budget, matches) for budget in BUDGETS}
