"""The report says whether the episodes of a run are learned, from paired accuracies on held-out words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from analysis_runs import write_pretraining
from scipy import stats

from analysis.load.collect import collect
from analysis.sections.learning_dynamics import learned_episodes, means_table
from analysis.stats.pretraining_means import losses_at_common_budget, pretraining_means


def set_accuracies(root: Path, accuracies: list[float]) -> None:
    """Store accuracies of prototypes on held-out words in every measurement of the run in this folder."""
    (file,) = root.glob("**/metrics.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        if line["kind"] == "dynamics":
            line |= {"held_out_words_prototype_accuracy": accuracies, "held_out_words_chance": 0.125}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_runs(root: Path, accuracies: dict[str, list[np.ndarray]]) -> Path:
    """Write pretraining runs of seeds 0, 1, ... with these accuracies, by objective."""
    for objective, of_seeds in accuracies.items():
        for seed, of_episodes in enumerate(of_seeds):
            folder = root / f"{objective}{seed}"
            write_pretraining(folder, objective=objective, seed=seed)
            set_accuracies(folder, of_episodes.tolist())
    return root


@pytest.mark.parametrize(
    ("gain", "verdict"), [(0.2, "learned"), (-0.2, "not learned"), (0.0, "inconclusive")]
)
def test_with_one_seed_the_interval_is_over_episodes(tmp_path: Path, gain: float, verdict: str):
    draw = np.random.default_rng(0)
    vanilla = draw.uniform(0.3, 0.6, 16)
    maml = vanilla + gain + draw.normal(0, 0.05, 16)
    root = write_runs(tmp_path, {"vanilla": [vanilla], "maml": [maml]})
    (sentence,) = learned_episodes(collect([root]))
    assert f"maml minus vanilla, nano: {verdict}. On word classes that no training sees" in sentence
    assert f"{maml.mean():.3f} (second arm {vanilla.mean():.3f}, chance 0.125)" in sentence
    margin = 1.959964 * np.std(maml - vanilla, ddof=1) / 4
    low, high = (maml - vanilla).mean() + np.array([-margin, margin])
    assert f"95 % CI [{low:+.3f}, {high:+.3f}] (1 seed)" in sentence


def test_means_over_seeds_equal_those_of_scipy(tmp_path: Path):
    """Episodes that agree contribute nothing, so that the interval is that of a t-test over seeds."""
    gains = [0.10, 0.14, 0.18, 0.02]
    arms = {"vanilla": [np.full(8, 0.4)] * 4, "maml": [np.full(8, 0.4 + gain) for gain in gains]}
    collection = collect([write_runs(tmp_path, arms)])
    (pairs,) = pretraining_means(collection)
    expected = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert pairs.accuracy_gain.interval == pytest.approx(tuple(expected))
    (row,) = means_table(collection).rows
    assert row[:3] == ["maml minus vanilla", "nano", 4]


def test_the_ratio_of_perplexities_is_a_geometric_mean_at_equal_next_token_tokens(tmp_path: Path):
    root = write_runs(tmp_path, {name: [np.full(8, 0.4)] * 3 for name in ("vanilla", "maml")})
    (pairs,) = pretraining_means(collect([root]))
    logs = []
    for first, second in pairs.pairs:
        _, (loss, other) = losses_at_common_budget(first, second, "next-token tokens")
        logs.append(loss - other)
    assert pairs.log_perplexity.interval == pytest.approx(
        tuple(stats.ttest_1samp(logs, 0).confidence_interval(0.95))
    )
    ratio = means_table(collect([root])).rows[0][3]
    assert ratio == pytest.approx(np.prod(np.exp(logs)) ** (1 / 3))


def test_runs_without_word_classes_have_no_verdict(tmp_path: Path):
    for objective in ("vanilla", "maml"):
        write_pretraining(tmp_path / objective, objective=objective)
    assert learned_episodes(collect([tmp_path / "vanilla", tmp_path / "maml"])) == []
