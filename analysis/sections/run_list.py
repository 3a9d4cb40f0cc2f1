"""The runs that the report is computed from, and the run folders that are in no table."""

from __future__ import annotations

from pathlib import Path

from ..load.collect import Collection
from ..load.records import FinetuneRun, PretrainRun, RunProvenance
from ..run_refs import runs_of
from ..tables import RUNS, Cell, Column, Table
from .base import ReportData, Section

PROVENANCE = [*map(Column, RunProvenance._fields), RUNS]


def section(data: ReportData) -> Section:
    text = [
        "Every number in this report is computed from the folders below. The first columns of a row in any table (scale, variant, "
        "step, tuning, source, objective) identify its runs here, one for each seed."
    ]
    runs: list[PretrainRun | FinetuneRun] = [*data.collection.pretraining, *data.collection.finetuning]
    mixed = [run.path.name for run in runs if "," in run.provenance.commit or "," in run.provenance.gpus]
    if mixed:
        text.append(f"Runs that more than one source or type of GPU trained: {', '.join(sorted(mixed))}.")
    if len(versions := {run.provenance.versions for run in runs}) == 1:
        text.append(f"Versions of all runs: {versions.pop()}.")
    tables = [_pretraining_runs(data.collection), _finetuning_runs(data.collection)]
    return Section("runs", "Runs", text, tables=tables)


def excluded_section(data: ReportData) -> Section:
    rows: list[list[Cell]] = [
        [item.path.name, _folder(item.path), item.path.parent.name, item.state, item.reason]
        for item in data.collection.excluded
    ]
    columns = [Column(head) for head in ("run", "folder", "kind", "state", "details")]
    table = Table("excluded_runs", "Runs that are in no table", columns, rows)
    text = [] if rows else ["None: the tables include every run folder that was found."]
    return Section("excluded", "Excluded runs: unfinished, failed or unreadable", text, tables=[table])


def _pretraining_runs(collection: Collection) -> Table:
    heads = ("run", "folder", "scale", "variant", "objective", "seed", "parameters", "corpus", "updates")
    columns = [*map(Column, heads), Column("skipped updates"), Column("tokens")]
    columns.append(Column("passes over the corpus", digits=2))
    columns += [Column("FLOPs", digits=3, significant=True), Column("seconds", digits=0)]
    columns += [Column("held-out perplexity", digits=2), *PROVENANCE]
    rows = [_pretraining_row(run) for run in collection.pretraining]
    return Table("runs_pretraining", "Pretraining runs", columns, rows).without_constant("versions")


def _pretraining_row(run: PretrainRun) -> list[Cell]:
    result = run.result
    model: list[Cell] = [run.scale, run.variant, run.objective, run.seed, run.parameters, result.data]
    totals: list[Cell] = [result.steps, len(run.skipped["step"]), result.tokens_total]
    totals += [result.corpus_passes, result.flops_total, result.seconds_total, result.eval_perplexity]
    return [run.path.name, _folder(run.path), *model, *totals, *run.provenance, runs_of(run)]


def _finetuning_runs(collection: Collection) -> Table:
    heads = ("run", "folder", "scale", "variant", "step", "objective", "tuning", "source", "pretraining seed")
    columns = [*map(Column, heads), Column("seed"), Column("NER head"), Column("updates"), Column("epochs")]
    columns += [Column("dev F1"), Column("training sentences"), Column("truncated sentences")]
    columns += [Column("seconds", digits=0), *PROVENANCE]
    rows = [_finetuning_row(run) for run in collection.finetuning]
    return Table("runs_finetuning", "Fine-tuning runs", columns, rows).without_constant("versions")


def _finetuning_row(run: FinetuneRun) -> list[Cell]:
    result, setting = run.result, run.setting
    model: list[Cell] = [setting.scale, setting.variant, setting.step, run.objective]
    tuning: list[Cell] = [setting.tuning, setting.source, *run.seeds, result.ner_head]
    totals: list[Cell] = [result.steps, result.epochs, result.dev_f1, result.train_sentences]
    totals += [result.train_sentences_split, result.seconds_total]
    return [run.path.name, _folder(run.path), *model, *tuning, *totals, *run.provenance, runs_of(run)]


def _folder(path: Path) -> str:
    """Grid folder and kind of a run, whose name is in another column: a page that is published names no other folder of the machine."""
    return "/".join(path.resolve().parts[-3:-1])
