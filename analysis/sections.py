"""The report in order: what each section says, and which tables and figures it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from analysis import (
    baselines,
    comparison,
    convergence,
    dynamics,
    errors,
    f1,
    figures,
    particles,
    significance,
)
from analysis.collect import Collection, FinetuneRun, PretrainRun
from analysis.comparison import Comparison, averages, averages_table, comparisons, last_steps
from analysis.figures import Figure
from analysis.significance import Scores, average
from analysis.tables import Cell, Column, Table
from metapt.data import DEMO_NOTICE


@dataclass
class Section:
    """A part of the report. A table or figure without content is left out where the section is made."""

    name: str
    title: str
    paragraphs: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()


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


def build(collection: Collection, resamples: int = significance.RESAMPLES) -> Report:
    """Computes everything."""
    scores = Scores(collection.finetuning, resamples)
    found = comparisons(collection, scores)
    targets = set(collection.target_sets())
    on_targets = [item for item in found if item.set_name in targets]
    last = last_steps(on_targets)
    table = f1.f1_table(collection, scores, found)
    sections = [
        Section("f1", "F1", tables=[table, f1.intervals_table(collection, scores)]),
        _differences(found),
        Section("baselines", "Baselines", tables=[baselines.baselines_table(collection, scores)]),
        _scale(collection, last),
        _regime(last),
        _source(collection, last),
        _steps(collection, on_targets),
        _particles(collection),
        Section("types", "By entity type", tables=[f1.types_table(collection)]),
        _errors(collection),
        _convergence(collection),
        _pretraining(collection),
        _runs(collection),
        _left_out(collection),
        _definitions(),
    ]
    notice = DEMO_NOTICE if collection.generated else ""
    title = "Zero-shot NER after meta-pretraining: " + ", ".join(
        root.resolve().name for root in collection.roots
    )
    kept = [
        section
        for section in map(_pruned, sections)
        if section.paragraphs or section.figures or section.tables
    ]
    return Report(title, notice, _summary(collection, found, on_targets), kept, table)


def _pruned(section: Section) -> Section:
    """The section without tables that have no row."""
    return Section(
        section.name,
        section.title,
        section.paragraphs,
        section.figures,
        [table for table in section.tables if table.rows],
    )


def _summary(
    collection: Collection, found: Sequence[Comparison], on_targets: Sequence[Comparison]
) -> list[str]:
    """What the numbers say, and how little."""
    tuned = sum(not run.is_baseline for run in collection.finetuning)
    runs = f"{len(collection.pretraining)} pretraining and {tuned} fine-tuning runs are finished"
    runs += (
        f"; {len(collection.left_out)} more are in no table and listed at the end."
        if collection.left_out
        else "."
    )
    if not on_targets:
        return [
            runs,
            "There is no pair of a MAML run and a vanilla run that are otherwise identical, so no difference can be given.",
        ]
    gap = average(item.difference for item in on_targets)
    low, high = gap.interval
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
    return [runs, text, caution]


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _differences(found: Sequence[Comparison]) -> Section:
    text = [] if found else ["No two runs differ in the objective only."]
    return Section("differences", "MAML minus vanilla", text, tables=[comparison.differences_table(found)])


def _scale(collection: Collection, found: Sequence[Comparison]) -> Section:
    sizes = {label: collection.sizes(label) for label in {item.setting.label for item in found}}
    means = averages(
        found, lambda setting: (setting.scale, setting.label, sizes[setting.label][setting.scale])
    )
    heads = [Column("scale"), Column("variant"), Column("parameters")]
    table = averages_table("by_scale", "Mean F1 on the target sets by scale", heads, means)
    return Section("scale", "Scale", figures=figures.scale_curve(collection, found), tables=[table])


def _regime(found: Sequence[Comparison]) -> Section:
    means = averages(found, lambda setting: (setting.scale, setting.label, setting.regime))
    heads = [Column("scale"), Column("variant"), Column("regime")]
    return Section(
        "regime",
        "Regime",
        tables=[averages_table("by_regime", "Mean F1 on the target sets by regime", heads, means)],
    )


def _source(collection: Collection, found: Sequence[Comparison]) -> Section:
    means = averages(found, lambda setting: (setting.scale, setting.label, setting.source))
    heads = [Column("scale"), Column("variant"), Column("source")]
    table = averages_table("by_source", "Mean F1 on the target sets by fine-tuning source", heads, means)
    return Section(
        "source", "Fine-tuning source", figures=figures.by_source(collection, found), tables=[table]
    )


def _steps(collection: Collection, found: Sequence[Comparison]) -> Section:
    """Only where several checkpoints of a model were tuned."""
    drawn = figures.by_step(collection, found)
    means = averages(found, lambda setting: (setting.scale, setting.label, setting.step)) if drawn else []
    heads = [Column("scale"), Column("variant"), Column("step")]
    table = averages_table("by_step", "Mean F1 on the target sets by pretraining step", heads, means)
    return Section("steps", "Pretraining checkpoints", figures=drawn, tables=[table])


def _particles(collection: Collection) -> Section:
    tables = [particles.data_table(collection), particles.recall_table(collection)]
    return Section("particles", "Case particles", tables=tables)


def _errors(collection: Collection) -> Section:
    tables = [errors.errors_table(collection), errors.errors_by_set_table(collection)]
    return Section("errors", "Errors", tables=tables)


def _convergence(collection: Collection) -> Section:
    tables = [convergence.pairs_table(collection), convergence.runs_table(collection)]
    return Section("convergence", "Fine-tuning speed", figures=figures.finetuning(collection), tables=tables)


def _pretraining(collection: Collection) -> Section:
    tables = [
        dynamics.budgets_table(collection),
        dynamics.episodes_table(collection),
        dynamics.measurements_table(collection),
    ]
    drawn = [*figures.pretraining(collection), *figures.episodes(collection)]
    return Section("pretraining", "Pretraining", figures=drawn, tables=tables)


def _runs(collection: Collection) -> Section:
    return Section("runs", "Runs", tables=[_pretraining_runs(collection), _finetuning_runs(collection)])


def _made(provenance: Mapping[str, Any]) -> list[Cell]:
    """Commit, start, host and library versions of a run."""
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    commit, _, changes = provenance["git_commit"].partition("+")
    return [
        commit[:10] + (f"+{changes}" if changes else ""),
        provenance["started"],
        provenance["host"],
        versions,
    ]


MADE = [Column(head) for head in ("commit", "started", "host", "versions")]


def _pretraining_runs(collection: Collection) -> Table:
    heads = ("run", "scale", "variant", "objective")
    columns = [
        *(Column(head) for head in heads),
        Column("seed"),
        Column("parameters"),
        Column("corpus"),
        Column("updates"),
    ]
    columns += [Column("tokens"), Column("FLOPs", digits=3, significant=True), Column("seconds", digits=0)]
    columns += [Column("held-out perplexity", digits=2), *MADE]
    return Table(
        "runs_pretraining",
        "Pretraining runs",
        columns,
        [_pretraining_row(run) for run in collection.pretraining],
    )


def _pretraining_row(run: PretrainRun) -> list[Cell]:
    result = run.result
    cells: list[Cell] = [
        run.path.name,
        run.scale,
        run.label,
        run.objective,
        run.seed,
        run.parameters,
        result["data"],
    ]
    cells += [
        result["steps"],
        result["tokens_total"],
        float(result["flops_total"]),
        float(result["seconds_total"]),
    ]
    return [*cells, float(result["heldout_perplexity"]), *_made(run.provenance)]


def _finetuning_runs(collection: Collection) -> Table:
    heads = (
        "run",
        "scale",
        "variant",
        "step",
        "objective",
        "regime",
        "source",
        "pretraining seed",
        "seed",
        "head",
    )
    columns = [*(Column(head) for head in heads), Column("updates"), Column("epochs"), Column("dev F1")]
    columns += [Column("sentences"), Column("of them cut"), Column("seconds", digits=0), *MADE]
    return Table(
        "runs_finetuning",
        "Fine-tuning runs",
        columns,
        [_finetuning_row(run) for run in collection.finetuning],
    )


def _finetuning_row(run: FinetuneRun) -> list[Cell]:
    result, setting = run.result, run.setting
    cells: list[Cell] = [
        run.path.name,
        setting.scale,
        setting.label,
        setting.step,
        run.objective,
        setting.regime,
    ]
    cells += [
        setting.source,
        *run.seeds,
        *(result.get(name) for name in ("ner_head", "steps", "epochs", "dev_f1")),
    ]
    cells += [result["train_sentences"], result.get("train_sentences_cut"), float(result["seconds_total"])]
    return [*cells, *_made(run.provenance)]


def _left_out(collection: Collection) -> Section:
    rows: list[list[Cell]] = [
        [item.path.name, item.path.parent.name, item.state, item.reason] for item in collection.left_out
    ]
    columns = [Column("run"), Column("kind"), Column("state"), Column("what is known")]
    text = [] if rows else ["None: every run folder that was found is in the tables."]
    return Section(
        "left_out",
        "Unfinished, failed and unreadable runs",
        text,
        tables=[Table("left_out", "Not in any table", columns, rows)],
    )


def _definitions() -> Section:
    parts = (f1, comparison, significance, baselines, particles, errors, convergence, dynamics)
    return Section("definitions", "How each figure was computed", [part.DEFINITION for part in parts])
