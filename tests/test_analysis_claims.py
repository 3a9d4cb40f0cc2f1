"""What can be claimed: Holm's correction against the closed test, verdicts, families, variants against their base."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from analysis_runs import write_finetuning, write_grid, write_pretraining
from hypothesis import given
from hypothesis import strategies as st

from analysis.load.collect import collect
from analysis.sections import claims
from analysis.sections.base import Study, studies
from analysis.sections.claims import EFFECT, NONE, UNKNOWN
from analysis.stats.significance import Told
from analysis.tables import Table
from metapt.evaluation.bootstrap import holm


def test_holm_of_an_example() -> None:
    """That of R's p.adjust(c(0.01, 0.04, 0.02, 0.05, 0.03), "holm")."""
    assert holm([0.01, 0.04, 0.02, 0.05, 0.03]) == pytest.approx([0.05, 0.09, 0.08, 0.09, 0.09])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_with_bonferroni(values: list[float]) -> None:
    """A hypothesis falls when every intersection that it is part of falls (Marcus, Peritz and Gabriel 1976)."""
    places = range(len(values))
    subsets = [part for size in range(1, len(values) + 1) for part in combinations(places, size)]
    closed = [
        max(min(1.0, len(part) * min(values[other] for other in part)) for part in subsets if place in part)
        for place in places
    ]
    assert holm(values) == pytest.approx(closed)


@pytest.mark.parametrize(
    ("corrected", "interval", "said"),
    [
        (0.01, (0.01, 0.05), EFFECT),
        (0.01, (-0.05, -0.001), EFFECT),
        (0.01, (-0.001, 0.05), UNKNOWN),
        (0.2, (0.001, 0.05), UNKNOWN),
        (0.2, (-0.019, 0.019), NONE),
        (0.2, (-0.021, 0.019), UNKNOWN),
        (0.2, (-0.05, 0.05), UNKNOWN),
        (0.2, (np.nan, np.nan), UNKNOWN),
    ],
)
def test_verdicts(corrected: float, interval: tuple[float, float], said: str) -> None:
    assert claims.verdict(SimpleNamespace(told=Told(0.0, interval, 0.1)), corrected) == said  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two variants of MAML, that of `base` beside vanilla, in two tunings and of two seeds."""
    root = write_grid(tmp_path_factory.mktemp("runs") / "grid", labels=("base",), seeds=(0, 1))
    for seed in (0, 1):
        origin = write_pretraining(root, "nano", "maml", seed, "fast")
        for tuning in ("head_only", "full"):
            write_finetuning(root, {**origin, "step": 60}, "en_ewt", tuning, 0.95)
    return studies(collect([root]), 500)["updates"]


def rows(study: Study, name: str) -> list[dict[str, object]]:
    (table,) = (table for table in claims.section(study).tables if table.name == name)
    return [dict(zip(heads(table), row, strict=True)) for row in table.rows]


def heads(table: Table) -> list[str]:
    return [column.head for column in table.columns]


def test_sets_are_targets_or_in_languages_that_no_run_was_tuned_on(found: Study) -> None:
    assert claims.groups(found.collection) == {"target sets": ["ceb_gja", "tl_trg"], "other languages": []}
    names = ("en_pud", "sv_pud", "tl_trg", "en_ewt")
    collection = SimpleNamespace(_sources={"en_ewt"}, target_sets=lambda: ["tl_trg"], set_names=lambda: names)
    assert type(found.collection).other_sets(collection) == ["sv_pud"]  # type: ignore[arg-type]


def test_a_claim_is_the_mean_over_sets_and_corrected_in_its_family(found: Study) -> None:
    table = rows(found, "claims")
    rows_of = [(variant, tuning) for variant in ("base", "fast") for tuning in ("full", "head_only")]
    assert [(row["variant"], row["tuning"]) for row in table] == rows_of
    assert [row["corrected p"] for row in table] == holm([row["p"] for row in table])  # type: ignore[misc]
    for row in table:
        sides = [
            np.mean(
                [
                    found.scores.value(run, name)
                    for run in found.collection.finetuning
                    for name in ("tl_trg", "ceb_gja")
                    if (run.setting.variant, run.setting.tuning) == (row["variant"], row["tuning"])
                    and run.objective == objective
                ]
            )
            for objective in ("maml", "vanilla")
        ]
        assert row["MAML"] == pytest.approx(sides[0])
        assert row["difference"] == pytest.approx(sides[0] - sides[1], abs=1e-6)
        assert row["comparisons"] == 2
    assert [row["verdict"] for row in table if row["variant"] == "fast"] == [EFFECT, EFFECT]


def test_a_variant_stands_against_base(found: Study) -> None:
    table = rows(found, "variants")
    assert [(row["variant"], row["tuning"]) for row in table] == [("fast", "full"), ("fast", "head_only")]
    against = {row["tuning"]: row for row in rows(found, "claims") if row["variant"] == "base"}
    itself = {row["tuning"]: row for row in rows(found, "claims") if row["variant"] == "fast"}
    for row in table:
        assert row["base"] == pytest.approx(against[row["tuning"]]["MAML"])
        assert row["this variant"] == pytest.approx(itself[row["tuning"]]["MAML"])
        assert row["difference"] == pytest.approx(row["this variant"] - row["base"], abs=1e-6)  # type: ignore[operator]
        low, high = row["95 % interval"]  # type: ignore[misc]
        assert low <= row["difference"] <= high


def test_without_a_pair_it_is_said_what_is_needed(tmp_path: Path) -> None:
    collection = collect([write_grid(tmp_path / "grid", objectives=("maml",))])
    section = claims.section(studies(collection, 100)["updates"])
    assert section.paragraphs == ["Needed: a pair of a MAML and a vanilla run, tuned alike."]
    assert not section.pruned().tables
