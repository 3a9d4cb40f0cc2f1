"""Learning dynamics at the end of pretraining: means over seeds, and differences of the arms that have a measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analysis_runs import write_pretraining
from scipy import stats

from analysis.load.collect import Collection, collect
from analysis.load.contrasts import Contrast
from analysis.sections.learning_dynamics import dynamics_means_table, means_table
from analysis.stats.dynamics_means import at_the_end

STEPS = 40
COSINES = {"maml": [0.3, 0.1, -0.2], "twin": [0.2, 0.25, -0.1]}
"""of seeds 0 to 2 at the end of training; vanilla has none"""
RANKS = {"maml": [0.5, 0.6, 0.55], "twin": [0.45, 0.5, 0.6], "vanilla": [0.4, 0.45, 0.41]}


def write_run(root: Path, objective: str, seed: int) -> None:
    """Write a run whose cosine is 0.9 until the last tenth of the updates, null in one of them, and absent at first."""
    write_pretraining(root, objective=objective, seed=seed, steps=STEPS)
    (file,) = root.glob(f"**/*{objective}*s{seed}*/metrics.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        step = line["step"]
        if line["kind"] == "dynamics" and step == STEPS:
            line["effective_rank"] |= {kind: [RANKS[objective][seed]] for kind in "qkvo"}
        if line["kind"] == "episode":
            line |= {"kind": "lm", "lm_loss_nats": 3.0}
        if line["kind"] == "lm" and step > 10 and objective in COSINES:
            cosine = COSINES[objective][seed] if step > 0.9 * STEPS else 0.9
            line["episodes_gradient_cosine"] = None if step == 20 else cosine
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    root = tmp_path_factory.mktemp("dynamics")
    for objective, ranks in RANKS.items():
        for seed in range(len(ranks)):
            write_run(root, objective, seed)
    contrasts = [
        Contrast("maml", "twin", tunings=("full",)),
        Contrast("maml", "twin", primary=False, tunings=("head_only",)),
        Contrast("maml", "vanilla"),
    ]
    return collect([root], contrasts=contrasts)


def rows_of(collection: Collection) -> dict[tuple[str, str], dict[str, Any]]:
    table = dynamics_means_table(collection)
    heads = [column.head for column in table.columns]
    cells = [dict(zip(heads, row, strict=True)) for row in table.rows]
    return {(row["comparison"], row["measure"]): row for row in cells}


def test_differences_equal_those_of_a_paired_t_test(collection: Collection) -> None:
    row = rows_of(collection)["maml minus twin", "effective rank, attention"]
    gains = np.subtract(RANKS["maml"], RANKS["twin"])
    assert row["Δ"] == pytest.approx(gains.mean())
    assert row["95 % CI Δ"] == pytest.approx(tuple(stats.ttest_1samp(gains, 0).confidence_interval()))
    assert row["first"] == pytest.approx(np.mean(RANKS["maml"]))
    expected = stats.ttest_1samp(RANKS["twin"], 0).confidence_interval()
    assert row["95 % CI second"] == pytest.approx(tuple(expected))


def test_cosines_are_means_over_the_end_of_training(collection: Collection) -> None:
    runs = [run for run in collection.pretraining if (run.objective, run.seed) == ("maml", 1)]
    assert at_the_end(runs[0])["gradient cosine, episodes"] == pytest.approx(0.1)
    row = rows_of(collection)["maml minus twin", "gradient cosine, episodes"]
    gains = np.subtract(COSINES["maml"], COSINES["twin"])
    assert row["95 % CI Δ"] == pytest.approx(tuple(stats.ttest_1samp(gains, 0).confidence_interval()))


def test_an_arm_without_a_measure_has_an_empty_cell(collection: Collection) -> None:
    row = rows_of(collection)["maml minus vanilla", "gradient cosine, episodes"]
    assert row["first"] == pytest.approx(np.mean(COSINES["maml"]))
    assert row["second"] is row["Δ"] is None
    assert np.isnan(row["95 % CI Δ"]).all()


def test_contrasts_that_differ_in_the_tuning_alone_have_the_same_pretraining(collection: Collection) -> None:
    names = ["maml minus twin", "maml minus vanilla"]
    assert list(dict.fromkeys(name for name, _ in rows_of(collection))) == names
    assert [row[0] for row in means_table(collection).rows] == names
