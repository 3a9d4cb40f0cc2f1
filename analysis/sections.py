"""The report in order: what each section says, and which tables and figures it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from analysis import (
    baselines,
    cases,
    checkpoints,
    comparison,
    confidence,
    convergence,
    corpora,
    dynamics,
    errors,
    f1,
    figures,
    particles,
    published,
    runs,
    significance,
    sources,
)  # fmt: skip
from analysis.collect import Collection
from analysis.comparison import Comparison, averages, averages_table
from analysis.drawing import Figure
from analysis.significance import average
from analysis.study import Section, Study
from analysis.tables import Column, Table
from metapt.data import DEMO_NOTICE


@dataclass
class Report:
    title: str
    notice: str
    summary: Sequence[str]
    sections: Sequence[Section]
    f1: Table
    tables: Sequence[Table] = field(init=False)
    figures: Sequence[Figure] = field(init=False)

    def __post_init__(self) -> None:
        self.tables = [table for section in self.sections for table in section.tables]
        self.figures = [figure for section in self.sections for figure in section.figures]


def build(
    collection: Collection, resamples: int = significance.RESAMPLES, uner: Path | None = None
) -> Report:
    """Computes everything.

    Args:
        uner: a folder SET/train.iob2, for statistics of the training data.
    """
    study = Study(collection, resamples, uner)
    notice = DEMO_NOTICE if collection.generated else ""
    title = "Zero-shot NER after meta-pretraining: " + ", ".join(root.resolve().name for root in collection.roots)  # fmt: skip
    sections = [_pruned(analysis(study)) for analysis in ANALYSES]
    kept = [part for part in sections if part.paragraphs or part.figures or part.tables or part.blocks]
    table = f1.f1_table(collection, study.scores, study.found)
    return Report(title, notice, _summary(collection, study.found, study.on_targets), kept, table)


def _pruned(section: Section) -> Section:
    """The section without tables that have no row."""
    return Section(
        section.name,
        section.title,
        section.paragraphs,
        section.figures,
        [table for table in section.tables if table.rows],
        section.blocks,
    )


def _summary(
    collection: Collection, found: Sequence[Comparison], on_targets: Sequence[Comparison]
) -> list[str]:
    """What the numbers say, and how little."""
    tuned = sum(not run.is_baseline for run in collection.finetuning)
    found_runs = f"{len(collection.pretraining)} pretraining and {tuned} fine-tuning runs are finished"
    found_runs += (
        f"; {len(collection.left_out)} more are in no table and listed at the end."
        if collection.left_out
        else "."
    )
    if not on_targets:
        return [
            found_runs,
            "There is no pair of a MAML run and a vanilla run that are otherwise identical, so no difference can be given.",
        ]
    gap = average(item.difference for item in on_targets)
    low, high = gap.interval
    if low > 0 or high < 0:
        verdict = f"MAML is {'better' if low > 0 else 'worse'} than vanilla there, as far as these sentences and seeds tell."
    else:
        verdict = "The interval holds 0: no difference can be claimed."
    above = sum(item.difference.interval[0] > 0 for item in on_targets)
    below = sum(item.difference.interval[1] < 0 for item in on_targets)
    names = sorted({item.set_name for item in on_targets})
    pairs = sum(len(both) for both in comparison.pairs(collection).values())
    seeds = {item.seeds for item in found}
    spans = {item.set_name: item.gold_spans for item in on_targets}
    text = (
        f"MAML and vanilla can be compared in {pairs} pair{'s' if pairs != 1 else ''} of runs. On {', '.join(names)} the mean difference in micro-F1, MAML "
        f"minus vanilla, is {_points(gap.value)} points, with a 95 % interval from {_points(low)} to {_points(high)} over "
        f"sentences. Of {len(on_targets)} single comparisons (a setting on one of these sets), {above + below} intervals leave "
        f"out 0: {above} in favour of MAML, {below} in favour of vanilla; if there were no difference at all, about {0.05 * len(on_targets):.1f} would be expected to."
    )
    caution = (
        f"These sets hold {', '.join(f'{count} ({name})' for name, count in spans.items())} gold spans, so one span more or less "
        f"moves recall by about {100 / median(spans.values()):.1f} points. "
    )
    if max(seeds) == 1:
        caution += "Every comparison rests on one seed: its interval tells nothing about what another seed would give."
    else:
        caution += (
            f"Comparisons rest on {min(seeds)} to {max(seeds)} seeds."
            if len(seeds) > 1
            else f"Every comparison rests on {max(seeds)} seeds."
        )
    return [found_runs, f"{text} {verdict}", *_by_scale(on_targets), caution]


def _by_scale(on_targets: Sequence[Comparison]) -> list[str]:
    """Where there are several scales, a clause for each: does the difference change with size?"""
    means = averages(on_targets, lambda setting: (setting.scale,))
    if len(means) < 2:
        return []
    clauses = []
    for item in means:
        gap = item.maml - item.vanilla
        low, high = gap.interval
        claim = "" if gap.excludes_zero else "; no difference can be claimed"
        clauses.append(
            f"{item.key[0]} {_points(gap.value)} points ({_points(low)} to {_points(high)}{claim})"
        )
    return [f"By scale: {', '.join(clauses)}."]


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _f1(study: Study) -> Section:
    collection = study.collection
    tables = [
        f1.f1_table(collection, study.scores, study.found),
        f1.intervals_table(collection, study.scores),
    ]
    return Section("f1", "F1", tables=tables)


def _differences(study: Study) -> Section:
    text = [] if study.found else ["No two runs differ in the objective only."]
    tables = [comparison.differences_table(study.found)]
    return Section("differences", "MAML minus vanilla", text, tables=tables)


def _scale(study: Study) -> Section:
    sizes = {label: study.collection.sizes(label) for label in {item.setting.label for item in study.last}}
    means = averages(
        study.last, lambda setting: (setting.scale, setting.label, sizes[setting.label][setting.scale])
    )
    heads = [Column("scale"), Column("variant"), Column("parameters")]
    table = averages_table("by_scale", "Mean F1 on the target sets by scale", heads, means)
    scales = len({item.setting.scale for item in study.last})
    text = [f"A curve over scales needs at least two; there {'is one' if scales else 'is none'} with a pair of runs."] if scales < 2 else []  # fmt: skip
    return Section("scale", "Scale", text, figures.scale_curve(study.collection, study.last), [table])


def _regime(study: Study) -> Section:
    means = averages(study.last, lambda setting: (setting.scale, setting.label, setting.regime))
    heads = [Column("scale"), Column("variant"), Column("regime")]
    table = averages_table("by_regime", "Mean F1 on the target sets by regime", heads, means)
    regimes = {item.setting.regime for item in study.last}
    text = [f"Needed to compare regimes: pairs under both; there are some under {', '.join(sorted(regimes)) or 'none'} only."] if len(regimes) < 2 else []  # fmt: skip
    return Section("regime", "Regime", text, tables=[table])


def _particles(study: Study) -> Section:
    tables = [particles.data_table(study.collection), particles.recall_table(study.collection)]
    return Section("particles", "Case particles", tables=tables)


def _types(study: Study) -> Section:
    return Section("types", "By entity type", tables=[f1.types_table(study.collection)])


def _errors(study: Study) -> Section:
    tables = [errors.errors_table(study.collection), errors.errors_by_set_table(study.collection)]
    return Section("errors", "Errors", tables=tables)


def _convergence(study: Study) -> Section:
    means = convergence.means_table(study.collection)
    tables = [means, convergence.pairs_table(study.collection), convergence.runs_table(study.collection)]
    text = (
        []
        if means.rows
        else ["Needed: a MAML and a vanilla run tuned alike, with their losses at every step."]
    )
    return Section("convergence", "Fine-tuning speed", text, figures.finetuning(study.collection), tables)


def _pretraining(study: Study) -> Section:
    collection = study.collection
    tables = [dynamics.budgets_table(collection), dynamics.episodes_table(collection), dynamics.measurements_table(collection)]  # fmt: skip
    drawn = [*figures.pretraining(collection), *figures.episodes(collection), *figures.dynamics(collection)]
    skipped = {run.path.name: len(run.skipped["step"]) for run in collection.pretraining if len(run.skipped["step"])}  # fmt: skip
    text = [f"Skipped updates, whose loss or gradient was not finite: {', '.join(f'{count} in {name}' for name, count in skipped.items()) or 'none'}."] if collection.pretraining else ["Needed: a finished pretraining run."]  # fmt: skip
    if not any(len(run.dynamics) > 1 for run in collection.pretraining):
        text.append("Learning dynamics need runs with train.dynamics_every; none has two measurements.")
    return Section("pretraining", "Pretraining and learning dynamics", text, drawn, tables)


def _definitions(_: Study) -> Section:
    parts = (f1, comparison, significance, baselines, checkpoints, confidence, cases, particles, errors, convergence, corpora, dynamics)  # fmt: skip
    return Section("definitions", "How each figure was computed", [part.DEFINITION for part in parts])


ANALYSES: Sequence[Callable[[Study], Section]] = (
    _f1,
    published.section,
    _differences,
    baselines.section,
    _scale,
    _regime,
    sources.section,
    checkpoints.section,
    confidence.section,
    cases.section,
    _particles,
    _types,
    _errors,
    _convergence,
    corpora.section,
    _pretraining,
    runs.section,
    runs.left_out,
    _definitions,
)
