"""The section on k-shot learning: curves, areas and differences against values computed from result.json alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from analysis_runs import write_finetuning, write_pretraining

from analysis.figures.shot_curves import Panel, draw_k_shot
from analysis.load.collect import Collection, collect
from analysis.load.contrasts import Contrast
from analysis.sections.base import views
from analysis.sections.k_shot import NEEDED, section
from analysis.stats.budgets import UPDATES
from analysis.stats.shots import curves
from analysis.stats.significance import Scores
from analysis.tables import Table

SHOTS, SUBSET_SEEDS, SEEDS, OBJECTIVES = (5, 20), (0, 1), (0, 1, 2), ("vanilla", "maml")
F1s = dict[tuple[str, int, int, int], float]
"""F1 on tl_trg by (objective, seed, k, subset seed)"""


def amend(folder: Path, **entries: Any) -> dict[str, Any]:
    file = folder / "result.json"
    result = {**json.loads(file.read_text()), **entries}
    file.write_text(json.dumps(result))
    return result


def write_shots(root: Path, tagger: dict[str, Any], k: int, subset_seed: int, key: str) -> tuple[Path, float]:
    """Write a run that trains the tagger with this result further; it is the better the larger k is."""
    origin, seed = tagger["origin"], tagger["seed"]
    skill = 0.3 + 0.02 * k + 0.1 * (origin["objective"] == "maml")
    scratch = root / "scratch" / f"{k}-{subset_seed}"
    folder = write_finetuning(scratch, origin, "tl_news", "full", skill, steps=50)
    settings = {"data.max_train_sentences": None, "data.entities_per_type": None, key: k}
    result = amend(
        folder,
        seed=seed,
        dev_f1=None,
        settings={**settings, "data.subset_seed": subset_seed},
        inputs={"weights": f"tagger of {origin['objective']} {seed}"},
        earlier_tunings=[{name: tagger[name] for name in ("source_sets", "settings", "inputs")}],
    )
    final = root / "finetune" / f"{folder.name}-k{k}-subset{subset_seed}"
    shutil.move(folder, final)
    shutil.rmtree(root / "scratch")
    return final, result["sets"]["tl_trg"]["f1"]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, F1s]:
    """Two objectives of three seeds, tuned on en_ewt and then on two samples each of 5 and 20 sentences of tl_news."""
    root, f1 = tmp_path_factory.mktemp("shots") / "grid", {}
    for objective, seed in product(OBJECTIVES, SEEDS):
        origin = {**write_pretraining(root, objective=objective, seed=seed), "step": 60}
        folder = write_finetuning(root, origin, "en_ewt", "full", 0.3)
        inputs = {"weights": f"model of {objective} {seed}"}
        tagger = amend(folder, settings={"ner.head": "crf"}, inputs=inputs, source_sets=["en_ewt"])
        f1[objective, seed, 0, 0] = tagger["sets"]["tl_trg"]["f1"]
        for k, subset_seed in product(SHOTS, SUBSET_SEEDS):
            _, value = write_shots(root, tagger, k, subset_seed, "data.max_train_sentences")
            f1[objective, seed, k, subset_seed] = value
    return root, f1


def mean_f1(f1: F1s, objective: str, k: int, seeds: Sequence[int] = SEEDS) -> float:
    """The mean over subset seeds, and then over seeds."""
    subset_seeds = SUBSET_SEEDS if k else (0,)
    return fmean(fmean(f1[objective, seed, k, subset] for subset in subset_seeds) for seed in seeds)


def tables_of(collection: Collection) -> dict[str, Table]:
    shown = section(views(collection, 200, None, UPDATES))
    return {table.name: table for table in shown.tables}


def rows_of(table: Table) -> list[dict[str, Any]]:
    heads = [column.head for column in table.columns]
    return [dict(zip(heads, row, strict=True)) for row in table.rows]


def test_curves_and_areas_are_means_over_samples_and_seeds(grid: tuple[Path, F1s]) -> None:
    root, f1 = grid
    collection = collect([root])
    assert len(collection.continued) == len(OBJECTIVES) * len(SEEDS) * len(SHOTS) * len(SUBSET_SEEDS)
    found = curves(collection, Scores(200))
    assert [(curve.objective, curve.task.target, curve.set_name) for curve in found] == [
        (objective, "tl_news", "tl_trg") for objective in OBJECTIVES
    ]
    for curve in found:
        expected = {k: mean_f1(f1, curve.objective, k) for k in (0, *SHOTS)}
        assert {k: point.value for k, point in curve.points.items()} == pytest.approx(expected)
        assert curve.area.value == pytest.approx(fmean(expected[k] for k in SHOTS))
        for k in SHOTS:
            assert curve.gain(k).value == pytest.approx(expected[k] - expected[0])
        for estimate in (*curve.points.values(), curve.area):
            low, high = estimate.interval
            assert estimate.seeds == len(SEEDS)
            assert 0 <= low < estimate.value < high <= 1


def test_no_other_section_sees_runs_of_k_shot_learning(grid: tuple[Path, F1s]) -> None:
    collection = collect([grid[0]])
    assert {run.setting.source for run in collection.finetuning} == {"en_ewt"}
    assert not collection.excluded


def test_comparisons_of_the_same_arms_with_other_tunings_are_apart(grid: tuple[Path, F1s]) -> None:
    contrasts = [Contrast("maml", "vanilla", tunings=(name,)) for name in ("full", "head_only")]
    collection = collect([grid[0]], contrasts=contrasts)
    rows = rows_of(tables_of(collection)["k_shot_differences"])
    assert {row["comparison"] for row in rows} == {"maml minus vanilla (full)"}  # there are no other taggers


def test_tables(grid: tuple[Path, F1s]) -> None:
    root, f1 = grid
    tables = tables_of(collect([root]))
    assert all(
        len(row) == len(table.flat_heads) for table in tables.values() for row in table.flat_rows(root)
    )
    points = rows_of(tables["k_shot"])
    assert [(row["objective"], row["k"], len(row["runs"])) for row in points] == [
        (name, k, count) for name in ("vanilla", "maml") for k, count in ((0, 3), (5, 6), (20, 6))
    ]
    assert [row["gain"] is None for row in points] == [True, False, False] * 2
    areas = {row["objective"]: row for row in rows_of(tables["k_shot_area"])}
    assert areas["maml"]["k"] == "5, 20"
    assert areas["maml"]["F1 at k = 0"] == pytest.approx(mean_f1(f1, "maml", 0))
    assert areas["vanilla"]["area"] == pytest.approx(fmean(mean_f1(f1, "vanilla", k) for k in SHOTS))


def test_differences_of_arms_on_the_same_seeds_and_samples(grid: tuple[Path, F1s]) -> None:
    root, f1 = grid
    rows = {row["k"]: row for row in rows_of(tables_of(collect([root]))["k_shot_differences"])}
    assert list(rows) == ["0", "5", "20", "area"]
    differences = {k: mean_f1(f1, "maml", k) - mean_f1(f1, "vanilla", k) for k in (0, *SHOTS)}
    for k, expected in differences.items():
        assert rows[str(k)]["difference"] == pytest.approx(expected)
    assert rows["area"]["difference"] == pytest.approx(fmean(differences[k] for k in SHOTS))
    assert {row["seeds"] for row in rows.values()} == {3}


def test_means_over_sources_have_every_source_once(grid: tuple[Path, F1s], tmp_path: Path) -> None:
    """A second source with better taggers and fewer samples counts as much as the first."""
    root, f1 = tmp_path / "grid", grid[1]
    shutil.copytree(grid[0], root)
    other: dict[tuple[str, int, int], float] = {}
    for objective, seed in product(OBJECTIVES, SEEDS):
        first = root / "finetune" / f"nano-{objective}-60-en_ewt-full-s{seed}" / "result.json"
        folder = write_finetuning(root, json.loads(first.read_text())["origin"], "sk_snk", "full", 0.5)
        inputs = {"weights": f"model of {objective} {seed}", "sentences": "sk_snk"}
        tagger = amend(folder, settings={"ner.head": "crf"}, inputs=inputs, source_sets=["sk_snk"])
        other[objective, seed, 0] = tagger["sets"]["tl_trg"]["f1"]
        for k in SHOTS:
            other[objective, seed, k] = write_shots(root, tagger, k, 7, "data.max_train_sentences")[1]
    rows = {row["k"]: row for row in rows_of(tables_of(collect([root]))["k_shot_means"])}
    means = {
        (objective, k): fmean([mean_f1(f1, objective, k), fmean(other[objective, seed, k] for seed in SEEDS)])
        for objective, k in product(OBJECTIVES, (0, *SHOTS))
    }
    differences = {k: means["maml", k] - means["vanilla", k] for k in (0, *SHOTS)}
    for k, expected in differences.items():
        assert rows[str(k)]["first"] == pytest.approx(means["maml", k])
        assert rows[str(k)]["difference"] == pytest.approx(expected)
    assert rows["area"]["difference"] == pytest.approx(fmean(differences[k] for k in SHOTS))
    assert {(row["sources"], row["targets"]) for row in rows.values()} == {("en_ewt and sk_snk", "tl_news")}
    assert {row["seeds"] for row in rows.values()} == {3}


def test_a_sample_without_a_counterpart_at_another_k_is_left_out(
    grid: tuple[Path, F1s], tmp_path: Path
) -> None:
    """Else the points of a curve would average different samples; a pair is left out if one side lacks a run."""
    root, f1 = tmp_path / "grid", grid[1]
    shutil.copytree(grid[0], root)
    for folder in (root / "finetune").glob("*vanilla*-s0-k20-subset*"):
        shutil.rmtree(folder)
    collection = collect([root])
    vanilla, maml = curves(collection, Scores(200))
    assert (vanilla.left_out, maml.left_out) == (2, 0)
    for k in (0, *SHOTS):
        assert vanilla.points[k].value == pytest.approx(mean_f1(f1, "vanilla", k, seeds=(1, 2)))
    shown = section(views(collection, 200, None, UPDATES))
    first, second = shown.paragraphs
    assert first == "2 runs left out: no run of the same tagger and subset seed is finished at every other k."
    assert second.startswith("4 runs compared with nothing")
    rows = rows_of(next(table for table in shown.tables if table.name == "k_shot_differences"))
    expected = mean_f1(f1, "maml", 5, seeds=(1, 2)) - mean_f1(f1, "vanilla", 5, seeds=(1, 2))
    assert rows[1]["difference"] == pytest.approx(expected)
    assert {row["seeds"] for row in rows} == {2}


def test_other_tasks_are_other_curves_and_other_taggers_are_not_mixed_in(
    grid: tuple[Path, F1s], tmp_path: Path
) -> None:
    root = tmp_path / "grid"
    shutil.copytree(grid[0], root)
    (folder,) = (root / "finetune").glob("nano-maml-60-en_ewt-full-s0")
    tagger = json.loads((folder / "result.json").read_text())
    write_shots(root, tagger, 5, 7, "data.entities_per_type")
    write_shots(root, {**tagger, "settings": {"ner.head": "softmax"}}, 5, 8, "data.max_train_sentences")
    collection = collect([root])
    found = curves(collection, Scores(200))
    assert [(curve.objective, curve.task.unit, list(curve.runs)) for curve in found] == [
        ("vanilla", "sentences", [0, 5, 20]),
        ("maml", "sentences", [0, 5, 20]),
        ("maml", "entities per type", [0, 5]),
    ]
    first, second = section(views(collection, 200, None, UPDATES)).paragraphs
    assert first.startswith("1 continued fine-tuning run left out")
    assert second.startswith("1 run compared with nothing")


def test_runs_that_were_trained_in_another_way_are_other_curves_and_not_compared(
    grid: tuple[Path, F1s], tmp_path: Path
) -> None:
    """Samples of each arm with a learning rate of its own; then some of both arms with both."""
    root, rates = tmp_path / "grid", {"vanilla": 1e-5, "maml": 1e-3}
    shutil.copytree(grid[0], root)
    shots = [folder for folder in (root / "finetune").iterdir() if "subset" in folder.name]
    for folder in shots:
        result = json.loads((folder / "result.json").read_text())
        amend(folder, settings=result["settings"] | {"ner.lr": rates[result["origin"]["objective"]]})
    shown = section(views(collect([root]), 200, None, UPDATES))
    assert [table.rows for table in shown.tables if table.name == "k_shot_differences"] == [[]]
    (remark,) = shown.paragraphs
    assert remark.startswith("24 runs compared with nothing: the other tagger was not trained further")
    for folder in shots:
        copy = folder.with_name(f"{folder.name}-again")
        shutil.copytree(folder, copy)
        result = json.loads((copy / "result.json").read_text())
        (rate,) = set(rates.values()) - {result["settings"]["ner.lr"]}
        amend(copy, settings=result["settings"] | {"ner.lr": rate})
    found = curves(collect([root]), Scores(200))
    assert sorted((curve.objective, curve.task.settings) for curve in found) == [
        (objective, f"ner.lr={rate}") for objective in sorted(rates) for rate in (0.001, 1e-5)
    ]
    assert all(len(runs) == 6 for curve in found for k, runs in curve.runs.items() if k)
    shown = section(views(collect([root]), 200, None, UPDATES))
    assert shown.paragraphs == []
    rows = rows_of(next(table for table in shown.tables if table.name == "k_shot_differences"))
    assert len(rows) == 2 * (len(SHOTS) + 2)
    assert {row["settings"] for row in rows} == {"ner.lr=0.001", "ner.lr=1e-05"}
    assert {row["seeds"] for row in rows} == {3}


def test_what_is_needed_is_said(tmp_path: Path) -> None:
    write_finetuning(tmp_path / "grid", {"model": "nano", "objective": "vanilla", "seed": 0})
    assert section(views(collect([tmp_path / "grid"]), 10, None, UPDATES)).paragraphs == [NEEDED]


def test_all_points_of_panels_that_share_an_axis_are_within_it() -> None:
    values = [0.2, 0.6, 0.1, 0.3]
    panels = [
        Panel("", {"maml": {0: (0.1, 0.0, 0.2), 30: (value, value - 0.1, value + 0.1)}}) for value in values
    ]
    canvas = draw_k_shot(panels)
    for axis, value in zip(canvas.axes, values, strict=False):
        low, high = axis.get_ylim()
        assert low == 0
        assert value + 0.1 < high
    assert [axis.get_visible() for axis in canvas.axes] == [True] * 4 + [False] * 2


def test_the_figure_is_drawn(grid: tuple[Path, F1s]) -> None:
    (figure,) = section(views(collect([grid[0]]), 50, None, UPDATES)).figures
    assert figure.name == "k_shot-nano-step60"
    assert figure.svg.startswith("<svg")
    assert "F1 on the target language" in figure.full_caption
