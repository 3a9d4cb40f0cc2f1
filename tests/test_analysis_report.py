"""The report as a whole, from run folders in the documented format."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml
from analysis_runs import write_baseline, write_finetuning, write_grid, write_pretraining
from html_page import Page

from analysis import report as program
from analysis.build import DEMO_NOTICE, build, particle_recall
from analysis.figures import curves
from analysis.load.collect import collect, newest_grid
from analysis.tables import DAGGER
from metapt.errors import UserError
from metapt.launch.grid_dir import GridDir
from metapt.launch.jobs import Job, Plan

SCRIPT = Path(program.__file__)
PROJECT = tomllib.loads((SCRIPT.parents[1] / "pyproject.toml").read_text())["project"]
TRAINING_PACKAGES = {re.split(r"[^\w-]", need)[0] for need in PROJECT["optional-dependencies"]["train"]}
NOT_NEEDED = sorted(
    {*TRAINING_PACKAGES, "hydra"} - {"pyarrow", "metapt"}
)  # an extra may name another of ours


def make(*roots: Path) -> Path:
    """Run the report and return its folder."""
    program.main([str(root) for root in roots])
    return roots[0] / "report"


def rows(out: Path, name: str) -> list[dict[str, str]]:
    with (out / "tables" / f"{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def page(out: Path) -> Page:
    found = Page((out / "index.html").read_text(encoding="utf-8"))
    found.check_that_it_is_self_contained()
    assert [link for link in found.links if not (out / link).exists()] == []
    return found


def results(root: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in root.glob("finetune/*/result.json")]


def test_f1_table_has_the_means_of_the_recorded_f1(tmp_path: Path) -> None:
    root = write_grid(tmp_path / "grid", seeds=(0, 1, 2), sources=("en_ewt", "sk_snk"))
    out = make(root)
    recorded = results(root)
    for row in rows(out, "f1"):
        if row["objective"] not in ("vanilla", "maml"):
            continue
        key = (row["objective"], row["tuning"], row["source"])
        same = [r for r in recorded if (r["origin"]["objective"], r["tuning"], r["source"]) == key]
        assert len(same) == int(row["seeds"]) == 3
        for head in row:
            if "(" in head:
                assert float(row[head]) == pytest.approx(
                    np.mean([r["sets"][head.split(" ")[0]]["f1"] for r in same])
                )


def test_differences_agree_with_the_f1_table(tmp_path: Path) -> None:
    out = make(write_grid(tmp_path / "grid", seeds=(0, 1, 2)))
    table = {(row["tuning"], row["objective"]): row for row in rows(out, "f1")}
    found = rows(out, "differences")
    assert len(found) == 6
    for row in found:
        head = f"{row['set']} ({row['gold spans']})"
        maml, vanilla = (float(table[row["tuning"], name][head]) for name in ("maml", "vanilla"))
        gap = float(row["difference"])
        assert (float(row["maml"]), float(row["vanilla"])) == pytest.approx((maml, vanilla))
        assert gap == pytest.approx(maml - vanilla)
        low, high = float(row["95 % CI low"]), float(row["95 % CI high"])
        assert low < gap < high
        assert row["CI excludes 0"] == str(low > 0 or high < 0)
        assert (float(row["p"]) < 0.05) == (low > 0 or high < 0)
        assert float(row["MDE"]) > (high - low) / 2
        is_small = float(row["p, given these models"]) < 0.05
        assert bool(row.get("remark")) == (is_small != (low > 0 or high < 0))
        assert row["seeds"] == "3"


def test_only_runs_of_the_same_seed_are_paired(tmp_path: Path) -> None:
    root = tmp_path / "grid"
    write_grid(root, objectives=("vanilla",), seeds=(0, 1), tunings=("head_only",))
    write_grid(root, objectives=("maml",), seeds=(1, 2), tunings=("head_only",))
    out = make(root)
    by_seed = {(r["origin"]["objective"], r["seed"]): r["sets"]["tl_trg"]["f1"] for r in results(root)}
    (row,) = (row for row in rows(out, "differences") if row["set"] == "tl_trg")
    assert float(row["difference"]) == pytest.approx(by_seed["maml", 1] - by_seed["vanilla", 1])


def test_variants_and_checkpoints_are_separate(tmp_path: Path) -> None:
    root = write_grid(tmp_path / "grid", labels=("", "full-scope"), steps=(20, 60), tunings=("head_only",))
    out = make(root)
    assert {(row["variant"], row["step"]) for row in rows(out, "differences")} == {
        (label, step) for label in ("", "full-scope") for step in ("20", "60")
    }
    assert [(row["variant"], row["step"]) for row in rows(out, "by_step")] == [
        ("", "20"),
        ("", "60"),
        ("full-scope", "20"),
        ("full-scope", "60"),
    ]
    last = [
        row
        for row in rows(out, "differences")
        if row["step"] == "60" and row["variant"] == "" and row["set"] != "en_ewt"
    ]
    sizes = {row["variant"]: int(row["parameters"]) for row in rows(out, "by_scale")}
    assert sizes["full-scope"] - sizes[""] == len("full-scope")  # in the fixture, sizes differ by variant
    by_scale = next(row for row in rows(out, "by_scale") if row["variant"] == "")
    assert float(by_scale["difference"]) == pytest.approx(np.mean([float(row["difference"]) for row in last]))
    page(out)


def test_the_page_is_self_contained_and_escaped(tmp_path: Path) -> None:
    root = write_grid(
        tmp_path / "grid", labels=("<script>alert(1)</script>", "$\\frac$ & co"), sources=("en_ewt", "all")
    )
    failed = root / "finetune" / "failed"
    failed.mkdir()
    (failed / "error.txt").write_text("ValueError: <img src=http://example.org/x.png>")
    found = page(make(root))
    assert (found.elements["script"], found.elements["img"]) == (1, 0)  # the page's own script
    assert "&lt;code&gt;" not in (tmp_path / "grid" / "report" / "index.html").read_text()
    assert "<script>alert(1)</script>" in found.text
    assert "ValueError: <img src=http://example.org/x.png>" in found.text
    assert found.elements["svg"] >= 10
    assert found.elements["table"] >= 10


@pytest.mark.parametrize("generated", [True, False])
def test_every_file_has_the_notice_about_generated_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], generated: bool
) -> None:
    out = make(write_grid(tmp_path / "grid", generated=generated))
    texts = [
        capsys.readouterr().out,
        *(
            path.read_text()
            for path in out.rglob("*")
            if path.suffix in (".html", ".md", ".tex", ".csv", ".svg") and "published" not in path.name
        ),
    ]
    assert len(texts) > 20
    assert {DEMO_NOTICE in text for text in texts} == {generated}
    assert not any(DEMO_NOTICE in path.read_text() for path in out.rglob("published*.csv"))


def test_the_notice_marks_the_runs_on_generated_data_and_no_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A grid on real text beside one on synthetic text: rows and figures of the first have no notice."""
    real = write_grid(tmp_path / "real", tunings=("head_only",))
    demo = write_grid(tmp_path / "demo", ("tiny",), tunings=("head_only",), generated=True)
    out = make(real, demo)
    counts = f"4 of 8 runs, marked {DAGGER} in the tables: {DEMO_NOTICE}"
    assert counts in page(out).text
    assert counts in capsys.readouterr().out
    assert counts in (out / "report.md").read_text()
    marked = {(row["scale"], row["notice"]) for row in rows(out, "f1")}
    assert marked == {("nano", ""), ("tiny", DEMO_NOTICE), (particle_recall.RULE_NAME, "")}
    figures = {path.stem: DEMO_NOTICE in path.read_text() for path in (out / "figures").glob("*.svg")}
    assert (figures["finetuning-nano"], figures["finetuning-tiny"]) == (False, True)
    lines = (out / "tables" / "f1.tex").read_text().splitlines()
    assert {"tiny" in line for line in lines if r"\textdagger" in line} == {True}


