"""The report says whether the episodes of a run are learned, from paired accuracies on held-out words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from analysis_runs import write_pretraining

from analysis.load.collect import collect
from analysis.sections.learning_dynamics import learned_episodes


def set_accuracies(root: Path, accuracies: list[float]) -> None:
    """Store accuracies of prototypes on held-out words in every measurement of the run in this folder."""
    (file,) = root.glob("**/metrics.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        if line["kind"] == "dynamics":
            line |= {"held_out_words_prototype_accuracy": accuracies, "held_out_words_chance": 0.125}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("gain", "verdict"), [(0.2, "learned"), (-0.2, "not learned"), (0.0, "inconclusive")]
)
def test_the_verdict_is_that_of_the_paired_interval(tmp_path: Path, gain: float, verdict: str):
    draw = np.random.default_rng(0)
    vanilla = draw.uniform(0.3, 0.6, 16)
    maml = vanilla + gain + draw.normal(0, 0.05, 16)
    for objective, accuracies in (("vanilla", vanilla), ("maml", maml)):
        write_pretraining(tmp_path / objective, objective=objective)
        set_accuracies(tmp_path / objective, accuracies.tolist())
    (sentence,) = learned_episodes(collect([tmp_path / "vanilla", tmp_path / "maml"]))
    assert f": {verdict}. On word classes that no training sees" in sentence
    assert f"{maml.mean():.3f} (nano-vanilla-s0 {vanilla.mean():.3f}, chance 0.125)" in sentence


def test_runs_without_word_classes_have_no_verdict(tmp_path: Path):
    for objective in ("vanilla", "maml"):
        write_pretraining(tmp_path / objective, objective=objective)
    assert learned_episodes(collect([tmp_path / "vanilla", tmp_path / "maml"])) == []
