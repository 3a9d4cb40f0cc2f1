"""The sections of the report in their order, and the report built from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from metapt.data import DEMO_NOTICE

from .figures.style import Figure
from .load.collect import Collection
from .run_refs import counted, runs_of
from .sections import (
    aggregates,
    baseline_rows,
    case_studies,
    claims,
    comparisons,
    confidence,
    datasets,
    error_analysis,
    f1,
    finetuning_speed,
    k_shot,
    lead,
    learning_curves,
    learning_dynamics,
    particle_recall,
    published,
    run_list,
    source_languages,
)
from .sections.base import ReportData, Section, Views, views
from .sections.summary import missing_pairs, run_counts
from .stats import comparison, convergence, matched_budget, pairing, shots, significance
from .stats.budgets import UPDATES
from .tables import DAGGER, Table

SectionBuilder = Callable[[ReportData], Section]
Part = Callable[[Views], Sequence[Section]]
"""makes one or more sections of the same name"""


@dataclass
class Report:
    """Everything that the report shows.

    Attributes:
        notice: a warning about synthetic data, which says how many runs it concerns; may be empty.
        run_counts: a sentence on how many runs the report includes.
        budget: the matched budget that is shown first.
        contrast: the contrast that is shown first.
        contrasts: all contrasts that can be shown.
        leads: what is shown first, for each contrast and its budgets: the answer in a sentence, its figure, its table, and its limits.
        sections: all others, in order; the sections that compare two arms occur once for each contrast and its budgets.
        f1: the table that is printed on the terminal.
    """

    title: str
    notice: str
    run_counts: str
    budget: str
    contrast: str
    contrasts: Sequence[str]
    leads: Sequence[Section]
    sections: Sequence[Section]
    f1: Table

    @property
    def tables(self) -> list[Table]:
        return [table for section in (*self.leads, *self.sections) for table in section.tables]

    @property
    def figures(self) -> list[Figure]:
        return [figure for section in (*self.leads, *self.sections) for figure in section.figures]

    @property
    def chapters(self) -> list[list[Section]]:
        """Consecutive sections of the same name: one chapter has a section for each contrast and its budgets."""
        return [list(group) for _, group in groupby(self.sections, key=lambda section: section.name)]

    @property
    def default_lead(self) -> Section:
        """The lead of the contrast and budget that are shown first."""
        return next(lead for lead in self.leads if self._is_default(lead))

    @property
    def default_sections(self) -> list[Section]:
        """The sections of the contrast and budget that are shown first, and those that compare nothing."""
        return [section for section in self.sections if not section.budgets or self._is_default(section)]

    def _is_default(self, section: Section) -> bool:
        return section.contrast == self.contrast and self.budget in section.budgets


def build(
    collection: Collection,
    resamples: int = significance.RESAMPLES,
    uner: Path | None = None,
    budget: str = UPDATES,
    sentences: bool = True,
) -> Report:
    """Compute all sections.

    Args:
        resamples: bootstrap resamples of every interval.
        uner: folder with SET/train.iob2 for statistics of the training data, or None.
        budget: the matched budget that is shown first, one of BUDGETS.
        sentences: whether to show sentences of the evaluation sets.
    """
    shown = views(collection, resamples, uner, budget, sentences)
    sections = [section.without_empty_tables() for build_part in PARTS for section in build_part(shown)]
    return Report(
        title=", ".join(root.resolve().name for root in collection.roots) + ": NER after meta-pretraining",
        notice=_notice(collection),
        run_counts=run_counts(collection),
        budget=budget,
        contrast=str(shown.first.contrast),
        contrasts=[str(groups[0].contrast) for groups in shown.primary],
        leads=lead.sections(shown),
        sections=[section for section in sections if not section.is_empty],
        f1=f1.f1_table(collection, shown.first.scores),
    )


def _notice(collection: Collection) -> str:
    """The notice about synthetic data, and which runs it concerns."""
    runs = runs_of(collection.pretraining, collection.finetuning, collection.continued)
    if runs.synthetic in (0, len(runs)):
        return DEMO_NOTICE if runs.synthetic else ""
    return f"{runs.synthetic:,} of {counted(len(runs), 'run')}, marked {DAGGER} in the tables: {DEMO_NOTICE}"


def overall(builder: Callable[[Views], Section]) -> Part:
    """A section that shows all contrasts together."""
    return lambda shown: [builder(shown)]


def once(builder: SectionBuilder) -> Part:
    """A section that compares nothing, or only at matched updates."""
    return lambda shown: [builder(shown.first)]


def compared(builder: SectionBuilder) -> Part:
    """A section that is built once for each primary contrast and its budgets.

    Without a pair of runs at a budget other than updates, it only says which runs are needed.
    """

    def build_part(shown: Views) -> list[Section]:
        sections = []
        for first, *others in shown.primary:
            built = builder(first)
            sections.append(built.for_view(first, shown))
            for data in others:
                if data.has_comparisons:
                    section = builder(data)
                else:
                    section = Section(built.name, built.title, [missing_pairs(data)])
                sections.append(section.for_view(data, shown))
        return sections

    return build_part


def _definitions(_: ReportData) -> Section:
    modules = (
        f1,
        aggregates,
        pairing,
        comparison,
        matched_budget,
        significance,
        claims,
        baseline_rows,
        learning_curves,
        confidence,
        case_studies,
        particle_recall,
        error_analysis,
        convergence,
        shots,
        datasets,
        learning_dynamics,
    )
    return Section("definitions", "Definitions", [module.DEFINITION for module in modules])


PARTS: Sequence[Part] = (
    overall(claims.section),
    once(f1.section),
    once(aggregates.section),
    once(published.section),
    overall(comparisons.matches_section),
    compared(comparisons.differences_section),
    once(baseline_rows.section),
    compared(comparisons.scale_section),
    compared(comparisons.tuning_section),
    compared(source_languages.section),
    overall(k_shot.section),
    once(learning_curves.section),
    once(confidence.section),
    compared(case_studies.section),
    once(particle_recall.section),
    once(f1.types_section),
    once(error_analysis.section),
    overall(finetuning_speed.section),
    compared(finetuning_speed.pairs_section),
    once(datasets.section),
    once(learning_dynamics.section),
    once(run_list.section),
    once(run_list.excluded_section),
    once(_definitions),
)
"""the sections in their order"""