def test_a_root_without_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "grid" / "pretrain" / "nano-maml-s0"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("config: {}\nprovenance: {}\n")
    (run / "metrics.jsonl").write_text('{"step": 7, "kind": "eval"}\n{"step": 8, "ki')
    out = make(tmp_path / "grid")
    assert [row["details"] for row in rows(out, "excluded_runs")] == ["at step 7"]
    assert "No finished fine-tuning run" in capsys.readouterr().out
    page(out)


def test_only_vanilla_runs(tmp_path: Path) -> None:
    out = make(write_grid(tmp_path / "grid", objectives=("vanilla",)))
    assert {row["objective"] for row in rows(out, "f1")} == {"vanilla", ""}
    assert not (out / "tables" / "differences.csv").exists()
    assert "Needed: two runs that differ in the objective only, with identical fine-tuning." in page(out).text


def test_an_external_model_is_a_row(tmp_path: Path) -> None:
    root = write_grid(tmp_path / "grid")
    write_finetuning(root, {"model": "some-model"}, tuning="head_only")
    out = make(root)
    (row,) = (row for row in rows(out, "f1") if row["scale"] == "some-model")
    assert row["objective"] == "other"
    page(out)


def test_baselines_are_rows_and_are_compared_with_models(tmp_path: Path) -> None:
    root = write_grid(tmp_path / "grid", seeds=(0, 1), sources=("en_ewt", "sk_snk"), tunings=("head_only",))
    for name, source in (("particle", ""), ("crf", "en_ewt"), ("crf", "sk_snk")):
        write_baseline(root, name, source)
    out = make(root)
    f1 = rows(out, "f1")
    kept = {(row["scale"], row["source"]): row for row in f1 if row["objective"] == "baseline"}
    assert list(kept) == [("crf", "en_ewt"), ("crf", "sk_snk"), ("particle", "")]
    assert not any(row["scale"] == particle_recall.RULE_NAME for row in f1)
    models = {(row["objective"], row["source"]): row for row in f1 if row["scale"] == "nano"}
    found = rows(out, "baselines")
    assert len(found) == 2 * 2 * 2 * 2  # objectives, sources, baselines that fit, target sets
    for row in found:
        head = f"{row['set']} ({row['gold spans']})"
        rival = kept[row["baseline"], "" if row["baseline"] == "particle" else row["source"]]
        values = (float(models[row["objective"], row["source"]][head]), float(rival[head]))
        assert (float(row["model F1"]), float(row["baseline F1"])) == pytest.approx(values)
        assert float(row["difference"]) == pytest.approx(values[0] - values[1])
        assert row["seeds"] == "2"
    text = page(out).text
    assert "based on 4 pretraining runs and 8 fine-tuning runs" in text
    assert {row["run"] for row in rows(out, "runs_finetuning")} >= {"particle", "crf-en_ewt"}
    assert not any(row["objective"] == "baseline" for row in rows(out, "convergence"))


