"""How each run was made and where its folder is, and the folders that are in no table."""

from __future__ import annotations

from ..load.collect import Collection
from ..load.records import FinetuneRun, Made, PretrainRun
from ..stats.run_refs import runs_of
from ..tables import RUNS, Cell, Column, Table
from .base import Section, Study


def section(study: Study) -> Section:
    text = ["Every figure of this report is computed from the folders below; the heads of a row of any table (scale, variant, step, tuning, source, objective) find its runs here, one a seed."]  # fmt: skip
    tables = [_pretraining_runs(study.collection), _finetuning_runs(study.collection)]
    return Section("runs", "Runs", text, tables=tables)


def left_out(study: Study) -> Section:
    rows: list[list[Cell]] = [
        [item.path.name, str(item.path), item.path.parent.name, item.state, item.reason]
        for item in study.collection.left_out
    ]
    columns = [Column("run"), Column("folder"), Column("kind"), Column("state"), Column("what is known")]
    text = [] if rows else ["None: every run folder that was found is in the tables."]
    return Section(
        "left_out",
        "Unfinished, failed and unreadable runs",
        text,
        tables=[Table("left_out", "Not in any table", columns, rows)],
    )


MADE = [*map(Column, Made._fields), RUNS]


def _pretraining_runs(collection: Collection) -> Table:
    heads = ("run", "folder", "scale", "variant", "objective")
    columns = [
        *(Column(head) for head in heads),
        Column("seed"),
        Column("parameters"),
        Column("corpus"),
        Column("updates"),
        Column("skipped"),
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
        str(run.path),
        run.scale,
        run.variant,
        run.objective,
        run.seed,
        run.parameters,
        result.data,
    ]
    cells += [
        result.steps,
        len(run.skipped["step"]),
        result.tokens_total,
        result.flops_total,
        result.seconds_total,
    ]
    return [*cells, result.eval_perplexity, *run.made, runs_of(run)]


def _finetuning_runs(collection: Collection) -> Table:
    heads = (
        "run",
        "folder",
        "scale",
        "variant",
        "step",
        "objective",
        "tuning",
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
        str(run.path),
        setting.scale,
        setting.variant,
        setting.step,
        run.objective,
        setting.tuning,
    ]
    cells += [
        setting.source,
        *run.seeds,
        *(result.ner_head, result.steps, result.epochs, result.dev_f1),
    ]
    cells += [result.train_sentences, result.train_sentences_cut, result.seconds_total]
    return [*cells, *run.made, runs_of(run)]
