"""What every section of the report is made from, and what a section is.

An analysis is a module with a function `section(study) -> Section`, named in ANALYSES of sections.py: that is all there is
to adding one. It says what it shows and from how many runs, and where it has too little to show, what would be needed.
One that compares MAML with vanilla is in COMPARED too: it is then made once a budget (terms.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from markupsafe import Markup

from ..figures.style import Figure
from ..load.collect import Collection, with_reference
from ..stats import matched_budget
from ..stats.comparison import Comparison, comparable_by_set, comparisons, last_steps, pairs
from ..stats.matched_budget import TERMS, UPDATES, Match
from ..stats.significance import RESAMPLES, Scores
from ..tables import Table


@dataclass
class Section:
    """A part of the report; tables without rows are not shown. `blocks` is further markup, which only the page has.

    `term` is the budget at which MAML and vanilla are compared, empty where they are not.
    """

    name: str
    title: str
    paragraphs: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    blocks: Sequence[Markup] = ()
    term: str = ""

    def pruned(self) -> Section:
        """Without tables that have no row."""
        return replace(self, tables=[table for table in self.tables if table.rows])

    def under(self, term: str) -> Section:
        """The section as that of a term, which its captions and notes tell; names of files are those of the term."""
        end = "" if term == UPDATES else f"-{term.lower()}"
        figures = [replace(item, name=item.name + end, caption=f"{item.caption} At equal {term}.") for item in self.figures]  # fmt: skip
        tables = [replace(item, name=item.name + end, note=f"{item.note} At equal {term}.".strip()) for item in self.tables]  # fmt: skip
        return replace(self, figures=figures, tables=tables, term=term)


class Study:
    """The runs, their scores, and the comparisons of MAML with vanilla, which are worked out when they are asked for.

    `matches` has the checkpoints that are compared, of every term; the study is that of `term`.
    """

    def __init__(
        self,
        collection: Collection,
        scores: Scores,
        uner: Path | None,
        term: str,
        matches: Mapping[str, Sequence[Match]],
    ) -> None:
        self.collection, self.uner = collection, uner
        self.term, self.matches = term, matches
        self.scores = scores

    @property
    def has_comparisons(self) -> bool:
        """Whether `found` has any."""
        return any(comparable_by_set(pairs(self.collection), self.collection.set_names()))

    @cached_property
    def found(self) -> list[Comparison]:
        """All comparisons."""
        return comparisons(self.collection, self.scores)

    @cached_property
    def on_targets(self) -> list[Comparison]:
        """Those on the target sets."""
        targets = set(self.collection.target_sets())
        return [item for item in self.found if item.set_name in targets]

    @cached_property
    def last(self) -> list[Comparison]:
        """Of those on the target sets the ones at the last step of each model."""
        return last_steps(self.on_targets)


def untuned(study: Study) -> list[str]:
    """What a section of fine-tuned models needs, where there is none."""
    return [] if study.collection.finetuning else ["Needed: a finished fine-tuning run."]


def studies(collection: Collection, resamples: int = RESAMPLES, uner: Path | None = None) -> dict[str, Study]:
    """One study for each term; that of equal updates has all runs, every other one its matched checkpoints only."""
    scores = Scores(collection.finetuning, resamples)
    collection = with_reference(collection)  # of the same folders, by which scores go
    matches = {term: matched_budget.matches(collection, term) for term in TERMS}
    parts = {term: matched_budget.matched(collection, matches[term]) for term in TERMS} | {
        UPDATES: collection
    }
    return {term: Study(parts[term], scores, uner, term, matches) for term in TERMS}
