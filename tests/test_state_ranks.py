"""Effective rank of hidden states (benchmarks/state_ranks.py)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import state_ranks
import torch
from scipy import stats
from test_grid import planned

from metapt.launch.grid_dir import GridDir
from metapt.models.causal_lm import load_causal_lm
from metapt.models.pretrained import model_folder
from metapt.pretrain import main as pretrain
from metapt.runs import Run


def test_finished_runs_are_measured_once(
    tmp_path: Path, nano_arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rank is that of numpy's singular values of the states on the same held-out text."""
    own = ("model=", "data")  # what the grid sets
    overrides = [word for word in nano_arguments if not word.startswith(own)]
    plan = planned(
        "grid=demo",
        "grid.objectives=[vanilla]",
        "grid.seeds=[0,1]",
        "grid.sources=[]",
        f"root={tmp_path}",
        f"grid.pretrain={json.dumps(overrides)}",
    )
    grid = GridDir(tmp_path)
    grid.write_plan(plan)
    job = next(job for job in plan.jobs if job.kind == "pretrain" and job.seed == 0)
    pretrain([*job.argv])
    monkeypatch.setattr(state_ranks, "TOKENS", 320)
    file = tmp_path / "ranks.json"
    state_ranks.main(["measure", str(tmp_path), str(file)])
    found = json.loads(file.read_text())
    assert {arm: list(seeds) for arm, seeds in found.items()} == {"nano/vanilla": ["0"]}

    config = state_ranks.commandline.load("pretrain", job.argv)
    rows = state_ranks.eval_sequences(state_ranks.prepare_corpus(config.data).eval, 64, 5)
    decoder = load_causal_lm(model_folder(str(Run(tmp_path / job.run_dir).path)))
    with torch.no_grad():
        states = decoder.model(torch.from_numpy(rows[:, :-1])).last_hidden_state.flatten(0, 1).numpy()
    values = np.linalg.svd(states.astype(np.float64) - states.mean(axis=0), compute_uv=False)
    shares = values / values.sum()
    rank = np.exp(-(shares * np.log(shares)).sum()) / states.shape[1]
    assert found["nano/vanilla"]["0"] == pytest.approx(rank, rel=1e-4)

    measured = {"nano/vanilla": {"0": 0.5}}
    file.write_text(json.dumps(measured))
    state_ranks.main(["measure", str(tmp_path), str(file)])
    assert json.loads(file.read_text()) == measured

    file.write_text(json.dumps({"vanilla": {"0": 0.5}}))  # of the size of the study
    state_ranks.main(["measure", str(tmp_path), str(file)])
    assert json.loads(file.read_text()) == {"vanilla": {"0": 0.5}, **found}


def test_means_and_differences_over_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"vanilla/base": [0.5, 0.6, 0.55, 0.91], "maml/base": [0.6, 0.65, 0.75]}
    file = tmp_path / "ranks.json"
    by_seed = {arm: {str(seed): rank for seed, rank in enumerate(ranks)} for arm, ranks in values.items()}
    file.write_text(json.dumps(by_seed))
    state_ranks.main(["results", str(file)])
    rows = [re.split(r" *\| *", line)[1:-1] for line in capsys.readouterr().out.splitlines()]
    assert rows[2][:3] == ["vanilla/base", "4", "0.640"]
    gains = np.subtract(values["maml/base"], values["vanilla/base"][:3])
    low, high = stats.ttest_1samp(gains, 0).confidence_interval()
    assert rows[4] == ["maml/base − vanilla/base", "3", "+0.117", f"[{low:+.3f}, {high:+.3f}]"]
