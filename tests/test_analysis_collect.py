"""Finding and reading run folders: nothing twice, nothing dropped, nothing fatal."""

from __future__ import annotations

import json
import os
import pickle
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from analysis_runs import write_finetuning, write_grid, write_pretraining

from analysis import cache
from analysis.collect import CACHE_FILE, collect
from analysis.records import GoldSet
from metapt.provenance import COMMIT_FILE


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the folders that are read from their files."""
    names: list[str] = []
    original = cache.read
    monkeypatch.setattr(cache, "read", lambda path, pool: names.append(path.name) or original(path, pool))
    return names


def test_only_what_changed_is_read_again(tmp_path: Path, reads: list[str]) -> None:
    root = write_grid(tmp_path / "grid", seeds=(0, 1))
    first = collect([root], tmp_path / "cache")
    assert len(reads) == 12
    reads.clear()
    second = collect([root], tmp_path / "cache")
    assert reads == []
    assert [run.path for run in second.finetuning] == [run.path for run in first.finetuning]
    for one, other in zip(first.finetuning, second.finetuning, strict=True):
        assert (one.setting, one.seeds, one.result) == (other.setting, other.seeds, other.result)
        np.testing.assert_array_equal(one.losses, other.losses)
        for name, evaluation in one.sets.items():
            assert evaluation.predicted.kinds == other.sets[name].predicted.kinds
            np.testing.assert_array_equal(evaluation.predicted.rows, other.sets[name].predicted.rows)
            np.testing.assert_array_equal(evaluation.logprobs, other.sets[name].logprobs)
    assert len({id(run.sets["tl_trg"].gold) for run in second.finetuning}) == 1
    changed = second.finetuning[3].path
    result = json.loads((changed / "result.json").read_text())
    (changed / "result.json").write_text(json.dumps({**result, "dev_f1": 0.75}))
    new = write_finetuning(root, {"model": "another"})
    third = collect([root], tmp_path / "cache")
    assert sorted(reads) == sorted([changed.name, new.name])
    assert {run.result["dev_f1"] for run in third.finetuning if run.path == changed} == {0.75}


def test_in_many_processes_as_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_grid(tmp_path / "grid")
    alone = collect([root])
    monkeypatch.setattr(cache, "PART", 2)
    together = collect([root])
    assert [run.path for run in together.finetuning] == [run.path for run in alone.finetuning]
    assert len({id(run.sets["tl_trg"].gold) for run in together.finetuning}) == 1


@pytest.mark.parametrize("damage", ["no database", "another version", "damaged records", "a foreign class"])
def test_a_cache_that_cannot_be_used_is_done_without(tmp_path: Path, reads: list[str], damage: str) -> None:
    root = write_grid(tmp_path / "grid")
    expected = [run.path for run in collect([root], tmp_path).finetuning]
    if damage == "no database":
        (tmp_path / CACHE_FILE).write_text("not a database " * 100)
    else:
        with sqlite3.connect(tmp_path / CACHE_FILE) as base:
            if damage == "another version":
                base.execute("UPDATE version SET made_by = 'someone'")
            else:
                bad = b"\x80" if damage == "damaged records" else pickle.dumps(os.getcwd)
                base.execute("UPDATE run SET record = ?", (bad,))
        base.close()
    for count in (6, 0):
        reads.clear()
        assert [run.path for run in collect([root], tmp_path).finetuning] == expected
        assert len(reads) == count


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_grid(tmp_path / "grid")
    (tmp_path / "file").write_text("")
    assert collect([root], tmp_path / "file").finetuning
    assert "cannot be written" in capsys.readouterr().err


def test_runs_are_found_at_any_depth_and_once(tmp_path: Path) -> None:
    root = tmp_path / "all"
    write_grid(root / "2026" / "one", regimes=("head",))
    write_finetuning(root / "two", {"model": "elsewhere"})
    (root / "report").mkdir()
    (root / "report" / "result.json").write_text("{}")  # of a job that is no run
    copy = root / "two" / "code" / "0123"
    (copy / "conf").mkdir(parents=True)
    (copy / COMMIT_FILE).write_text("0123\n")
    (copy / "conf" / "config.yaml").write_text("defaults: []")  # no run's
    (root / "link").symlink_to(root / "two")
    (root / "two" / "loop").symlink_to(root)
    collection = collect([root, root / "two"])
    assert (len(collection.pretraining), len(collection.finetuning), collection.left_out) == (2, 3, [])
    assert len(collect([root / "two" / "finetune"]).finetuning) == 1


def test_whatever_a_folder_holds_it_is_named(tmp_path: Path) -> None:
    root = write_grid(tmp_path / "grid", regimes=("head",))
    folders = {name: root / "finetune" / name for name in ("empty", "notes", "binary", "list", "nested")}
    for folder in folders.values():
        folder.mkdir()
    (folders["notes"] / "todo.txt").write_text("buy milk")
    (folders["binary"] / "result.json").write_bytes(bytes(range(256)))
    (folders["list"] / "result.json").write_text('{"origin": [], "sets": 3}')
    (folders["nested"] / "result.json").write_text("[" * 100_000)
    damaged = write_pretraining(root, "tiny")
    (path,) = (root / "pretrain").glob("tiny*")
    (path / "config.yaml").write_text("config: [")
    assert damaged["model"] == "tiny"
    collection = collect([root])
    found = {item.path.name: item.state for item in collection.left_out}
    assert found == {"empty": "not begun", "notes": "foreign", "binary": "broken", "list": "broken", "nested": "broken", path.name: "broken"}  # fmt: skip
    assert all(item.reason for item in collection.left_out)
    assert len(collection.finetuning) == 2


def test_words_within_spans() -> None:
    words = (("si", "Maria", "Santos"), (), ("bata", "si", "Juan"))
    gold = GoldSet("tl_trg", ("1", "2", "3"), words, ((("PER", 1, 3),), (), (("PER", 2, 3),)))
    np.testing.assert_array_equal(gold.starts, [0, 3, 3, 6])
    np.testing.assert_array_equal(gold.in_span, [False, True, True, False, False, True])