def test_broken_runs_are_listed_and_excluded(tmp_path: Path) -> None:
    root = write_grid(tmp_path / "grid", tunings=("head_only", "full"), sources=("en_ewt", "sk_snk"))
    runs = sorted((root / "finetune").iterdir())
    (runs[0] / "predictions" / "tl_trg.jsonl").unlink()
    (runs[1] / "result.json").write_text("{")
    (runs[2] / "result.json").write_text("[]")
    (runs[3] / "config.yaml").unlink()
    (runs[4] / "result.json").unlink()
    (runs[4] / "error.txt").write_text("Traceback\n  ...\nValueError: no space left\n\n")
    result = json.loads((runs[5] / "result.json").read_text())
    result["sets"]["tl_trg"]["f1"] += 0.1
    (runs[5] / "result.json").write_text(json.dumps(result))
    del result["tuning"]
    (runs[6] / "result.json").write_text(json.dumps(result))
    collection = collect([root])
    found = {item.path: (item.state, item.reason) for item in collection.excluded}
    assert set(found) == set(runs[:7])
    assert [found[run][0] for run in runs[:7]] == ["broken"] * 4 + ["failed"] + ["broken"] * 2
    assert found[runs[0]][1] == "predictions/tl_trg.jsonl is missing"
    assert found[runs[4]][1] == "ValueError: no space left"
    assert "by result.json" in found[runs[5]][1]
    assert "`tuning`" in found[runs[6]][1]
    assert len(collection.finetuning) == 1
    page(make(root))


def test_runs_outside_the_current_plan_are_excluded(tmp_path: Path) -> None:
    root = write_grid(tmp_path / "grid", tunings=("head_only",))
    superseded, *present = sorted((root / "finetune").iterdir())
    rule = write_baseline(root, "particle")
    names = [f"pretrain/{path.name}" for path in (root / "pretrain").iterdir()]
    names += [f"finetune/{path.name}" for path in present]
    jobs = [Job(name, name.split("/")[0]) for name in names]
    GridDir(root).write_plan(Plan("grid", tuple(jobs)))
    elsewhere = write_grid(tmp_path / "unplanned", ("tiny",), tunings=("head_only",))
    for given, more in (([root], 0), ([tmp_path], 2), ([elsewhere, root / "finetune", root], 2)):
        collection = collect(given)
        states = {item.path: item.state for item in collection.excluded}
        assert states == dict.fromkeys((superseded, rule), "not in the plan")
        assert {run.path for run in collection.finetuning if run.path.parent.parent == root} == set(present)
        assert len(collection.finetuning) == len(present) + more


def test_of_equal_runs_in_two_roots_the_newest_counts(tmp_path: Path) -> None:
    first, second = (write_grid(tmp_path / name, tunings=("head_only",)) for name in ("one", "two"))
    for file in first.glob("*/*/config.yaml"):
        content = yaml.safe_load(file.read_text())
        content["provenance"]["started"] = "2099-01-01T00:00:00+00:00"
        file.write_text(yaml.safe_dump(content))
    collection = collect([first, second])
    assert {item.state for item in collection.excluded} == {"duplicate"}
    assert {item.path.parents[1] for item in collection.excluded} == {second}
    assert {run.path.parents[1] for run in collection.finetuning} == {first}


