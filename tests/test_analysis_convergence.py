"""t90, area and slope of curves with known values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from analysis_runs import write_grid
from scipy import stats

from analysis.load.collect import collect
from analysis.load.contrasts import Contrast
from analysis.stats.convergence import (
    WINDOW_FRACTION,
    mean_over_seeds,
    means_table,
    measure,
    pairs_table,
    smoothed,
)
from analysis.stats.pairing import pairing
from metapt.randomness import generator

CONTRAST = Contrast("maml", "vanilla")


def test_a_straight_line() -> None:
    steps = 1000
    found = measure(np.linspace(2.0, 0.0, steps))
    assert found.t90 == pytest.approx(0.9 * steps, abs=WINDOW_FRACTION * steps)
    assert found.area == pytest.approx(0.5, abs=WINDOW_FRACTION)
    assert found.slope == pytest.approx(-2.0 / (steps - 1))


@pytest.mark.parametrize("rate", [50, 100, 200])
def test_an_exponential(rate: float) -> None:
    """exp(-t / rate) reaches 90 % of its decrease at rate * ln 10, and its area is rate / steps."""
    steps = 4000
    found = measure(np.exp(-np.arange(steps) / rate))
    half = WINDOW_FRACTION * steps / 2
    assert rate * np.log(10) - half < found.t90 < rate * np.log(10) + half
    assert found.area == pytest.approx(rate / steps, abs=WINDOW_FRACTION)


def test_short_curves_are_not_smoothed() -> None:
    found = measure(np.array([1.0, 0.5, 0.15, 0.05, 0.0]))
    assert found.t90 == 4
    assert found.area == pytest.approx((0.5 + 0.5 + 0.15 + 0.05) / 4)
    assert found.slope == pytest.approx(-0.5)


def test_a_single_easy_batch_is_not_convergence() -> None:
    losses = np.linspace(1.0, 0.0, 400)
    losses[20] = 0.0
    assert measure(losses).t90 > 300


def test_noise_moves_t90_little() -> None:
    clean = 0.2 + np.exp(-np.arange(800) / 120)
    noisy = clean + generator(0, "test noise").normal(0, 0.1, 800)
    first_below = np.argmax(noisy <= noisy[0] - 0.9 * (noisy[0] - noisy[-1])) + 1
    assert abs(measure(noisy).t90 - measure(clean).t90) < 40
    assert abs(first_below - measure(clean).t90) > 40  # the reason for smoothing


def test_a_loss_that_does_not_fall_has_no_t90() -> None:
    for losses in (np.full(50, 1.0), np.linspace(1, 2, 50)):
        assert np.isnan(measure(losses).t90)
    assert measure(np.full(50, 1.0)).area == pytest.approx(1.0)


@pytest.mark.parametrize("losses", [[], [1.0], [1.0, np.nan, 0.5], [np.inf, 1.0, 0.5]])
def test_undefined_measures(losses: list[float]) -> None:
    found = measure(np.array(losses))
    assert np.isnan([found.t90, found.area, found.slope]).all()


def test_smoothing_equals_a_loop() -> None:
    losses = generator(1, "test curve").random(130)
    half = int(130 * WINDOW_FRACTION) // 2
    expected = [np.mean(losses[max(0, i - half) : i + half + 1]) for i in range(130)]
    np.testing.assert_allclose(smoothed(losses), expected)


def test_a_mean_is_over_sources_within_a_seed_first() -> None:
    by_source = [[(0, 1.0), (0, 3.0), (1, 4.0), (2, 6.0)], [(0, 4.0), (1, 8.0), (2, 0.0)]]
    found = mean_over_seeds(by_source)
    np.testing.assert_array_equal(found.values, [3.0, 6.0, 3.0])
    expected = stats.ttest_1samp(found.values, 0)
    assert found.value == 4
    assert found.interval == pytest.approx(tuple(expected.confidence_interval()))


def test_a_seed_counts_if_all_of_its_sources_have_a_value() -> None:
    found = mean_over_seeds([[(0, 1.0), (1, 2.0), (2, np.nan), (3, 5.0)], [(0, 3.0), (1, 4.0), (2, 1.0)]])
    np.testing.assert_array_equal(found.values, [2.0, 3.0])
    assert np.isnan(mean_over_seeds([[(0, 1.0)], [(1, 1.0)]]).value)


def test_intervals_over_three_seeds_cover_the_truth() -> None:
    """Sources share their seeds: a bootstrap of three sources, and of the pairs in them, covers far too little."""
    draw = generator(5, "coverage of convergence")
    trials = 4000
    seeds, own = draw.normal(0, 1, (trials, 1, 3)), draw.normal(0, 0.5, (trials, 3, 3))
    covered = 0
    for values in seeds + own:
        low, high = mean_over_seeds([list(enumerate(of_source)) for of_source in values.tolist()]).interval
        covered += low <= 0 <= high
    assert covered / trials == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / trials))


@pytest.mark.parametrize("seeds", [2, 3])
def test_the_table_has_intervals_from_three_seeds_on(tmp_path: Path, seeds: int) -> None:
    root = write_grid(
        tmp_path / "grid", sources=("en_ewt", "sk_snk"), tunings=("head_only",), seeds=range(seeds)
    )
    pairs = pairing(collect([root]), CONTRAST).pairs
    table = means_table([(CONTRAST, "updates", pairs)])
    (row,) = table.rows
    cells = dict(zip([column.head for column in table.columns], row, strict=True))
    low, high = cells["95 % CI Δ area"]
    assert cells["seeds"] == seeds
    assert cells["pairs"] == 2 * seeds
    assert cells["Δ area"] < 0  # in the fixture, MAML is faster
    if seeds == 3:
        assert low < cells["Δ area"] < high
    else:
        assert np.isnan([low, high]).all()


def test_pairs_of_one_training_seed_are_one_seed(tmp_path: Path) -> None:
    root = write_grid(tmp_path / "grid", tunings=("head_only",), seeds=(0, 1))
    ((setting, pairs),) = pairing(collect([root]), CONTRAST).pairs.items()
    table = pairs_table(CONTRAST, {setting: [*pairs, *pairs]})  # as with two seeds of fine-tuning
    assert table.rows[0][[column.head for column in table.columns].index("seeds")] == 2


def test_every_contrast_has_its_rows(tmp_path: Path) -> None:
    root = write_grid(
        tmp_path / "grid", sources=("en_ewt", "sk_snk"), tunings=("head_only", "full"), seeds=range(3)
    )
    collection = collect([root])
    contrasts = [CONTRAST, Contrast("vanilla", "maml")]
    table = means_table((contrast, "updates", pairing(collection, contrast).pairs) for contrast in contrasts)
    heads = [column.head for column in table.columns]
    assert "matched budget" not in heads  # there is only one
    there, back = (
        {row[heads.index("tuning")]: row for row in table.rows if row[0] == str(contrast)}
        for contrast in contrasts
    )
    assert there.keys() == back.keys() == {"head_only", "full"}
    for name in ("Δ t90 (steps)", "Δ area", "Δ slope"):
        index = heads.index(name)
        for tuning, row in there.items():
            assert row[index] == pytest.approx(-back[tuning][index])
            assert row[index + 1] == pytest.approx(
                tuple(-limit for limit in reversed(back[tuning][index + 1]))
            )
