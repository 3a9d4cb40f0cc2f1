"""benchmarks/gpu.py on a CPU: every form of row, time limits, missing packages, the table."""

from __future__ import annotations

import sys
from pathlib import Path

import gpu
import gpu_rows
import pytest

SCRIPT = """
import json, sys, time
name = sys.argv[1]
if name == "hangs":
    time.sleep(600)
if name == "crashes":
    sys.exit("RuntimeError: CUDA error: an illegal memory access was encountered")
print(json.dumps(["ok", name]))
"""


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three rows, of which the first hangs and the second crashes, in place of the real ones; returns their table."""
    script = tmp_path / "rows.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(gpu, "ROWS", {"hangs": 1, "crashes": 120, "works": 120})
    monkeypatch.setattr(gpu.run_row, "__defaults__", (script,))
    monkeypatch.setattr(gpu, "missing", lambda packages: [])
    return tmp_path / "gpu.md"


def test_a_hang_and_a_crash_lose_one_row_each(rows: Path):
    assert gpu.main([f"out={rows}"]) == 1
    table = rows.read_text()
    assert "| hangs | FAILED | no answer within 1 s |" in table
    assert (
        "| crashes | FAILED | RuntimeError: CUDA error: an illegal memory access was encountered |" in table
    )
    assert "| works | ok | works |" in table
    assert f"Python {sys.version.split()[0]}" in table


def test_rows_without_their_packages_or_time_are_skipped(rows: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "missing", lambda packages: ["deepspeed"] if "deepspeed" in packages else [])
    assert gpu.main([f"out={rows}"]) == 0
    assert rows.read_text().count("| skipped | not installed: deepspeed |") == 3
    monkeypatch.setattr(gpu, "missing", lambda packages: [])
    gpu.main([f"out={rows}", "minutes=0.05"])
    assert "| works | skipped | the time of all rows is over (minutes=) |" in rows.read_text()


def test_packages_are_named_as_they_are_installed():
    assert gpu.missing({"metapt": "metapt", "no_such_module": "no-such-distribution"}) == [
        "no-such-distribution"
    ]
    assert gpu.missing(gpu.TRAINING) == []
    assert set(gpu.needed("speed tiny")) < set(gpu.needed("tagging")) < set(gpu.needed("zero2"))


@pytest.mark.parametrize(
    ("row", "text"),
    [("speed nano", "the peak of cpu is not known"), ("episode nano", "of a micro-batch of 2 x 64")],
)
def test_reduced_rows_on_a_cpu(row: str, text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu_rows, "SETTINGS", {"device": "cpu", "reduced": "True"})
    outcome, found = gpu_rows.measure(row)
    assert outcome == "ok"
    assert text in found


@pytest.mark.nightly
@pytest.mark.commands
def test_all_rows_on_a_cpu(tmp_path: Path):
    """The rows that compare runs; the larger scales are left out."""
    names = "environment,zero,bf16,compiled,resume,tagging"
    assert (
        gpu.main([f"out={tmp_path / 'gpu.md'}", "device=cpu", "reduced=true", f"rows={names}", "minutes=30"])
        == 0
    )
    outcomes = [
        line.split(" | ")[1]
        for line in (tmp_path / "gpu.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    assert outcomes[1:] == ["ok"] * len(outcomes[1:])
    assert len(outcomes) == 11