def test_two_roots_are_paired_with_one_another(tmp_path: Path) -> None:
    first = write_grid(tmp_path / "one", objectives=("vanilla",), tunings=("head_only",))
    second = write_grid(tmp_path / "two", objectives=("maml",), tunings=("head_only",))
    assert len(rows(make(first, second), "differences")) == 3


def test_runs_on_other_sentences_are_not_compared(tmp_path: Path) -> None:
    root = tmp_path / "grid"
    for objective, words in (("vanilla", ()), ("maml", ("another", "sentence"))):
        write_finetuning(root, write_pretraining(root, objective=objective), words=words)
    assert build(collect([root]), resamples=10).f1.rows
    assert "differences" not in {table.name for table in build(collect([root]), resamples=10).tables}


def test_perplexity_is_interpolated_to_the_shorter_run(tmp_path: Path) -> None:
    root = tmp_path / "grid"
    write_pretraining(root, objective="vanilla", steps=60)
    write_pretraining(root, objective="maml", steps=40)
    found = {row["matched budget"]: row for row in rows(make(root), "perplexity_at_matched_budgets")}
    assert float(found["updates"]["value"]) == 40
    assert float(found["tokens"]["value"]) == 40 * 2048
    at_20, at_40 = (np.exp(2 + 5 * np.exp(-step / 20) + 0.1 * np.sin(step)) for step in (20, 40))
    for budget, row in found.items():
        more = budget == "next-token tokens"  # of which 40 updates with maml have as many as 20 of vanilla
        assert float(row["perplexity of the first"]) == pytest.approx(at_40)
        assert float(row["perplexity of the second"]) == pytest.approx(at_20 if more else at_40)


def test_the_figure_of_learning_dynamics_has_no_empty_panel(tmp_path: Path) -> None:
    for objective, has_probe in (("vanilla", False), ("maml", True)):
        write_pretraining(tmp_path / objective, objective=objective, seed=0)
        (figure,) = curves.dynamics(collect([tmp_path / objective]))
        assert ("probe accuracy" in figure.svg) is has_probe
        assert "attention entropy" in figure.svg


def test_learning_dynamics_at_the_first_and_the_last_measurement(tmp_path: Path) -> None:
    root = tmp_path / "grid"
    for objective in ("vanilla", "maml"):
        write_pretraining(root, objective=objective, steps=40)
    found = rows(make(root), "dynamics")
    assert [(row["objective"], row["step"]) for row in found] == [
        (objective, step) for objective in ("vanilla", "maml") for step in ("10", "40")
    ]
    for row in found:
        rank = 1 - 0.5 * int(row["step"]) / 40
        assert float(row["effective rank, attention"]) == pytest.approx(rank)
        assert float(row["effective rank, feed-forward"]) == pytest.approx(rank / 2)
        assert float(row["attention entropy"]) == pytest.approx(0.7)
        assert row["probe query accuracy"] == ("0.3" if row["objective"] == "maml" else "")


def test_the_report_is_deterministic(tmp_path: Path) -> None:
    root = write_grid(tmp_path / "grid", tunings=("head_only",))
    first = {path: path.read_bytes() for path in make(root).rglob("*") if path.is_file()}
    stale = root / "report" / "tables" / "of_an_earlier_report.csv"
    stale.write_text("")
    assert {path: path.read_bytes() for path in make(root).rglob("*") if path.is_file()} == first


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_root_without_runs_is_a_user_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=name):
        program.main([str(tmp_path / name)])


def test_newest_grid(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "old")):
        write_pretraining(tmp_path / name)
        for path in (tmp_path / name).rglob("*"):
            os.utime(path, (1e9 - age, 1e9 - age))
    (tmp_path / "corpus").mkdir()
    assert newest_grid(tmp_path) == tmp_path / "new"
    with pytest.raises(UserError, match="no grid in"):
        newest_grid(tmp_path / "corpus")


def test_as_a_script_from_another_folder(tmp_path: Path) -> None:
    """Without a ROOT, and in an environment where only the report's dependencies can be imported."""
    root = write_grid(tmp_path / "runs" / "demo", tunings=("head_only",))
    code = f"import runpy, sys; sys.argv = ['report.py', '--out', 'out']; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    blocked = f"import sys; sys.modules.update(dict.fromkeys({NOT_NEEDED})); {code}"
    for command in ([str(SCRIPT)], ["-c", blocked]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert f"report: {tmp_path / 'out' / 'index.html'}" in done.stdout
    assert (root / "report" / "index.html").exists()
    missing = subprocess.run(
        [sys.executable, str(SCRIPT), "nowhere"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert missing.returncode == 2
    assert missing.stderr == "error: nowhere: no such folder; specify the folder of a grid\n"
