"""F1, means and differences of fake runs: documented formulas, exact enumeration of swaps, invariants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from span_counts import binary, random_counts

from analysis.load.records import GoldSet
from analysis.stats.significance import Scores, average, average_difference
from metapt.evaluation.bootstrap import f1_samples, micro_f1, swap_bits
from metapt.evaluation.f1_interval import f1_difference_interval, f1_interval
from metapt.randomness import generator


def gold_set(name: str, counts: np.ndarray, documents: Sequence[str] = ()) -> GoldSet:
    """A gold set for counts [sentences, 3]; all gold spans are alike."""
    spans = tuple((("PER", 0, 1),) * count for count in counts[:, 2].tolist())
    ids = tuple(map(str, range(len(spans))))
    return GoldSet(name, ids, (("word",),) * len(ids), spans, tuple(documents))


def run(
    name: str, counts: Mapping[str, np.ndarray], golds: Mapping[str, Any], seed: int = 0, **kwargs: Any
) -> Any:
    """A run with these counts [sentences, 3] on sets."""
    sets = {
        key: SimpleNamespace(
            gold=golds[key], counts=part, totals=tuple(part.sum(axis=0)), f1=float(micro_f1(part.sum(axis=0)))
        )
        for key, part in counts.items()
    }
    return SimpleNamespace(path=Path(name), seeds=(seed, seed), is_baseline=False, sets=sets, **kwargs)


def runs_on(counts: np.ndarray, name: str = "set", label: str = "run") -> list[Any]:
    """Runs with counts [runs, sentences, 3] on one set, one for each seed."""
    gold = gold_set(name, counts[0])
    return [run(f"{label}{seed}", {name: part}, {name: gold}, seed) for seed, part in enumerate(counts)]


def pairs_on(counts: np.ndarray, name: str = "set", documents: Sequence[str] = ()) -> list[tuple[Any, Any]]:
    """Pairs of runs with counts [2, seeds, sentences, 3]."""
    gold = gold_set(name, counts[0, 0], documents)
    return [
        (
            run(f"a{seed}", {name: first}, {name: gold}, seed),
            run(f"b{seed}", {name: second}, {name: gold}, seed),
        )
        for seed, (first, second) in enumerate(zip(*counts, strict=True))
    ]


def test_a_set_without_gold_spans_has_no_interval() -> None:
    counts = random_counts(2, 12)
    counts[..., [0, 2]] = 0
    assert np.isnan(f1_samples(counts, "set", resamples=50)).all()
    mean = Scores(50).mean(runs_on(counts), "set")
    assert np.isnan([mean.value, *mean.interval]).all()


def noisy_pairs(name: str = "set", sentences: int = 60, seeds: int = 3) -> list[tuple[Any, Any]]:
    """Pairs of runs that find 60 and 40 % of the spans, one span a sentence."""
    draw = generator(8, "pairs", sentences, seeds)
    hits = draw.random((2, seeds, sentences)) < np.array([0.6, 0.4])[:, None, None]
    return pairs_on(binary(hits.astype(int)), name)


def test_the_half_width_of_a_difference_is_the_documented_formula() -> None:
    found = Scores().difference(noisy_pairs(), "set")
    values = np.array([one.sets["set"].f1 - other.sets["set"].f1 for one, other in noisy_pairs()])
    counts = np.array([[one.sets["set"].counts for one in pair] for pair in noisy_pairs()]).swapaxes(0, 1)
    samples = np.subtract(*(f1_samples(side, "set").mean(axis=0) for side in counts))
    units = stats.t.ppf(0.975, 59) ** 2 * samples.var(dtype=float) * 60 / 59
    half = np.sqrt(stats.t.ppf(0.975, 2) ** 2 * values.var(ddof=1) / 3 + units)
    assert found.value == pytest.approx(values.mean())
    assert found.interval == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-5)
    assert found.by_seed == pytest.approx(dict(enumerate(values)))
    assert found.unit == "pretraining seed"
    assert (found.seeds, found.degrees_of_freedom) == (3, 2)


def test_the_same_run_on_both_sides_differs_by_exactly_0() -> None:
    """Whatever other pairs and variants were compared before."""
    scores = Scores(500)
    pairs = noisy_pairs()
    scores.difference(pairs, "set")
    same = scores.difference([(one, one) for one, _ in pairs], "set")
    assert same.interval == (0, 0)
    assert same.value == 0
    assert same.p == same.p_given_models == 1
    assert not same.excludes_zero


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("skill", [0.0, 0.5, 1.0])
def test_two_runs_that_find_the_same_spans_may_differ_elsewhere(skill: float, seeds: int) -> None:
    hits = np.repeat((generator(9, "twins").random((1, 1, 50)) < skill).astype(int), 2, axis=0)
    found = Scores(500).difference(pairs_on(binary(np.repeat(hits, seeds, axis=1))), "set")
    low, high = found.interval
    assert found.value == 0
    assert low < 0 < high
    assert high - low < 0.25
    assert not found.excludes_zero


def test_no_number_depends_on_names_or_order() -> None:
    pairs = noisy_pairs()
    renamed = [
        tuple(
            SimpleNamespace(**{**vars(side), "path": Path(f"{9 - index}/{number}")})
            for number, side in enumerate(pair)
        )
        for index, pair in enumerate(pairs)
    ]
    one, other = Scores(500).difference(pairs, "set"), Scores(500).difference(renamed[::-1], "set")  # type: ignore[arg-type]
    for name in ("value", "interval", "p", "mde", "p_given_models"):
        assert getattr(one, name) == getattr(other, name)
    assert one.first.interval == other.first.interval


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 30), st.integers(0, 2**32 - 1))
def test_exchanging_the_systems_changes_the_sign(sentences: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    counts = binary(draw.integers(0, 2, (2, 3, sentences)))
    counts[..., 1] += draw.integers(0, 2, (2, 3, sentences))
    one, other = (Scores(300).difference(pairs_on(part), "set") for part in (counts, counts[::-1]))
    assert one.value == -other.value
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]))
    np.testing.assert_allclose(one.swapped, -other.swapped, atol=1e-12)
    assert one.p_given_models == other.p_given_models
    assert one.p == pytest.approx(other.p)


def test_fine_tuning_seeds_are_averaged_within_a_pretraining_seed() -> None:
    """Six fine-tunings of three pretrained models are three seeds, with equal weights."""
    pairs = noisy_pairs(seeds=6)
    seeds = (0, 0, 0, 1, 1, 2)
    for seed, pair in zip(seeds, pairs, strict=True):
        for index, side in enumerate(pair):
            side.seeds = (seed, index)
    found = Scores(500).difference(pairs, "set")
    values = np.array([one.sets["set"].f1 - other.sets["set"].f1 for one, other in pairs])
    assert found.by_seed == pytest.approx({0: values[:3].mean(), 1: values[3:5].mean(), 2: values[5]})
    assert found.seeds == 3
    assert found.swapped.mean() == pytest.approx(0, abs=0.02)


def test_models_of_others_have_fine_tuning_seeds() -> None:
    pairs = noisy_pairs()
    for seed, pair in enumerate(pairs):
        for side in pair:
            side.seeds = (None, seed)
    assert Scores(100).difference(pairs, "set").unit == "fine-tuning seed"
    baseline = pairs[0][1]
    baseline.is_baseline, baseline.seeds = True, (None, 0)
    against = [(one, baseline) for one, _ in pairs]
    assert Scores(100).difference(against, "set").seeds == 3
    assert Scores(100).difference([(two, one) for one, two in against], "set").seeds == 3


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_or_two_seeds_have_no_p(seeds: int) -> None:
    found = Scores(500).difference(noisy_pairs(seeds=seeds), "set")
    assert np.isnan([found.p, found.mde]).all()
    assert not found.excludes_zero
    assert found.interval[0] < found.value < found.interval[1]
    assert 0 < found.p_given_models <= 1


def test_a_single_run_has_the_interval_of_its_result_file() -> None:
    (one, *_), *_ = noisy_pairs()
    assert Scores(100).mean([one], "set").interval == f1_interval(one.sets["set"].counts)


def test_intervals_close_to_0_are_those_of_mover() -> None:
    """The bootstrap of systems that find nothing does not vary; 30 gold spans do not show that F1 is 0."""
    counts = binary(np.zeros((2, 3, 30), dtype=int))
    counts[1, :, 0, 0] = 1
    found = Scores(2000).difference(pairs_on(counts), "set")
    assert found.interval == pytest.approx(f1_difference_interval(counts[0, 0], counts[1, 0]))
    alone = Scores(2000).mean([one for one, _ in pairs_on(counts)], "set")
    assert alone.interval == pytest.approx(f1_interval(counts[0, 0]))


def test_relative_gain() -> None:
    pairs = noisy_pairs()
    found = Scores(2000).difference(pairs, "set")
    gain = found.relative_gain
    assert gain.value == pytest.approx(found.first.value / found.second.value - 1)
    itself = Scores(2000).difference([(one, one) for one, _ in pairs], "set")
    assert itself.relative_gain.interval == pytest.approx((0, 0))
    low, high = gain.interval
    assert low < gain.value < high


def test_relative_gain_of_systems_that_find_nothing() -> None:
    """What 30 sentences without a span found leave open counts here too; relative to nothing there is no gain."""
    counts = binary(np.zeros((2, 3, 30), dtype=int))
    counts[1, :, :15, 0] = 1
    counts[1, :, :15, 1] = 1
    pairs = pairs_on(counts)
    found = Scores(2000).difference(pairs, "set")
    assert found.first.value == 0
    assert found.relative_gain.value == -1
    _, high = found.relative_gain.interval
    assert (high + 1) * found.second.value > 0.5 * found.first.interval[1] > 0
    reverse = Scores(100).difference([(second, first) for first, second in pairs], "set").relative_gain
    assert np.isnan([reverse.value, *reverse.interval]).all()


def grid(seeds: Sequence[Sequence[int]], name: str = "set") -> list[Any]:
    """Differences on one set, one for each list of seeds (each is a source with a tuning)."""
    pairs = noisy_pairs(name, seeds=6)
    scores = Scores(500)
    return [scores.difference([pairs[seed] for seed in part], name) for part in seeds]


def test_an_average_is_over_the_seeds_that_all_parts_have() -> None:
    parts = grid([(0, 1, 2, 3), (1, 2, 3), (3, 2, 5, 1)])
    found = average_difference(parts)
    assert list(found.by_seed) == [1, 2, 3]
    assert found.by_seed == pytest.approx(
        {s: np.mean([part.by_seed[s] for part in parts]) for s in (1, 2, 3)}
    )
    (balanced,) = grid([(1, 2, 3)])
    np.testing.assert_allclose(found.swapped, balanced.swapped, atol=1e-12)
    assert found.interval == pytest.approx(balanced.interval)
    again = average_difference([found, *grid([(2, 3, 4)])])
    assert list(again.by_seed) == [2, 3]
    assert np.isnan(again.p)


def test_without_a_common_seed_there_is_no_verdict() -> None:
    parts = grid([(0, 1, 2), (3, 4, 5)])
    found = average_difference(parts)
    assert found.value == pytest.approx(np.mean([part.value for part in parts]))
    assert found.seeds == 1
    assert np.isnan(found.p)
    assert not found.excludes_zero
    assert np.isfinite(found.interval).all()


def test_sets_are_independent_in_an_average_and_sources_are_not() -> None:
    """The variance over units of a mean of two equal parts: that of one on the same set, half of it on two sets."""
    (one,), (other,) = grid([(0, 1, 2)], "a"), grid([(0, 1, 2)], "b")
    same, apart = average_difference([one, one]), average_difference([one, other])
    assert same.inference.unit_variance == pytest.approx(one.inference.unit_variance, rel=1e-5)
    expected = (one.inference.unit_variance + other.inference.unit_variance) / 4
    assert apart.inference.unit_variance == pytest.approx(expected, rel=1e-5)
    assert apart.by_seed == pytest.approx(one.by_seed)
    mean = average([one.first, other.first])
    assert mean.value == pytest.approx(one.first.value)
    assert mean.inference.unit_variance < one.first.inference.unit_variance


def test_documents_are_resampled_and_swapped_as_a_whole() -> None:
    """A set of documents is a set whose sentences are the documents."""
    draw = generator(12, "documents")
    counts = binary((draw.random((2, 3, 60)) < np.array([0.7, 0.4])[:, None, None]).astype(int))
    documents = [f"text {index // 4}" for index in range(60)]
    summed = counts.reshape(2, 3, 15, 4, 3).sum(axis=3)
    found = Scores(500).difference(pairs_on(counts, documents=documents), "set")
    expected = Scores(500).difference(pairs_on(summed), "set")
    for name in ("value", "interval", "p", "mde", "p_given_models"):
        assert getattr(found, name) == getattr(expected, name)
    alone, whole = (
        Scores(100).mean([pairs_on(part, documents=names)[0][0]], "set").interval
        for part, names in ((counts, documents), (summed, ()))
    )
    assert alone == whole


SETS = {"tl": 33, "ceb": 49}


def low_grid(found: int, trial: int) -> tuple[list[tuple[str, np.ndarray]], dict[str, np.ndarray]]:
    """A grid of 3 sources x 2 tunings x 2 sets x 3 seeds where vanilla finds up to `found` spans of a set, and MAML none.

    Returns: for each source and tuning on a set: its name and counts [2, seeds, sentences, 3]; and the sentences of each
        set in which any pair differs.
    """
    draw = generator(11, "low grid", found, trial)
    parts = []
    for _ in range(6):
        for name, sentences in SETS.items():
            counts = np.ones((2, 3, sentences, 3), dtype=int)
            counts[..., :2] = 0
            counts[1, :, :found, :2] = (draw.random((3, found)) < 0.3)[..., None]
            parts.append((name, counts))
    differing = {
        name: np.flatnonzero(np.any([(c[0] != c[1]).any(axis=(0, 2)) for n, c in parts if n == name], axis=0))
        for name in SETS
    }
    return parts, differing


def swapped_mean(parts: Sequence[tuple[str, np.ndarray]], swaps: Mapping[str, np.ndarray]) -> np.ndarray:
    """The mean difference [arrangements] after swapping sentences, bool [arrangements, sentences] by set, in fp64."""
    gaps = []
    for name, counts in parts:
        for first, second in zip(*counts, strict=True):
            change = (second - first).astype(np.float64)
            moved = swaps[name].astype(np.float64) @ change
            one, other = first.sum(axis=0) + moved, second.sum(axis=0) - moved
            gaps.append(
                2 * one[:, 0] / (one[:, 1] + one[:, 2]) - 2 * other[:, 0] / (other[:, 1] + other[:, 2])
            )
    return np.mean(gaps, axis=0)


def exact_p_of_sets(parts: Sequence[tuple[str, np.ndarray]], differing: Mapping[str, np.ndarray]) -> float:
    """Enumerate the swaps of the differing sentences of each set; the mean difference is a sum over sets."""
    by_set = []
    for name in SETS:
        of_set = [part for part in parts if part[0] == name]
        sentences = of_set[0][1].shape[2]
        swaps = np.zeros((2 ** len(differing[name]), sentences), dtype=bool)
        swaps[:, differing[name]] = list(product((False, True), repeat=len(differing[name])))
        by_set.append(swapped_mean(of_set, {name: swaps}) / len(SETS))
    sums = np.add.outer(*by_set).ravel()
    return float(np.mean(np.abs(sums) >= abs(sums[0]) - 1e-9))


def average_of(parts: Sequence[tuple[str, np.ndarray]], resamples: int = 10_000) -> Any:
    scores = Scores(resamples)
    differences = []
    for index, (name, counts) in enumerate(parts):
        pairs = pairs_on(counts, name)
        for pair in pairs:
            for side in pair:
                side.path = Path(str(index)) / side.path
        differences.append(scores.difference(pairs, name))
    return average_difference(differences)


@pytest.mark.parametrize("found", [1, 2, 3])
@pytest.mark.parametrize("trial", range(5))
def test_p_of_an_average_at_low_f1_is_that_of_all_arrangements(found: int, trial: int) -> None:
    """Averaged in fp32, a fifth of these p-values were wrong, such as 0.0001 instead of 1."""
    parts, differing = low_grid(found, trial)
    exact = exact_p_of_sets(parts, differing)
    error = np.sqrt(exact * (1 - exact) / 10_000)
    assert average_of(parts).p_given_models == pytest.approx(exact, abs=4 * error + 2e-4)


@pytest.mark.parametrize("found", [1, 3, 5])
def test_p_of_an_average_equals_fp64_on_the_same_swaps(found: int) -> None:
    parts, _ = low_grid(found, 9)
    swaps = {
        name: np.unpackbits(swap_bits(sentences, name, 2000), axis=1, count=2000).T.astype(bool)
        for name, sentences in SETS.items()
    }
    samples = swapped_mean(parts, swaps)
    observed = swapped_mean(parts, {name: np.zeros((1, size), dtype=bool) for name, size in SETS.items()})[0]
    expected = (1 + np.count_nonzero(np.abs(samples) >= abs(observed) - 1e-9)) / 2001
    assert average_of(parts, 2000).p_given_models == pytest.approx(expected)
