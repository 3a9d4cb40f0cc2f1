"""Finding and reading run folders: each once, none dropped, and no damage stops the report."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from analysis_runs import write_finetuning, write_grid, write_pretraining

from analysis.load import cache, run_reader
from analysis.load.collect import CACHE_FILE, collect
from analysis.load.records import Evaluation, GoldSet
from analysis.report import main
from metapt.provenance import COMMIT_FILE


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the folders that are read from their files, not from the cache."""
    names: list[str] = []
    original = cache.read_run
    monkeypatch.setattr(
        cache, "read_run", lambda path, targets: names.append(path.name) or original(path, targets)
    )
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
            for field in Evaluation.__struct_fields__[1:]:  # all but the gold set
                values = [getattr(item, field) for item in (evaluation, other.sets[name])]
                if field == "type_counts":
                    assert values[0].keys() == values[1].keys()
                    values = [np.array(list(counts.values())) for counts in values]
                np.testing.assert_array_equal(*values)
    assert len({id(run.sets["tl_trg"].gold) for run in second.finetuning}) == 1
    changed = second.finetuning[3].path
    result = json.loads((changed / "result.json").read_text())
    (changed / "result.json").write_text(json.dumps({**result, "dev_f1": 0.75}))
    new = write_finetuning(root, {"model": "another"})
    third = collect([root], tmp_path / "cache")
    assert sorted(reads) == sorted([changed.name, new.name])
    assert {run.result.dev_f1 for run in third.finetuning if run.path == changed} == {0.75}


def report(root: Path, reads: list[str]) -> tuple[list[dict[str, str]], dict[str, str], set[str]]:
    """Write root/report; return the rows of fine-tuning runs, the states of excluded runs, and the folders that were read."""
    reads.clear()
    main([str(root)])
    tables = root / "report" / "tables"
    tuned = list(csv.DictReader((tables / "runs_finetuning.csv").open()))
    excluded = tables / "excluded_runs.csv"
    rows = csv.DictReader(excluded.open()) if excluded.exists() else ()
    return tuned, {row["run"]: row["state"] for row in rows}, set(reads)


