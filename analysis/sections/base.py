"""The input of every section of the report, and the type of a section.

A section module has a function `section(data: ReportData) -> Section`, which is listed in PARTS of build.py. Nothing else
is needed to add one. A section says what it shows and how many runs it is computed from; where data are missing, it says
which runs are needed. A section that compares the two arms of a contrast is built once for each primary contrast and each
group of matched budgets that compare the same runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from markupsafe import Markup

from ..figures.style import Figure, slug
from ..load.collect import Collection
from ..load.contrasts import Contrast
from ..load.records import Setting
from ..stats.budgets import UPDATES
from ..stats.comparison import Comparison, comparable_by_set, comparisons, last_steps
from ..stats.matched_budget import MatchedRuns, Pair
from ..stats.significance import Scores
from ..tables import Table, enumerated


@dataclass
class Section:
    """One section of the report.

    Attributes:
        name: identifier, used as the anchor on the page.
        title: heading.
        blocks: extra HTML, shown on the page only.
        budgets: the matched budgets at which two arms are compared; empty if the section compares nothing.
        contrast: which arms they are.
    """

    name: str
    title: str
    paragraphs: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    blocks: Sequence[Markup] = ()
    budgets: Sequence[str] = ()
    contrast: str = ""

    @property
    def is_empty(self) -> bool:
        return not (self.paragraphs or self.figures or self.tables or self.blocks)

    def without_empty_tables(self) -> Section:
        return replace(self, tables=[table for table in self.tables if table.rows])

    def for_view(self, data: ReportData, views: Views) -> Section:
        """The section labelled with what it compares and at which matched budgets, in captions, notes and file names.

        File names mention the first of these budgets unless it is updates, and no contrast if the page shows it first.
        """
        suffix = "" if data.budgets[0] == UPDATES else f"-{slug(data.budgets[0].lower())}"
        suffix += "" if data.contrast == views.first.contrast else f"-{slug(str(data.contrast))}"
        label = f"{str(data.contrast).capitalize()}, matched {enumerated(data.budgets)}."
        figures = [
            replace(figure, name=figure.name + suffix, caption=f"{figure.caption} {label}")
            for figure in self.figures
        ]
        tables = [
            replace(table, name=table.name + suffix, note=f"{table.note} {label}".strip())
            for table in self.tables
        ]
        return replace(
            self, figures=figures, tables=tables, budgets=data.budgets, contrast=str(data.contrast)
        )


class ReportData:
    """Runs, their scores, and the comparisons of one contrast at matched budgets that compare the same runs.

    Args:
        collection: all runs.
        scores: F1 scores and bootstrap resamples of all runs.
        uner: folder with SET/train.iob2 for statistics of the training data, or None.
        matched: the runs of the two arms of a contrast at each matched budget.
        budgets: the matched budgets, at least one.
        sentences: whether to quote sentences of the evaluation sets.
    """

    def __init__(
        self,
        collection: Collection,
        scores: Scores,
        uner: Path | None,
        matched: MatchedRuns,
        budgets: Sequence[str],
        sentences: bool = True,
    ) -> None:
        self.collection = collection
        self.scores = scores
        self.uner = uner
        self.matched = matched
        self.budgets = budgets
        self.sentences = sentences

    @property
    def contrast(self) -> Contrast:
        """The two arms that are compared."""
        return self.matched.contrast

    @cached_property
    def pairs(self) -> Mapping[Setting, Sequence[Pair]]:
        """The runs that are compared, (first arm, second arm), by setting."""
        return self.matched.pairs(self.budgets[0])

    @property
    def has_comparisons(self) -> bool:
        """Whether `comparisons` is not empty; cheaper than computing them."""
        return any(comparable_by_set(self.pairs, self.collection.set_names()))

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """All comparisons of the two arms."""
        return comparisons(self.contrast, self.pairs, self.collection.set_names(), self.scores)

    @cached_property
    def target_comparisons(self) -> list[Comparison]:
        """The comparisons on target sets."""
        targets = set(self.collection.target_sets())
        return [item for item in self.comparisons if item.set_name in targets]

    @cached_property
    def final_comparisons(self) -> list[Comparison]:
        """The comparisons on target sets at the last step of each model and tuning."""
        return last_steps(self.target_comparisons)


def finetuning_needed(data: ReportData) -> list[str]:
    """A sentence on the missing data if there is no fine-tuning run."""
    return [] if data.collection.finetuning else ["Needed: a finished fine-tuning run."]


def needed_pair(data: ReportData) -> str:
    """Which runs a comparison needs, as a phrase."""
    return f"a run of {data.contrast.first} and one of {data.contrast.second} with identical fine-tuning"


@dataclass(frozen=True)
class Views:
    """The input of the sections: for each contrast, primary ones first, the groups of budgets that compare the same runs.

    Attributes:
        budget: the matched budget that the page shows first, at which contrasts get verdicts.
    """

    by_contrast: Sequence[Sequence[ReportData]]
    budget: str

    @property
    def first(self) -> ReportData:
        """The first contrast at matched updates, for sections that compare nothing."""
        return self.by_contrast[0][0]

    @property
    def primary(self) -> list[Sequence[ReportData]]:
        """The primary contrasts; without any, the first contrast."""
        return [groups for groups in self.by_contrast if groups[0].contrast.primary] or [self.by_contrast[0]]

    def at(self, budget: str) -> list[ReportData]:
        """Every contrast at one budget."""
        return [data for groups in self.by_contrast for data in groups if budget in data.budgets]


def views(
    collection: Collection, resamples: int, uner: Path | None, budget: str, sentences: bool = True
) -> Views:
    """Build the input of the sections for each contrast and its groups of matched budgets."""
    scores = Scores(resamples)
    by_contrast = []
    for contrast in sorted(collection.contrasts, key=lambda contrast: not contrast.primary):
        matched = MatchedRuns(collection, contrast)
        by_contrast.append(
            [
                ReportData(collection, scores, uner, matched, budgets, sentences)
                for budgets in matched.groups()
            ]
        )
    return Views(by_contrast, budget)
