"""Finished runs in compressed files without labelled text, and back (benchmarks/pack_runs.py)."""

from __future__ import annotations

import json
import lzma
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pack_runs
import pytest
from test_grid import planned

from metapt.config import identity
from metapt.data.labelled_sets import open_collection
from metapt.errors import UserError
from metapt.evaluation.predictions import SentencePrediction, write_predictions
from metapt.launch.grid_dir import GridDir
from metapt.runs import Run

SETS = ("tl_demo", "ceb_demo")


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """The folder of a grid with two seeds, all of whose runs but one are finished."""
    root = tmp_path / "grid"
    plan = planned("grid=demo", "grid.seeds=[0,1]", "grid.baselines=[capitals]", f"root={root}")
    GridDir(root).write_plan(plan)
    draws = np.random.default_rng(0)
    jobs = [job for job in plan.jobs if job.is_run]
    for job in jobs:
        config, run = plan.configs[job.id], Run(root / job.run_dir)
        run.path.mkdir(parents=True)
        run.start(identity(config), {}, asdict(config))
        run.metrics_file.write_text('{"step": 1, "kind": "train", "loss_nats": 0.1}\\n')
        if job.kind != "pretrain":
            collection = open_collection(config.data)
            for name in SETS:
                sentences = collection.load(name, "test")
                tags = [draws.choice(["O", "B-PER"], len(sentence.words)).tolist() for sentence in sentences]
                write_predictions(
                    run.predictions_dir / f"{name}.jsonl",
                    sentences,
                    [SentencePrediction(row, [-0.5] * len(row)) for row in tags],
                )
        if job is not jobs[-1]:
            run.finish({"origin": {} if job.kind == "baseline" else {"seed": job.seed}, "folder": str(root)})
    return root


def test_what_is_unpacked_is_what_was_packed(grid: Path, tmp_path: Path) -> None:
    packed, again = tmp_path / "packed", tmp_path / "again"
    pack_runs.pack(grid, packed, [])
    assert {path.name for path in packed.iterdir()} == {"grid.jsonl.xz", "0.jsonl.xz", "1.jsonl.xz"}
    pack_runs.unpack(packed, again)
    plan = GridDir(again).read_plan()
    unfinished = [job for job in plan.jobs if job.is_run][-1]
    assert not (again / unfinished.run_dir).exists()
    finished = [path for path in grid.rglob("*") if path.is_file() and unfinished.run_dir not in str(path)]
    assert len(finished) > 20
    for path in finished:
        found = (again / path.relative_to(grid)).read_text()
        if path.parent.name == "predictions":
            expected = [json.loads(line) | {"gold_logprob": None} for line in path.open()]
            assert [json.loads(line) for line in found.splitlines()] == expected
        else:
            assert found == path.read_text().replace(str(grid), str(again))


def test_packed_files_have_no_text_of_sets_and_no_folder_of_the_machine(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAPT_TEXT_DIR", str(tmp_path))  # the folder of the grid is in this one
    pack_runs.pack(grid, tmp_path / "packed", ["1"])
    texts = {
        path.name: lzma.decompress(path.read_bytes()).decode() for path in (tmp_path / "packed").iterdir()
    }
    assert set(texts) == {"grid.jsonl.xz", "1.jsonl.xz"}  # seed 0 was not asked for
    words = {
        word
        for path in grid.rglob("predictions/*.jsonl")
        for line in path.open()
        for word in json.loads(line)["words"]
        if len(word) > 4
    }
    assert len(words) > 50
    for text in texts.values():
        assert "${RUNS}" in text
        assert str(tmp_path) not in text
        assert not {word for word in words if f'"{word}"' in text or f" {word} " in text}


def test_a_cache_beside_the_grid_is_no_folder_of_the_machine(grid: Path, tmp_path: Path) -> None:
    """As of a grid whose `cluster.cache` is the folder of another one."""
    plan = grid / "plan.json"
    plan.write_text(plan.read_text().replace(f"{grid}/corpus", f"{tmp_path}/other/corpus"))
    assert f"{tmp_path}/other/corpus" in plan.read_text()
    pack_runs.pack(grid, tmp_path / "packed", [])
    for path in (tmp_path / "packed").iterdir():
        assert str(tmp_path) not in lzma.decompress(path.read_bytes()).decode()
    again = tmp_path / "elsewhere" / "again"
    pack_runs.unpack(tmp_path / "packed", again)
    assert f"{again.parent}/other/corpus" in (again / "plan.json").read_text()


def test_a_folder_without_a_plan_has_all_its_finished_runs(grid: Path, tmp_path: Path) -> None:
    """As benchmarks/class_features.py writes it."""
    (grid / "plan.json").unlink()
    pack_runs.pack(grid, tmp_path / "packed", [])
    pack_runs.unpack(tmp_path / "packed", tmp_path / "again")
    results = {path.relative_to(grid) for path in grid.glob("*/*/result.json")}
    assert len(results) > 5
    assert {
        path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("result.json")
    } == results


def test_other_sentences_are_refused(grid: Path, tmp_path: Path) -> None:
    pack_runs.pack(grid, tmp_path / "packed", [])
    path = tmp_path / "packed" / "0.jsonl.xz"
    path.write_bytes(lzma.compress(lzma.decompress(path.read_bytes()).replace(b'"O O', b'"O', 1)))
    with pytest.raises(UserError, match=r"_demo: other sentences than those of the predictions of finetune/"):
        pack_runs.unpack(tmp_path / "packed", tmp_path / "again")
