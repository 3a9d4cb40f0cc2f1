"""The report in order: what each section says, and which tables and figures it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from metapt.data import DEMO_NOTICE

from .figures import curves, scaling
from .figures.rendering import with_pdf
from .figures.style import Figure
from .load.collect import Collection
from .sections import (
    baseline_rows,
    case_studies,
    claims,
    confidence,
    datasets,
    error_analysis,
    f1,
    learning_curves,
    learning_dynamics,
    particle_recall,
    published,
    run_list,
    source_languages,
)
from .sections.base import Section, Study, studies, untuned
from .sections.summary import finished_runs, nothing, summary
from .stats import comparison, convergence, matched_budget, significance
from .stats.comparison import averages, averages_table, balanced, unbalanced
from .stats.matched_budget import TERMS, UPDATES
from .tables import Column, Table

Analysis = Callable[[Study], Section]


@dataclass
class Report:
    """`equal` is the term that is shown first; `summaries` and the sections that compare exist once a term."""

    title: str
    notice: str
    about: str
    equal: str
    summaries: Mapping[str, Sequence[str]]
    sections: Sequence[Section]
    f1: Table

    @property
    def tables(self) -> list[Table]:
        return [table for section in self.sections for table in section.tables]

    @property
    def figures(self) -> list[Figure]:
        return [figure for section in self.sections for figure in section.figures]

    @property
    def chapters(self) -> list[list[Section]]:
        """The sections, those of one name together."""
        return [list(same) for _, same in groupby(self.sections, key=lambda section: section.name)]

    @property
    def shown(self) -> list[Section]:
        """The sections of the term that is shown first, and those of none."""
        return [section for section in self.sections if section.term in ("", self.equal)]


def build(
    collection: Collection,
    resamples: int = significance.RESAMPLES,
    uner: Path | None = None,
    equal: str = UPDATES,
    sentences: bool = True,
) -> Report:
    """Computes everything.

    Args:
        uner: a folder SET/train.iob2, for statistics of the training data.
        equal: the term (of TERMS) that is shown first.
        sentences: whether sentences of the evaluation sets are shown.
    """
    found = studies(collection, resamples, uner)
    study = found[UPDATES]
    notice = DEMO_NOTICE if collection.generated else ""
    title = "Zero-shot NER after meta-pretraining: " + ", ".join(root.resolve().name for root in collection.roots)  # fmt: skip
    made: dict[Analysis, list[Section]] = {}
    for analysis in sorted(ANALYSES, key=lambda analysis: analysis not in FIRST):
        if analysis is case_studies.section and not sentences:
            made[analysis] = [Section("cases", "Case studies", ["Sentences of the evaluation sets are left out of this report."])]  # fmt: skip
        elif analysis in COMPARED:
            made[analysis] = _compared(analysis, found.values(), equal)
        else:
            made[analysis] = [analysis(study).pruned()]
    sections = [section for analysis in ANALYSES for section in made[analysis]]
    kept = [part for part in sections if part.paragraphs or part.figures or part.tables or part.blocks]
    summaries = {term: summary(one) for term, one in found.items()}
    table = f1.f1_table(collection, study.scores, study.found)
    return Report(title, notice, finished_runs(collection), equal, summaries, kept, table)


def _compared(analysis: Analysis, found: Iterable[Study], equal: str) -> list[Section]:
    """An analysis under each term; where that has no pair, the section only says what would be needed.

    Terms that have the very same runs, as equal updates and tokens often do, share their figures.
    """
    alike: dict[frozenset[Path], list[Study]] = {}
    for study in found:
        run_list = frozenset(run.path for run in study.collection.finetuning if not run.is_baseline)
        alike.setdefault(run_list, []).append(study)
    by_term = {}
    for same in alike.values():
        with with_pdf(any(study.term == equal for study in same)):
            made = analysis(same[0]).pruned()
        for study in same:
            is_empty = study.term != UPDATES and not study.has_comparisons
            section = Section(made.name, made.title, [nothing(study)]) if is_empty else made
            by_term[study.term] = section.under(study.term)
    return [by_term[term] for term in TERMS]


def _terms(study: Study) -> Section:
    """Which checkpoints are compared under each term."""
    text = ["MAML and vanilla are compared at equal updates, tokens, FLOPs and seconds; the switch at the top of the page chooses which is shown."]  # fmt: skip
    table = matched_budget.terms_table([match for found in study.matches.values() for match in found])
    if not table.rows:
        text.append("Needed: a MAML and a vanilla run of one scale and seed, and fine-tuning runs of both.")
    return Section("terms", "Equal terms", text, tables=[table])


def _f1(study: Study) -> Section:
    collection = study.collection
    tables = [
        f1.f1_table(collection, study.scores, study.found),
        f1.intervals_table(collection, study.scores),
    ]
    return Section("f1", "F1", untuned(study), tables=tables)


def _differences(study: Study) -> Section:
    text = [] if study.found else ["No two runs differ in the objective only."]
    tables = [comparison.differences_table(study.found)]
    return Section("differences", "MAML minus vanilla", text, tables=tables)


def _scale(study: Study) -> Section:
    found = balanced(study.last, "scale")
    sizes = {label: study.collection.sizes(label) for label in {item.setting.variant for item in found}}
    means = averages(
        found, lambda setting: (setting.scale, setting.variant, sizes[setting.variant][setting.scale])
    )
    heads = [Column("scale"), Column("variant"), Column("parameters")]
    table = averages_table("by_scale", "Mean F1 on the target sets by scale", heads, means)
    scales = len({item.setting.scale for item in study.last})
    text = [f"A curve over scales needs at least two; there {'is one' if scales else 'is none'} with a pair of runs."] if scales < 2 else []  # fmt: skip
    text += unbalanced(study.last, "scale")
    return Section("scale", "Scale", text, scaling.scale_curve(study.collection, found), [table])


def _tuning(study: Study) -> Section:
    found = balanced(study.last, "tuning")
    means = averages(found, lambda setting: (setting.scale, setting.variant, setting.tuning))
    heads = [Column("scale"), Column("variant"), Column("tuning")]
    table = averages_table("by_tuning", "Mean F1 on the target sets by tuning", heads, means)
    tunings = {item.setting.tuning for item in study.last}
    text = [f"Needed to compare tunings: pairs under both; there are some under {', '.join(sorted(tunings)) or 'none'} only."] if len(tunings) < 2 else []  # fmt: skip
    return Section("tuning", "Tuning", text + unbalanced(study.last, "tuning"), tables=[table])


def _particles(study: Study) -> Section:
    tables = [particle_recall.data_table(study.collection), particle_recall.recall_table(study.collection)]
    return Section("particles", "Case particles", untuned(study), tables=tables)


def _types(study: Study) -> Section:
    return Section("types", "By entity type", untuned(study), tables=[f1.types_table(study.collection)])


def _errors(study: Study) -> Section:
    tables = [
        error_analysis.errors_table(study.collection),
        error_analysis.errors_by_set_table(study.collection),
    ]
    return Section("errors", "Errors", untuned(study), tables=tables)


def _convergence(study: Study) -> Section:
    means = convergence.means_table(study.collection)
    tables = [means, convergence.pairs_table(study.collection), convergence.runs_table(study.collection)]
    text = (
        []
        if means.rows
        else ["Needed: a MAML and a vanilla run tuned alike, with their losses at every step."]
    )
    return Section("convergence", "Fine-tuning speed", text, curves.finetuning(study.collection), tables)


def _pretraining(study: Study) -> Section:
    collection = study.collection
    tables = [learning_dynamics.budgets_table(collection), learning_dynamics.episodes_table(collection), learning_dynamics.measurements_table(collection)]  # fmt: skip
    drawn = [*curves.pretraining(collection), *curves.episodes(collection), *curves.dynamics(collection)]
    skipped = {run.path.name: len(run.skipped["step"]) for run in collection.pretraining if len(run.skipped["step"])}  # fmt: skip
    text = [f"Skipped updates, whose loss or gradient was not finite: {', '.join(f'{count} in {name}' for name, count in skipped.items()) or 'none'}."] if collection.pretraining else ["Needed: a finished pretraining run."]  # fmt: skip
    if not any(len(run.dynamics) > 1 for run in collection.pretraining):
        text.append("Learning dynamics need runs with train.dynamics_every; none has two measurements.")
    return Section("pretraining", "Pretraining and learning dynamics", text, drawn, tables)


def _definitions(_: Study) -> Section:
    parts = (f1, comparison, matched_budget, significance, claims, baseline_rows, learning_curves, confidence, case_studies, particle_recall, error_analysis, convergence, datasets, learning_dynamics)  # fmt: skip
    return Section("definitions", "How each figure was computed", [part.DEFINITION for part in parts])


ANALYSES: Sequence[Analysis] = (
    claims.section,
    _f1,
    published.section,
    _terms,
    _differences,
    baseline_rows.section,
    _scale,
    _tuning,
    source_languages.section,
    learning_curves.section,
    confidence.section,
    case_studies.section,
    _particles,
    _types,
    _errors,
    _convergence,
    datasets.section,
    _pretraining,
    run_list.section,
    run_list.left_out,
    _definitions,
)
COMPARED = frozenset(
    {
        claims.section,
        _differences,
        _scale,
        _tuning,
        source_languages.section,
        case_studies.section,
        _convergence,
    }
)
"""the analyses that are made once a term; they come in ANALYSES too, for their places"""
FIRST = frozenset({_convergence, confidence.section, _pretraining})
"""the analyses that are made first: other processes draw their many figures while this one resamples, which they have no need of"""
