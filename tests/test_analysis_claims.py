"""Claims: Holm's correction against the closed test, verdicts, families, variants against the base variant."""

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
from analysis.sections.base import ReportData, data_by_budget
from analysis.stats.verdicts import EFFECT
from analysis.tables import Table
from metapt.evaluation.bootstrap import holm


def test_holm_of_an_example() -> None:
    """As R's p.adjust(c(0.01, 0.04, 0.02, 0.05, 0.03), "holm")."""
    assert holm([0.01, 0.04, 0.02, 0.05, 0.03]) == pytest.approx([0.05, 0.09, 0.08, 0.09, 0.09])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_with_bonferroni(values: list[float]) -> None:
    """A hypothesis is rejected if every intersection with it is rejected (Marcus, Peritz and Gabriel 1976)."""
    indices = range(len(values))
    subsets = [part for size in range(1, len(values) + 1) for part in combinations(indices, size)]
    closed = [
        max(min(1.0, len(part) * min(values[other] for other in part)) for part in subsets if index in part)
        for index in indices
    ]
    assert holm(values) == pytest.approx(closed)


def test_holm_does_not_count_what_is_not_tested() -> None:
    nan = float("nan")
    assert holm([0.01, nan, 0.04]) == pytest.approx([0.02, nan, 0.04], nan_ok=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    """Two variants of MAML, and vanilla under the base variant; two tunings and three seeds."""
    root = write_grid(tmp_path_factory.mktemp("runs") / "grid", labels=("base",), seeds=(0, 1, 2))
    for seed in (0, 1, 2):
        origin = write_pretraining(root, "nano", "maml", seed, "fast")
        for tuning in ("head_only", "full"):
            write_finetuning(root, {**origin, "step": 60}, "en_ewt", tuning, 0.95)
    return data_by_budget(collect([root]), 500)["updates"]


def rows(data: ReportData, name: str) -> list[dict[str, object]]:
    (table,) = (table for table in claims.section(data).tables if table.name == name)
    return [dict(zip(heads(table), row, strict=True)) for row in table.rows]


def heads(table: Table) -> list[str]:
    return [column.head for column in table.columns]


def test_set_groups(data: ReportData) -> None:
    """Target sets, and sets in languages that no run was fine-tuned on."""
    assert claims.set_groups(data.collection) == {"target sets": ["ceb_gja", "tl_trg"], "other languages": []}
    names = ("en_pud", "sv_pud", "tl_trg", "en_ewt")
    collection = SimpleNamespace(_sources={"en_ewt"}, target_sets=lambda: ["tl_trg"], set_names=lambda: names)
    assert type(data.collection).other_language_sets(collection) == ["sv_pud"]  # type: ignore[arg-type]


def test_claims_are_means_over_sets_with_corrected_p(data: ReportData) -> None:
    table = rows(data, "claims")
    expected = [(variant, tuning) for variant in ("base", "fast") for tuning in ("full", "head_only")]
    assert [(row["variant"], row["tuning"]) for row in table] == expected
    assert [row["corrected p"] for row in table] == holm([row["p"] for row in table])  # type: ignore[misc]
    for row in table:
        means = [
            np.mean(
                [
                    data.scores.value(run, name)
                    for run in data.collection.finetuning
                    for name in ("tl_trg", "ceb_gja")
                    if (run.setting.variant, run.setting.tuning) == (row["variant"], row["tuning"])
                    and run.objective == objective
                ]
            )
            for objective in ("maml", "vanilla")
        ]
        assert row["MAML"] == pytest.approx(means[0])
        assert row["difference"] == pytest.approx(means[0] - means[1], abs=1e-6)
        assert row["comparisons"] == 2
    assert [row["verdict"] for row in table if row["variant"] == "fast"] == [EFFECT, EFFECT]


def test_variants_are_compared_with_base(data: ReportData) -> None:
    table = rows(data, "variants")
    assert [(row["variant"], row["tuning"]) for row in table] == [("fast", "full"), ("fast", "head_only")]
    against = {row["tuning"]: row for row in rows(data, "claims") if row["variant"] == "base"}
    itself = {row["tuning"]: row for row in rows(data, "claims") if row["variant"] == "fast"}
    for row in table:
        assert row["base"] == pytest.approx(against[row["tuning"]]["MAML"])
        assert row["this variant"] == pytest.approx(itself[row["tuning"]]["MAML"])
        assert row["difference"] == pytest.approx(row["this variant"] - row["base"], abs=1e-6)  # type: ignore[operator]
        low, high = row["95 % CI"]  # type: ignore[misc]
        assert low <= row["difference"] <= high


def test_without_a_pair_the_section_says_what_is_needed(tmp_path: Path) -> None:
    collection = collect([write_grid(tmp_path / "grid", objectives=("maml",))])
    section = claims.section(data_by_budget(collection, 100)["updates"])
    assert section.paragraphs == ["Needed: a MAML and a vanilla run with identical fine-tuning."]
    assert not section.without_empty_tables().tables
