"""A grid on a real Slurm, from `metapt submit` to the report, compared with the same grid on this machine."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launch_fakes import submitted_ids
from real_slurm import MARKS, wait_until
from stopping import has_progressed, preempt, requeue

from metapt.launch import slurm_queue
from metapt.launch.grid_dir import GridDir
from metapt.runs import Run

REPOSITORY = Path(__file__).parents[2]
PRETRAIN = 'grid.pretrain=["data=demo","train.max_steps=20","train.warmup_steps=2","train.eval_every=10","episodes.start_step=5"]'
SHORTENED = [
    PRETRAIN,
    "grid.sources=[en_demo]",
    'grid.finetune_per_tuning={head_only:["ner.max_epochs=2"]}',
    "grid.tunings=[head_only]",
]
FINETUNED = [
    "grid.objectives=[maml]",
    "grid.sources=[en_demo]",
    "grid.baselines=[]",
    "grid.tunings=[head_only,full,lora]",
]
FINETUNED += [
    PRETRAIN,
    'grid.finetune=["data=demo","ner.max_epochs=8","ner.patience=8"]',
    'grid.finetune_per_tuning={head_only:["ner.lr=1e-2","ner.batch_size=2"],full:["ner.lr=1e-3"],lora:["ner.lr=1e-3"]}',
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
def test_the_report_has_the_same_numbers_as_on_one_machine(words: list[str], tmp_path: Path) -> None:
    submit(tmp_path / "slurm", "slurm", words)
    submit(tmp_path / "inline", "inline", words)
    wait_until(lambda: not slurm_queue.queue_entries(GridDir(tmp_path / "slurm")), seconds=600)
    tables = {cluster: numbers(tmp_path / cluster / "report/tables") for cluster in ("slurm", "inline")}
    assert len(tables["inline"]["f1"]) > 1
    assert tables["slurm"] == tables["inline"]


@pytest.mark.nightly
def test_stopped_fine_tuning_jobs_end_like_undisturbed_ones(tmp_path: Path) -> None:
    """All tasks of an array are preempted, and then each is requeued by an administrator."""
    submit(tmp_path / "slurm", "slurm", [*FINETUNED, "cluster.partition=low"])
    grid_dir = GridDir(tmp_path / "slurm")
    slurm_ids = submitted_ids(grid_dir)
    jobs = grid_dir.read_plan().jobs
    finetuned = {slurm_ids[job.id]: grid_dir.run(job) for job in jobs if job.kind == "finetune"}
    assert len(finetuned) == 3
    assert len({slurm_id.partition("_")[0] for slurm_id in finetuned}) == 1
    for slurm_id, run in finetuned.items():
        wait_until(has_progressed(run, slurm_id, 0), seconds=600)
    preempt(next(iter(finetuned)))
    left = {slurm_id: has_progressed(run, slurm_id, 1) for slurm_id, run in finetuned.items()}

    def all_are_requeued() -> bool:
        for slurm_id, is_ready in list(left.items()):
            if is_ready():
                requeue(slurm_id)
                del left[slurm_id]
        return not left

    wait_until(all_are_requeued, seconds=600)
    submit(tmp_path / "inline", "inline", FINETUNED)
    wait_until(lambda: not slurm_queue.queue_entries(grid_dir), seconds=600)
    for run in finetuned.values():
        whole = Run(tmp_path / "inline" / run.path.relative_to(grid_dir.path))
        log = (grid_dir.path / "logs" / f"{run.path.relative_to(grid_dir.path)}.err").read_text()
        assert log.count("interrupted: ") == json.loads(run.requeues_file.read_text())["start"] == 2, log
        assert {**run.result(), "seconds_total": 0} == {**whole.result(), "seconds_total": 0}
        for part in (run.predictions_dir, run.tagger_dir):
            for path in (whole.path / part.name).iterdir():
                assert (part / path.name).read_bytes() == path.read_bytes(), path
    assert numbers(grid_dir.path / "report/tables") == numbers(tmp_path / "inline/report/tables")


def numbers(folder: Path) -> dict[str, list[dict[str, str]]]:
    """The tables of a report, without times."""
    tables = {}
    for path in folder.glob("*.csv"):
        with path.open(encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        rows = [row for row in rows if row.get("matched budget") != "seconds"]
        tables[path.stem] = [{name: row[name] for name in row if name not in TIMES} for row in rows]
    return tables
