"""All sections of the report on a grid of synthetic runs, in all formats."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import analysis_runs
import pytest
from analysis_runs import sentences, write_finetuning, write_grid, write_pretraining
from latex_document import compile_tables, needs_pdflatex
from pyarrow import parquet

from analysis import report as program
from analysis.build import build
from analysis.load.collect import collect
from analysis.load.contrasts import Contrast
from analysis.load.records import GoldSet
from analysis.sections.base import ReportData
from analysis.sections.case_studies import PAPER_SENTENCES
from analysis.sections.confidence import frequent_words
from analysis.sections.learning_curves import complete_block, f1_by_type
from analysis.sections.learning_curves import section as steps_section
from analysis.stats.comparison import balanced, unbalanced
from analysis.stats.matched_budget import MatchedRuns
from analysis.stats.significance import Scores

CONTRAST = Contrast("maml", "vanilla")

HOSTILE = ("</span><script>alert(1)</script>", "{{ 7*7 }}", "&amp;", "$x_1$")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page") / "grid"
    write_grid(
        root,
        sources=("en_ewt", "sk_snk", "hr_set"),
        tunings=("head_only",),
        steps=(20, 40, 60),
        words=HOSTILE,
    )
    program.main([str(root)])
    return root / "report"


@needs_pdflatex
def test_every_table_compiles_in_a_paper(out: Path, tmp_path: Path) -> None:
    tables = [path.read_text(encoding="utf-8") for path in sorted((out / "tables").glob("*.tex"))]
    assert len(tables) > 20
    compile_tables(tmp_path, tables)


def test_all_sections_have_their_figures_and_tables(out: Path) -> None:
    content = json.loads((out / "report.json").read_text())
    captions = {
        figure["name"]: figure["caption"] for section in content["sections"] for figure in section["figures"]
    }
    for name in (
        "scale_curve",
        "source_heat-nano",
        "by_step-nano",
        "fan-nano-head_only-en_ewt",
        "finals-nano-head_only-en_ewt",
        "types-nano-head_only-en_ewt",
        "confidence-nano-head_only-en_ewt-tl_trg",
        "finetuning-nano",
        "pretraining-nano",
        "episodes-nano",
        "dynamics-nano",
    ):
        assert name in captions, sorted(captions)
    assert "3 checkpoints" in captions["fan-nano-head_only-en_ewt"]
    assert "3 pairs of runs" in captions["source_heat-nano"]
    assert {"data", "errors", "convergence_means", "confidence", "published"} <= set(content["tables"])
    published = content["tables"]["published"]
    assert all(dict(zip(published["columns"], row, strict=True))["source"] for row in published["rows"])


def test_every_figure_and_every_row_has_its_runs(out: Path) -> None:
    """Folders are relative to the report; the two runs of a pair differ in the objective."""
    content = json.loads((out / "report.json").read_text())
    for figure in (figure for section in content["sections"] for figure in section["figures"]):
        assert figure["runs"]
        assert f"From {len(figure['runs']):,} run" in figure["caption"]
        assert re.search(r" of \d+ seeds?\.", figure["caption"])
        assert all((out / folder / "result.json").is_file() for folder in figure["runs"])
    others = {name for name, table in content["tables"].items() if "runs" not in table["columns"]}
    assert others == {"published"}  # which names its sources
    for name in content["tables"].keys() - others:
        table = content["tables"][name]
        rows = [row for row in table["rows"] if "train" not in row]  # read from the folder of --uner
        named = {folder for row in rows for folder in row[-1]}
        assert table["columns"][-1] == "runs"
        assert all(row[-1] for row in rows), name
        assert f"From {len(named):,} run" in table["note"]
        assert all((out / folder / "result.json").is_file() for folder in named)
    differences = content["tables"]["differences"]
    step, source = (differences["columns"].index(head) for head in ("step", "source"))
    for row in differences["rows"]:
        pair = [
            f"../finetune/nano-{side}-{row[step]}-{row[source]}-head_only-s0" for side in ("maml", "vanilla")
        ]
        assert row[-1] == pair
    page = (out / "index.html").read_text()
    assert '<a href="../finetune/nano-maml-60-en_ewt-head_only-s0">' in page


@pytest.mark.parametrize("objectives", [("vanilla",), ("vanilla", "maml")])
def test_a_section_without_data_says_what_is_needed(tmp_path: Path, objectives: Sequence[str]) -> None:
    """Without fine-tuning, or with one objective only, every section has content or says which runs are needed."""
    for number, root in enumerate((tmp_path / "nothing", tmp_path / "something")):
        for objective in objectives:
            origin = write_pretraining(root, objective=objective)
            if number and objective == objectives[0]:
                write_finetuning(root, origin, sets=("tl_trg",))
        report = build(collect([root]), resamples=10)
        for section in report.sections:
            shown = [*section.figures, *section.tables]
            assert shown or re.search("[Nn]eed|No|None|nothing", " ".join(section.paragraphs)), section.name
            assert all(f"From {len(item.runs):,} run" in item.caption for item in section.figures)
            assert all(table.runs for table in section.tables if table.name != "published")
        names = {section.name for section in report.sections}
        assert {
            "scale",
            "tuning",
            "source",
            "steps",
            "confidence",
            "cases",
            "convergence",
            "data",
            "errors",
            "pretraining",
        } <= names
        compared = {
            figure.name for section in report.sections if section.budgets for figure in section.figures
        }
        assert compared == set()


def test_every_definition_begins_with_what_it_defines(tmp_path: Path) -> None:
    """The page prints what is before the first colon in bold."""
    write_pretraining(tmp_path)
    (definitions,) = (
        section
        for section in build(collect([tmp_path]), resamples=10).sections
        if section.name == "definitions"
    )
    for text in definitions.paragraphs:
        name, colon, _ = text.partition(": ")
        assert colon
        assert len(name.split()) <= 3, name


def test_curves_over_checkpoints_are_means_over_the_same_seeds(tmp_path: Path) -> None:
    """Under MAML, seed 1 lacks a checkpoint and seed 2 all but one, so curves have seed 0 only; vanilla alone keeps all."""
    for seed, steps in ((0, (20, 40, 60)), (1, (20, 40, 60)), (2, (60,))):
        for objective in ("vanilla", "maml"):
            origin = write_pretraining(tmp_path, objective=objective, seed=seed)
            for step in steps:
                if (objective, seed, step) != ("maml", 1, 40):
                    write_finetuning(tmp_path, {**origin, "step": step}, sets=("tl_trg",))
    runs = collect([tmp_path]).finetuning
    kept = complete_block(runs)
    assert {run.seeds for run in kept} == {(0, 0)}
    assert len(kept) == 6
    alone = complete_block([run for run in runs if run.objective == "vanilla"])
    assert sorted({run.seeds for run in alone}) == [(0, 0), (1, 1)]
    assert len(alone) == 6
    assert complete_block([run for run in runs if run.setting.step != 40]) == complete_block([]) == []
    collection = collect([tmp_path])
    found = steps_section(
        ReportData(collection, Scores(10), None, MatchedRuns(collection, CONTRAST), ["updates"])
    )
    assert "7 runs are in no curve" in " ".join(found.paragraphs)
    fan = next(figure for figure in found.figures if figure.name.startswith("fan"))
    assert "3 checkpoints" in fan.caption
    assert fan.caption.endswith("From 6 runs (3 vanilla, 3 maml) of 1 seed.")


def test_averages_along_an_axis_have_complete_rows_only(tmp_path: Path) -> None:
    for scale, sources in (("nano", ("en_ewt", "sk_snk")), ("tiny", ("en_ewt",))):
        write_grid(tmp_path, (scale,), sources=sources, tunings=("head_only",))
    collection = collect([tmp_path])
    found = ReportData(
        collection, Scores(10), None, MatchedRuns(collection, CONTRAST), ["updates"]
    ).comparisons
    by_scale = balanced(found, "scale")
    assert {(item.setting.scale, item.setting.source) for item in by_scale} == {
        ("nano", "en_ewt"),
        ("tiny", "en_ewt"),
    }
    assert unbalanced(found, "scale") == [
        "Averages by scale leave out 3 of 9 comparisons, which do not exist for every scale."
    ]
    assert balanced(found, "source") == found
    assert unbalanced(found, "source") == []


def test_averages_over_steps_are_over_the_same_seeds(tmp_path: Path) -> None:
    """Seed 0 is bad and the only one that has finished its last step: the averages must not fall there."""
    for objective, (seed, skill) in product(("vanilla", "maml"), ((0, 0.2), (1, 0.9), (2, 0.9))):
        origin = write_pretraining(tmp_path, objective=objective, seed=seed)
        for step in (20, 40, 60) if seed == 0 else (20, 40):
            write_finetuning(tmp_path, {**origin, "step": step}, skill=skill, sets=("tl_trg",))
    collection = collect([tmp_path])
    data = ReportData(collection, Scores(10), None, MatchedRuns(collection, CONTRAST), ["updates"])
    kept = balanced(data.target_comparisons, "step")
    assert [(item.setting.step, item.seeds, len(item.pairs)) for item in kept] == [
        (step, 1, 1) for step in (20, 40, 60)
    ]
    assert max(item.second.value for item in kept) < 0.5
    assert unbalanced(data.target_comparisons, "step") == [
        "Averages by step are over the seeds that every step has; 2 comparisons have more."
    ]


def test_text_of_the_data_is_escaped(out: Path) -> None:
    page = (out / "index.html").read_text()
    assert page.count("<script") == 1
    assert "&lt;/span&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7*7 }}" in page
    assert "&amp;amp;" in page


def csv_text(cell: object) -> str:
    """The CSV text of a value in report.json."""
    return "; ".join(cell) if isinstance(cell, list) else "" if cell is None else str(cell)


def test_all_formats_have_the_same_numbers(out: Path) -> None:
    content = json.loads((out / "report.json").read_text())["tables"]
    assert len(content) > 15
    for name, table in content.items():
        with (out / "tables" / f"{name}.csv").open() as file:
            lines = list(csv.reader(file))
        typed = parquet.read_table(out / "tables" / f"{name}.parquet")
        assert lines[0] == typed.column_names == table["columns"]
        assert len(lines) - 1 == typed.num_rows == len(table["rows"])
        for line, row in zip(lines[1:], table["rows"], strict=True):
            assert line == [csv_text(cell) for cell in row]
        for head, column in zip(table["columns"], zip(*table["rows"], strict=True), strict=True):
            values = typed.column(head).to_pylist()
            assert [str(value) for value in values] == [str(value) for value in column]
        assert "\\toprule" in (out / "tables" / f"{name}.tex").read_text()


def test_pdf_figures_embed_fonts_and_have_the_width_of_a_paper(tmp_path: Path, out: Path) -> None:
    """Without --pdf there is none."""
    assert list(out.rglob("*.pdf")) == []
    root = write_grid(tmp_path / "grid", tunings=("head_only",))
    program.main([str(root), "--pdf"])
    figures = list((root / "report" / "figures").glob("*.pdf"))
    sections = json.loads((root / "report" / "report.json").read_text())["sections"]
    assert {path.stem for path in figures} == {
        figure["name"] for part in sections for figure in part["figures"]
    }
    assert len(figures) > 5
    for path in figures:
        content = path.read_bytes()
        assert b"/FontFile2" in content
        assert b"/Type3" not in content
        width = float(re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", content)[1]) / 72  # type: ignore[index]
        assert width == pytest.approx(3.3, abs=0.1) or width == pytest.approx(6.8, abs=0.1)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_loads_without_errors_in_chromium(out: Path) -> None:
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--dump-dom",
        str(out / "index.html"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert "CONSOLE" not in done.stderr
    heads = re.findall(r'<th scope="col".*?</th>', done.stdout)
    assert heads
    assert all('<button type="button">' in head for head in heads)  # the script ran to its end
    assert "theme" in done.stdout


def test_case_studies_have_the_papers_sentences_and_extremes(tmp_path: Path) -> None:
    root = tmp_path / "grid"
    words = PAPER_SENTENCES[1].split()
    paths = {
        o: write_finetuning(root, write_pretraining(root, objective=o), sets=("tl_trg",), words=words)
        for o in ("vanilla", "maml")
    }
    file = paths["maml"] / "predictions" / "tl_trg.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0]["gold_logprob"] = [-0.3] * len(words)  # the paper's sentence loses 0.2
    lines[5]["gold_logprob"] = [-0.05] * len(lines[5]["words"])
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (table,) = (table for table in build(collect([root]), resamples=10).tables if table.name == "cases")
    found = {(row[1], row[2]): row[5] for row in table.rows}
    assert found["tl_trg-0", "paper"] == found["tl_trg-0", "largest loss"] == pytest.approx(-0.2)
    assert found["tl_trg-5", "largest gain"] == pytest.approx(0.05)
    assert len(found) == 3
    program.main([str(root), "--no-sentences"])
    content = json.loads((root / "report" / "report.json").read_text())
    assert "cases" not in content["tables"]
    assert ["Omitted (--no-sentences): this section quotes sentences of the evaluation sets."] in [
        section["paragraphs"] for section in content["sections"]
    ]
    page = (root / "report" / "index.html").read_text()
    assert not any(" ".join(gold) in page for gold, _ in sentences("tl_trg", words) if len(gold) > 2)
    assert '<ol class="cases">' not in page


def test_frequent_words_inside_and_outside_entities() -> None:
    gold = GoldSet("tl_trg", ("1", "2"), (("si", "Ana"), ("Ana", "si")), ((("PER", 1, 2),), ()))
    found = {
        inside: {word: list(at) for word, at in words.items()}
        for inside, words in frequent_words(gold).items()
    }
    assert found == {True: {"Ana": [1]}, False: {"si": [0, 3], "Ana": [2]}}


def test_statistics_of_training_data(tmp_path: Path) -> None:
    root = write_grid(tmp_path / "grid", tunings=("head_only",))
    folder = tmp_path / "uner" / "en_ewt"
    folder.mkdir(parents=True)
    words = [("si", "O"), ("Maria", "B-PER"), ("Santos", "I-PER"), ("Juan", "B-PER")]
    rows = "".join(f"{n}\t{word}\t{tag}\t-\t-\n" for n, (word, tag) in enumerate(words, 1))
    (folder / "train.iob2").write_text(rows + "\n")
    tables = {table.name: table for table in build(collect([root]), 10, tmp_path / "uner").tables}
    (row,) = (row for row in tables["data"].rows if row[1] == "train")
    assert row[:7] == ["en_ewt", "train", 1, 4, 2, 2, 0.5]
    (rates,) = tables["oov_rates"].rows
    assert 0 < rates[1] < 1


def test_every_entity_type_has_a_curve_over_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    types = ["A", "B", "C", "D", "E"]
    labelled = [(["bata"], [f"B-{name}"]) for name in types]
    monkeypatch.setattr(analysis_runs, "sentences", lambda *_: labelled)
    root = write_grid(tmp_path / "grid", objectives=("maml",), tunings=("full",), steps=(20, 40, 60))
    (figure,) = f1_by_type(("nano", "", "full", "en_ewt"), collect([root]).finetuning, ["tl_trg"])
    assert [curve.entity_type for curve in figure.data[0]["tl_trg"]] == types
