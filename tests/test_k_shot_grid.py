"""A grid with k-shot runs, from submission to the curves of its report, on the synthetic data."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from metapt.config import commandline
from metapt.launch.submission import submit

PRETRAIN = [
    "data=demo",
    "model.hidden_size=16",
    "model.intermediate_size=32",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "train.max_steps=4",
    "train.warmup_steps=1",
    "train.seq_len=32",
    "train.eval_sequences=4",
    "train.dynamics_every=0",
]
FINETUNE = [
    "data=demo",
    "data.eval_sets=[sk_demo,tl_demo]",
    "data.max_train_sentences=60",
    "ner.max_epochs=1",
]


@pytest.mark.nightly
def test_a_grid_with_k_shot_runs(tmp_path: Path) -> None:
    def listed(words: list[str]) -> str:
        return "[" + ",".join(f'"{word}"' for word in words) + "]"

    root = tmp_path / "grid"
    words = [
        "grid=demo",
        "cluster=inline",
        "code=live",
        "grid.objectives=[vanilla]",
        "grid.sources=[en_demo]",
        "grid.tunings=[full]",
        "grid.baselines=[]",
        f"grid.pretrain={listed(PRETRAIN)}",
        f"grid.finetune={listed(FINETUNE)}",
        "grid.shots=[2,8]",
        "grid.shot_targets=[sk_demo]",
        "grid.subset_seeds=[0,1]",
        "grid.shot_updates=6",
    ]
    submit(commandline.load("submit", [*words, f"root={root}"]))
    with (root / "report" / "tables" / "k_shot.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["target"], row["set"], row["k"]) for row in rows] == [
        ("sk_demo", "sk_demo", k) for k in ("0", "2", "8")
    ]
    assert [len(row["runs"].split("; ")) for row in rows] == [1, 2, 2]
