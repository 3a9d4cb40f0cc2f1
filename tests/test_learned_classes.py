"""Accuracy on held-out words over seeds and many episodes (benchmarks/learned_classes.py)."""

from __future__ import annotations

import re
from pathlib import Path

import learned_classes
import numpy as np
import pytest
from scipy import stats
from test_grid import planned

from metapt.config import ProbeConfig
from metapt.launch.grid_dir import GridDir
from metapt.runs import Run

EPISODES = 40


def accuracy(objective: str, seed: int) -> np.ndarray:
    """Seeds differ, and all episodes of a seed by the same amount: then the interval is that of a t-test over seeds."""
    gains = {"vanilla": (0, 0, 0), "multitask": (0.02, 0.05, 0.035)}
    return np.linspace(0.2, 0.4, EPISODES) + gains[objective][seed]


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    plan = planned(
        "grid=demo",
        "grid.objectives=[vanilla,multitask]",
        "grid.seeds=[0,1,2]",
        "grid.sources=[]",
        f"root={tmp_path}",
    )
    GridDir(tmp_path).write_plan(plan)
    by_folder = {str(tmp_path / job.run_dir): job for job in plan.jobs if job.kind == "pretrain"}

    def probe(config: ProbeConfig) -> dict[str, list[float]]:
        job = by_folder[config.checkpoint]
        assert (config.train.seed, config.meta.objective) == (job.seed, job.objective)
        assert (config.probe_episodes, config.probe_tokens) == (EPISODES, 1000)
        assert job.seed is not None
        return {learned_classes.MEASURE: accuracy(job.objective, job.seed).tolist()}

    monkeypatch.setattr(learned_classes, "probe", probe)
    monkeypatch.setattr(Run, "is_done", property(lambda run: str(run.path) in by_folder))
    return tmp_path


def test_means_and_intervals_over_seeds(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learned_classes.main([str(grid), str(EPISODES), "1000"])
    rows = [re.split(r" *\| *", line)[1:-1] for line in capsys.readouterr().out.splitlines()]
    gains = np.array([2.0, 5.0, 3.5])
    low, high = stats.t.interval(0.95, 2, gains.mean(), stats.sem(gains))
    assert rows[2] == ["vanilla", "3", "30.0", "-", "-"]
    assert rows[3] == ["multitask", "3", "33.5", "+3.5", f"[{low:+.1f}, {high:+.1f}]"]


def test_runs_that_are_not_finished_are_left_out(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "is_done", property(lambda run: "-s2-" not in str(run.path)))
    found = learned_classes.accuracies(GridDir(grid), EPISODES, 1000)
    assert {name: list(seeds) for name, seeds in found.items()} == {"vanilla": [0, 1], "multitask": [0, 1]}