def test_a_second_report_reads_changed_folders_only(tmp_path: Path, reads: list[str]) -> None:
    """One folder is removed, one completed, one corrupted, one replaced and one moved; the others are not read again."""
    root = write_grid(tmp_path / "grid", seeds=(0, 1))
    removed, completed, corrupted, not_a_run, moved, *_ = sorted((root / "finetune").iterdir())
    result = (completed / "result.json").read_text()
    (completed / "result.json").write_text(result[: len(result) // 2])
    before, excluded, read = report(root, reads)
    assert len(read) == 12
    assert excluded == {completed.name: "broken"}
    names = {path.name for path in (root / "finetune").iterdir()}
    assert {row["run"] for row in before} == names - {completed.name}

    shutil.rmtree(removed)
    (completed / "result.json").write_text(result)
    predictions = corrupted / "predictions" / "tl_trg.jsonl"
    predictions.write_bytes(predictions.read_bytes()[:-200])
    shutil.rmtree(not_a_run)
    not_a_run.mkdir()
    (not_a_run / "notes.txt").write_text("not a run")
    renamed = moved.rename(moved.with_name("renamed"))
    tuned, excluded, read = report(root, reads)
    assert read == {completed.name, corrupted.name, not_a_run.name, renamed.name}
    assert excluded == {corrupted.name: "broken", not_a_run.name: "not a run"}
    names = {row["run"] for row in before} - {path.name for path in (removed, corrupted, not_a_run, moved)}
    assert {row["run"] for row in tuned} == names | {completed.name, renamed.name}
    (row,) = (row for row in tuned if row["run"] == renamed.name)
    assert (row["run"], row["folder"]) == ("renamed", "grid/finetune")
    assert row["runs"] == "../finetune/renamed"

    assert report(root, reads) == (tuned, excluded, {corrupted.name})


def test_a_run_that_could_not_be_read_once_is_read_again(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the file system passes, and leaves no trace in the files."""
    root = write_grid(tmp_path / "grid")

    def stale(path: Path, *_: object) -> Evaluation:
        raise OSError(116, f"Stale file handle: {path}")

    with monkeypatch.context() as patched:
        patched.setattr(run_reader, "evaluate", stale)
        assert collect([root], tmp_path).finetuning == []
    reads.clear()
    assert len(collect([root], tmp_path).finetuning) == len(reads) == 4
    reads.clear()
    assert len(collect([root], tmp_path).finetuning) == 4
    assert reads == []


def test_a_moved_root_is_read_again(tmp_path: Path, reads: list[str]) -> None:
    """The cache in its report has the old paths."""
    root = write_grid(tmp_path / "grid")
    report(root, reads)
    root = root.rename(tmp_path / "elsewhere")
    tuned, _, read = report(root, reads)
    assert len(read) == 6
    assert {row["folder"] for row in tuned} == {"elsewhere/finetune"}
    write_grid(tmp_path / "grid", seeds=(1,))
    assert {row["folder"] for row in report(root, reads)[0]} == {row["folder"] for row in tuned}


def test_many_processes_read_the_same_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_grid(tmp_path / "grid")
    alone = collect([root])
    monkeypatch.setattr(cache, "CHUNK", 2)
    together = collect([root])
    assert [run.path for run in together.finetuning] == [run.path for run in alone.finetuning]
    assert len({id(run.sets["tl_trg"].gold) for run in together.finetuning}) == 1


@pytest.mark.parametrize("damage", ["no cache", "other code", "damaged records", "missing gold sets"])
def test_a_cache_that_cannot_be_read_is_ignored(tmp_path: Path, reads: list[str], damage: str) -> None:
    root = write_grid(tmp_path / "grid")
    expected = [run.path for run in collect([root], tmp_path).finetuning]
    file = tmp_path / CACHE_FILE
    content = msgspec.msgpack.decode(file.read_bytes(), type=cache.CacheFile)
    if damage == "other code":
        content.code = "other"
    elif damage == "damaged records":
        content.runs = {real: (version, record[:-1]) for real, (version, record) in content.runs.items()}
    else:
        content.gold_sets = []
    text = b"not a cache" if damage == "no cache" else msgspec.msgpack.encode(content)
    file.write_bytes(text)
    for count in (6, 0):
        reads.clear()
        assert [run.path for run in collect([root], tmp_path).finetuning] == expected
        assert len(reads) == count


def test_a_cache_that_cannot_be_written_gives_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_grid(tmp_path / "grid")
    (tmp_path / "file").write_text("")
    assert collect([root], tmp_path / "file").finetuning
    assert "cannot be written" in capsys.readouterr().err


def test_every_run_is_found_once_at_any_depth(tmp_path: Path) -> None:
    root = tmp_path / "all"
    write_grid(root / "2026" / "one", tunings=("head_only",))
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
    assert (len(collection.pretraining), len(collection.finetuning), collection.excluded) == (2, 3, [])
    assert len(collect([root / "two" / "finetune"]).finetuning) == 1


def test_unreadable_folders_are_listed_with_a_reason(tmp_path: Path) -> None:
    root = write_grid(tmp_path / "grid", tunings=("head_only",))
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
    found = {item.path.name: item.state for item in collection.excluded}
    broken = dict.fromkeys(("binary", "list", "nested", path.name), "broken")
    assert found == {"empty": "not started", "notes": "not a run", **broken}
    assert all(item.reason for item in collection.excluded)
    assert len(collection.finetuning) == 2


def test_words_within_spans() -> None:
    words = (("si", "Maria", "Santos"), (), ("bata", "si", "Juan"))
    gold = GoldSet("tl_trg", ("1", "2", "3"), words, ((("PER", 1, 3),), (), (("PER", 2, 3),)))
    np.testing.assert_array_equal(gold.starts, [0, 3, 3, 6])
    np.testing.assert_array_equal(gold.in_span, [False, True, True, False, False, True])
