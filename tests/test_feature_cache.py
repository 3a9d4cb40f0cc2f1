"""The feature cache returns the same bits, respects its size limit, and survives kills, damage and a full disk."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metapt.finetuning.feature_cache import FEATURES_FILE, KEY_FILE, FeatureCache

FORK = multiprocessing.get_context("fork")
ROWS = 1000  # rows of 2 numbers: 8 kB plus the file header


def features(number: int, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(number))


def get(feature_cache: FeatureCache, number: int) -> tuple[Tensor, bool]:
    """Return the features of a number, and whether they had to be computed."""
    calls = []

    def compute() -> Tensor:
        calls.append(number)
        return features(number)

    found = feature_cache.get({"number": number}, compute)
    assert torch.equal(found, features(number))
    return found, bool(calls)


def entries(folder: Path) -> list[Path]:
    return sorted(file.parent for file in folder.glob(f"*/{FEATURES_FILE}"))


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob(f"*/{FEATURES_FILE}"))


def test_computed_once_then_memory_mapped(tmp_path: Path) -> None:
    feature_cache = FeatureCache(tmp_path, 1)
    first, computed = get(feature_cache, 1)
    assert computed
    second, computed = get(FeatureCache(tmp_path, 1), 1)
    assert not computed
    assert get(feature_cache, 2)[1]
    second += 1  # a private copy of the page
    assert torch.equal(first, features(1))
    assert not get(feature_cache, 1)[1]
    assert (entries(tmp_path)[0] / KEY_FILE).is_file()


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def lose_manifest(file: Path) -> None:
    (file.parent / "manifest.json").unlink()


@pytest.mark.parametrize("damage", [cut, flip, lose_manifest, Path.unlink])
def test_damaged_entry_is_recomputed(
    tmp_path: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    feature_cache = FeatureCache(tmp_path, 1)
    get(feature_cache, 1)
    damage(entries(tmp_path)[0] / FEATURES_FILE)
    assert get(feature_cache, 1)[1]
    assert "damaged" in capsys.readouterr().err
    assert not get(feature_cache, 1)[1]


def test_least_recently_used_entry_is_deleted_unless_in_use(tmp_path: Path) -> None:
    feature_cache = FeatureCache(tmp_path, 3.5 * ROWS * 8 / 1e9)
    for number in (1, 2, 3):
        get(feature_cache, number)
        time.sleep(0.02)  # longer than the resolution of file times
    assert not get(feature_cache, 1)[1]
    get(feature_cache, 4)  # deletes 2
    assert [get(feature_cache, number)[1] for number in (1, 3, 4)] == [False] * 3
    held = [get(feature_cache, number)[0][5:] for number in (1, 3)]  # a view keeps the entry in use
    get(feature_cache, 5)  # deletes 4, because 1 and 3 are in use
    assert [get(feature_cache, number)[1] for number in (1, 3, 5)] == [False] * 3
    held.append(get(feature_cache, 5)[0])
    found, computed = get(feature_cache, 6)
    assert computed
    assert len(entries(tmp_path)) == 3
    held.clear()
    assert get(feature_cache, 6)[1]
    assert not get(feature_cache, 6)[1]
    del found


def test_features_larger_than_the_cache_are_not_stored(tmp_path: Path) -> None:
    feature_cache = FeatureCache(tmp_path, 2.5 * ROWS * 8 / 1e9)
    get(feature_cache, 1)
    large = feature_cache.get({"number": 9}, lambda: features(9, 3 * ROWS))
    assert torch.equal(large, features(9, 3 * ROWS))
    assert not get(feature_cache, 1)[1]
    assert len(entries(tmp_path)) == 1


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=15), st.integers(1, 4))
def test_size_limit_is_never_exceeded(requests: list[tuple[int, bool]], room: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        feature_cache = FeatureCache(folder, (room + 0.5) * ROWS * 8 / 1e9)
        held = {}
        for number, hold in requests:
            found, computed = get(feature_cache, number)
            assert not (computed and number in held and held[number][1])
            is_stored = any(
                f'"number": {number}' in (entry / KEY_FILE).read_text() for entry in entries(Path(folder))
            )
            held[number] = (found, is_stored)
            if not hold:
                del held[number]
            del found
            assert size(Path(folder)) <= (room + 0.5) * ROWS * 8


def test_full_disk_loses_only_the_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        assert get(FeatureCache(tmp_path, 1), 1)[1]
    assert "No space left" in capsys.readouterr().err
    assert not list(tmp_path.glob("*/"))
    assert get(FeatureCache(tmp_path, 1), 1)[1]


# ---- several jobs


def child(work: Callable[..., None], *args: Any) -> Any:
    process = FORK.Process(target=work, args=args)
    process.start()
    return process


def slow_job(folder: Path, log: Path) -> None:
    def compute() -> Tensor:
        with log.open("a") as lines:
            lines.write("computed\n")
        time.sleep(0.3)
        return features(1)

    assert torch.equal(FeatureCache(folder, 1).get({"number": 1}, compute), features(1))


def test_one_of_four_concurrent_jobs_computes(tmp_path: Path) -> None:
    jobs = [child(slow_job, tmp_path / "cache", tmp_path / "log") for _ in range(4)]
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0] * 4
    assert (tmp_path / "log").read_text() == "computed\n"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying_job(folder: Path, where: str) -> None:
    def half(file: Path, array: np.ndarray) -> None:
        Path(file).write_bytes(array.tobytes()[:1000])
        die()

    def compute() -> Tensor:
        if where == "computing":
            die()
        return features(1)

    if where == "writing":
        np.save = half
    elif where == "committing":
        from metapt.finetuning import feature_cache

        feature_cache.atomic_folders.commit = lambda *_: die()  # type: ignore[assignment]
    FeatureCache(folder, 1).get({"number": 1}, compute)


@pytest.mark.parametrize("where", ["computing", "writing", "committing"])
def test_killed_job_leaves_no_entry_and_no_lock(tmp_path: Path, where: str) -> None:
    job = child(dying_job, tmp_path, where)
    job.join(60)
    assert job.exitcode == -signal.SIGKILL
    assert bool(list(tmp_path.glob("*.tmp"))) == (where != "computing")
    assert get(FeatureCache(tmp_path, 1), 1)[1]
    assert not list(tmp_path.glob("*.tmp"))
    assert not get(FeatureCache(tmp_path, 1), 1)[1]


def holding_job(folder: Path, ready: Any, done: Any) -> None:
    found, _ = get(FeatureCache(folder, 1), 1)
    ready.set()
    done.wait(60)
    assert torch.equal(found, features(1))


def test_entry_in_use_by_another_job_is_not_deleted(tmp_path: Path) -> None:
    ready, done = FORK.Event(), FORK.Event()
    job = child(holding_job, tmp_path, ready, done)
    assert ready.wait(60)
    feature_cache = FeatureCache(tmp_path, 1.5 * ROWS * 8 / 1e9)
    assert get(feature_cache, 2)[1]
    assert get(feature_cache, 2)[1]  # it was not stored: there was no room
    done.set()
    job.join(60)
    assert job.exitcode == 0
    get(feature_cache, 2)
    assert not get(feature_cache, 2)[1]
    assert len(entries(tmp_path)) == 1
