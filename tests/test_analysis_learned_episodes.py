"""The report says whether the episodes of a run are learned, from paired accuracies on held-out words."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analysis_runs import write_pretraining
from scipy import stats

from analysis.load.collect import collect
from analysis.load.contrasts import Contrast
from analysis.sections.learning_dynamics import dynamics_means_table, learned_episodes, means_table
from analysis.stats.pretraining_means import losses_at_common_budget, pretraining_means


def set_accuracies(root: Path, accuracies: list[float]) -> None:
    """Store accuracies of prototypes on held-out words in every measurement of the run in this folder."""
    (file,) = root.glob("**/metrics.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        if line["kind"] == "dynamics":
            line |= {"held_out_words_prototype_accuracy": accuracies, "held_out_words_chance": 0.125}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_runs(
    root: Path,
    accuracies: dict[str, list[np.ndarray]],
    settings: dict[str, dict[str, Any]] | None = None,
) -> Path:
    """Write pretraining runs of seeds 0, 1, ... with these accuracies, by objective; with these settings if it has some."""
    for objective, of_seeds in accuracies.items():
        for seed, of_episodes in enumerate(of_seeds):
            folder = root / f"{objective}{seed}"
            write_pretraining(
                folder, objective=objective, seed=seed, settings=(settings or {}).get(objective)
            )
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


def test_seeds_are_those_that_were_measured(tmp_path: Path):
    """Of four seeds, the first has no accuracies and the last no perplexity in one arm."""
    root = write_runs(tmp_path, {name: [np.full(8, 0.4)] * 4 for name in ("vanilla", "maml")})
    for name, kinds in (("maml0", "dynamics"), ("vanilla3", "eval")):
        (file,) = root.glob(f"{name}/**/metrics.jsonl")
        lines = [line for line in file.read_text().splitlines() if json.loads(line)["kind"] != kinds]
        file.write_text("\n".join(lines) + "\n")
    collection = collect([root])
    table = means_table(collection)
    row = dict(zip([column.head for column in table.columns], table.rows[0], strict=True))
    assert (row["seeds"], row["held-out words, seeds"]) == (3, 3)
    assert row["held-out words, first"] == pytest.approx(0.4)
    assert {row[2] for row in dynamics_means_table(collection).rows} == {3}


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


@pytest.mark.parametrize(
    ("key", "values", "same"),
    [
        ("classes.sizes", ([64, 64], [64, 32]), False),
        ("classes.words", (20_000, 10_000), False),
        ("classes.shuffle_band", (0, 500), True),  # which leaves the held-out partition alone
        ("train.lr", (1e-3, 2e-3), True),
    ],
)
def test_accuracies_in_other_partitions_are_not_compared(
    tmp_path: Path, key: str, values: tuple[Any, Any], same: bool
):
    objectives = ("vanilla", "multitask")
    settings = {objective: {key: value} for objective, value in zip(objectives, values, strict=True)}
    root = write_runs(tmp_path, {objective: [np.full(8, 0.4)] * 3 for objective in objectives}, settings)
    contrast = Contrast("multitask", "vanilla", may_differ=("train.lr",))
    (pairs,) = pretraining_means(collect([root], contrasts=[contrast]))
    assert np.isfinite(pairs.accuracy_gain.value) == same
    assert np.isfinite(pairs.accuracies).all() == same
    assert np.isfinite(pairs.log_perplexity.value)


def test_a_seed_counts_once_for_each_corpus(tmp_path: Path):
    for corpus, seed, objective in product(("one", "two"), range(3), ("vanilla", "maml")):
        write_pretraining(tmp_path / corpus, objective=objective, seed=seed, corpus=corpus)
    rows = means_table(collect([tmp_path / "one", tmp_path / "two"])).rows
    assert [row[1:4] for row in rows] == [["nano", "corpus=one", 3], ["nano", "corpus=two", 3]]


def test_only_comparisons_with_vanilla_say_whether_classes_are_learned(tmp_path: Path):
    """Two objectives that both learn them differ by 0, and that is no reason to doubt it."""
    arms = {"vanilla": 0.3, "maml": 0.5, "twin": 0.5}
    root = write_runs(tmp_path, {arm: [np.full(8, accuracy)] * 3 for arm, accuracy in arms.items()})
    contrasts = [Contrast("maml", "vanilla"), Contrast("maml", "twin")]
    collection = collect([root], contrasts=contrasts)
    (sentence,) = learned_episodes(collection)
    assert sentence.startswith("Held-out words, maml minus vanilla, nano: learned.")
    assert len(means_table(collection).rows) == 2


def test_runs_without_word_classes_have_no_verdict(tmp_path: Path):
    for objective in ("vanilla", "maml"):
        write_pretraining(tmp_path / objective, objective=objective)
    assert learned_episodes(collect([tmp_path / "vanilla", tmp_path / "maml"])) == []
