"""Runs of a longer grid that begin with those of a shorter one (benchmarks/continue_runs.py)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import continue_runs
import pytest
from test_grid import planned

from metapt import atomic_folders
from metapt.config import identity, identity_in
from metapt.launch.jobs import Plan
from metapt.runs import Run

LENGTHS = ("train.schedule=constant", "train.warmup_steps=1")


def words(root: Path, steps: int, *more: str) -> list[str]:
    overrides = ",".join(f'"{word}"' for word in ("data=demo", f"train.max_steps={steps}", *LENGTHS, *more))
    return ["grid=demo", f"grid.pretrain=[{overrides}]", "grid.sources=[]", f"root={root}"]


def write_finished(root: Path, plan: Plan) -> None:
    """Folders as of finished runs, with two checkpoints."""
    for job in plan.jobs:
        if job.kind == "pretrain":
            config, run = plan.configs[job.id], Run(root / job.run_dir)
            run.path.mkdir(parents=True)
            run.start(identity(config), {}, asdict(config))
            for step in (100, 200):
                staging = atomic_folders.staging(run.checkpoint(step))
                (staging / "weights").write_text(f"{job.objective} {step}")
                atomic_folders.commit(staging, run.checkpoint(step))
            run.finish({"kind": "pretrain", "steps": 200})


def test_runs_begin_with_those_that_differ_in_length_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short, long = tmp_path / "short", tmp_path / "long"
    write_finished(short, planned(*words(short, 200)))
    write_finished(tmp_path / "other", planned(*words(tmp_path / "other", 200, "train.lr=1e-2")))
    longer = planned(*words(long, 400))
    continue_runs.main(tmp_path / "other", words(long, 400))
    assert not long.exists()
    continue_runs.main(short, words(long, 400))
    for job in longer.jobs:
        if job.kind == "pretrain":
            run = Run(long / job.run_dir)
            run.check_identity(identity_in(longer.configs[job.id], run))
            assert not run.result_file.exists()
            ((step, checkpoint),) = run.checkpoints()
            assert (step, (checkpoint / "weights").read_text()) == (200, f"{job.objective} 200")
            assert atomic_folders.problem(checkpoint) is None
    capsys.readouterr()
    continue_runs.main(short, words(long, 400))
    assert capsys.readouterr().out.count("is left as it is") == 2
    continue_runs.main(short, words(tmp_path / "equal", 200))
    assert not (tmp_path / "equal").exists()
