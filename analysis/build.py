"""The sections of the report in their order, and the report built from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from metapt.data import DEMO_NOTICE

from .figures.style import Figure
from .load.collect import Collection
from .run_refs import counted, runs_of
from .sections import (
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
from .sections.base import ReportData, Section, data_by_budget
from .sections.summary import missing_pairs, run_counts
from .stats import comparison, convergence, matched_budget, shots, significance
from .stats.budgets import BUDGETS, UPDATES
from .tables import DAGGER, Table

SectionBuilder = Callable[[ReportData], Section]


@dataclass
class Report:
    """Everything that the report shows.

    Attributes:
        notice: a warning about synthetic data, which says how many runs it concerns; may be empty.
        run_counts: a sentence on how many runs the report includes.
        budget: the matched budget that is shown first.
        leads: by budget, what is shown first: the answer in a sentence, its figure, its table, and its limits.
        sections: all others, in order; the sections that compare MAML with vanilla occur once for each budget.
        f1: the table that is printed on the terminal.
    """

    title: str
    notice: str
    run_counts: str
    budget: str
    leads: Mapping[str, Section]
    sections: Sequence[Section]
    f1: Table

    @property
    def tables(self) -> list[Table]:
        return [table for section in (*self.leads.values(), *self.sections) for table in section.tables]

    @property
    def figures(self) -> list[Figure]:
        return [figure for section in (*self.leads.values(), *self.sections) for figure in section.figures]

    @property
    def chapters(self) -> list[list[Section]]:
        """Consecutive sections of the same name: one chapter has a section for each budget."""
        return [list(group) for _, group in groupby(self.sections, key=lambda section: section.name)]

    @property
    def default_sections(self) -> list[Section]:
        """The sections of the budget that is shown first, and those without a budget."""
        return [section for section in self.sections if section.budget in ("", self.budget)]


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
    by_budget = data_by_budget(collection, resamples, uner)
    data = by_budget[UPDATES]
    built: dict[SectionBuilder, list[Section]] = {}
    for builder in SECTIONS:
        if builder is case_studies.section and not sentences:
            built[builder] = [case_studies.omitted_section()]
        elif builder in PER_BUDGET:
            built[builder] = _build_per_budget(builder, by_budget.values())
        else:
            built[builder] = [builder(data).without_empty_tables()]
    sections = [section for builder in SECTIONS for section in built[builder] if not section.is_empty]
    return Report(
        title="Zero-shot NER after meta-pretraining: "
        + ", ".join(root.resolve().name for root in collection.roots),
        notice=_notice(collection),
        run_counts=run_counts(collection),
        budget=budget,
        leads={section.budget: section for section in _build_per_budget(lead.section, by_budget.values())},
        sections=sections,
        f1=f1.f1_table(collection, data.scores, data.comparisons),
    )


def _notice(collection: Collection) -> str:
    """The notice about synthetic data, and which runs it concerns."""
    runs = runs_of(collection.pretraining, collection.finetuning, collection.continued)
    if runs.synthetic in (0, len(runs)):
        return DEMO_NOTICE if runs.synthetic else ""
    return f"{runs.synthetic:,} of {counted(len(runs), 'run')}, marked {DAGGER} in the tables: {DEMO_NOTICE}"


def _build_per_budget(builder: SectionBuilder, by_budget: Iterable[ReportData]) -> list[Section]:
    """Build a section for each matched budget; without a pair of runs it only says which runs are needed.

    Budgets that match exactly the same runs, as updates and tokens often do, share their figures.
    """
    same_runs: dict[frozenset[Path], list[ReportData]] = {}
    for data in by_budget:
        runs = frozenset(run.path for run in data.collection.finetuning if not run.is_baseline)
        same_runs.setdefault(runs, []).append(data)
    sections = {}
    for group in same_runs.values():
        built = builder(group[0]).without_empty_tables()
        for data in group:
            if data.budget != UPDATES and not data.has_comparisons:
                section = Section(built.name, built.title, [missing_pairs(data)])
            else:
                section = built
            sections[data.budget] = section.for_budget(data.budget)
    return [sections[budget] for budget in BUDGETS]


def _definitions(_: ReportData) -> Section:
    modules = (
        f1,
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


SECTIONS: Sequence[SectionBuilder] = (
    claims.section,
    f1.section,
    published.section,
    comparisons.matches_section,
    comparisons.differences_section,
    baseline_rows.section,
    comparisons.scale_section,
    comparisons.tuning_section,
    source_languages.section,
    k_shot.section,
    learning_curves.section,
    confidence.section,
    case_studies.section,
    particle_recall.section,
    f1.types_section,
    error_analysis.section,
    finetuning_speed.section,
    datasets.section,
    learning_dynamics.section,
    run_list.section,
    run_list.excluded_section,
    _definitions,
)
PER_BUDGET = frozenset(
    {
        claims.section,
        comparisons.differences_section,
        comparisons.scale_section,
        comparisons.tuning_section,
        source_languages.section,
        case_studies.section,
        finetuning_speed.section,
    }
)
"""sections that are built once for each matched budget"""
