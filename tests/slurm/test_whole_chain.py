"""A grid on a real Slurm, from `metapt.submit` to the report, against the same grid on this machine alone."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from real_slurm import MARKS, wait_until

from metapt.launch import queue
from metapt.launch.root import Root

REPOSITORY = Path(__file__).parents[2]
SHORTENED = [
    "grid.sources=[en_demo]",
    'grid.finetune_per_regime={head:["ner.max_epochs=2"]}',
    "grid.regimes=[head]",
]
SHORTENED += [
    'grid.pretrain=["data=demo","train.max_steps=20","train.warmup_steps=2","train.heldout_every=10"]'
]

TIMES = ("seconds", "started", "host", "folder")

pytestmark = MARKS


def submit(root: Path, cluster: str, words: list[str]) -> None:
    resources = [
        "cluster.gpus_per_node=0",
        "cluster.cpus_per_task=1",
        "cluster.mem_gb=1",
        "cluster.timeout_min=30",
    ]
    command = [sys.executable, "-m", "metapt.submit", "grid=demo", f"cluster={cluster}", f"root={root}"]
    command += ["cluster.threads=1", *(resources if cluster == "slurm" else []), *words]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words", [SHORTENED, pytest.param([], marks=pytest.mark.nightly)], ids=["shortened", "demo"]
)
def test_the_report_is_number_for_number_that_of_one_machine(words: list[str], tmp_path: Path) -> None:
    submit(tmp_path / "slurm", "slurm", words)
    submit(tmp_path / "inline", "inline", words)
    wait_until(lambda: not queue.entries(Root(tmp_path / "slurm")), seconds=600)
    tables = {cluster: numbers(tmp_path / cluster / "report/tables") for cluster in ("slurm", "inline")}
    assert len(tables["inline"]["f1"]) > 1
    assert tables["slurm"] == tables["inline"]


def numbers(folder: Path) -> dict[str, list[dict[str, str]]]:
    """All tables of a report, without times."""
    tables = {}
    for path in folder.glob("*.csv"):
        with path.open(encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        rows = [row for row in rows if row.get("at equal") != "seconds"]
        tables[path.stem] = [{name: row[name] for name in row if name not in TIMES} for row in rows]
    return tables
