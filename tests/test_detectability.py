"""What a dry run says about the comparisons of a grid, and the effect that it promises, against the noncentral t."""

from __future__ import annotations

import re

import pytest
from scipy.optimize import brentq
from scipy.stats import nct, t

from metapt.config import commandline
from metapt.evaluation.seed_inference import planned_mde
from metapt.launch import grid as planning
from metapt.launch.detectability import detectable_effects


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("tests", [1, 6])
def test_the_effect_is_that_of_a_t_test(seeds: int, tests: int) -> None:
    """The power of a two-sided t-test, without the tail of the wrong sign, is 80 %."""
    limit = t.isf(0.05 / tests / 2, seeds - 1)
    shift = brentq(lambda mean: nct.sf(limit, seeds - 1, mean) - 0.8, 0.1, 200)
    assert planned_mde(seeds, 2.0, tests) == pytest.approx(2.0 * shift / seeds**0.5, rel=0.01)


def lines(*words: str) -> list[str]:
    config = commandline.load("submit", ["cluster=local", "grid=demo", *words])
    return list(detectable_effects(planning.plan(config)))


def test_one_seed_gives_no_verdict() -> None:
    (line,) = lines()
    assert line.startswith("comparisons: 1 seed: no verdict.")


@pytest.mark.parametrize(
    ("words", "family"),
    [
        ((), 2),
        (("grid.tunings=[full]",), 1),
        (("grid.objectives=[vanilla,maml,maml_paper]",), 4),
        (("grid.comparisons=[{first: maml, second: vanilla, tunings: [full]}]",), 1),
        (("grid.variants={a: [], b: ['meta.inner_lr=0.1']}",), 4),
    ],
)
def test_the_family_is_counted(words: tuple[str, ...], family: int) -> None:
    """Objectives other than vanilla, or what the grid declares, by size, variant and tuning."""
    (line,) = lines("grid.seeds=[0,1,2,3,4]", *words)
    assert re.search(r"5 seeds, (\d+) primary comparison", line)[1] == str(family)  # type: ignore[index]
    assert f"about {planned_mde(5, 2 * 2**0.5, family):.1f} F1 points" in line


def test_a_grid_without_primary_comparisons_says_nothing() -> None:
    assert lines("grid.comparisons=[{first: maml, second: vanilla, primary: false}]") == []
    assert lines("grid.objectives=[vanilla]") == []
