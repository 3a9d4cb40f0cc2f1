"""Claims: Holm's correction against the closed test, verdicts, families, variants against the base variant."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from analysis_runs import write_baseline, write_finetuning, write_grid, write_pretraining
from hypothesis import given
from hypothesis import strategies as st

from analysis.load.collect import collect
from analysis.load.contrasts import Contrast, declared_contrasts
from analysis.sections import baseline_rows, claims, comparisons, lead
from analysis.sections.base import ReportData, Views, views
from analysis.stats.verdicts import INCONCLUSIVE, NEGLIGIBLE
from analysis.tables import Table
from metapt.errors import UserError
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
def shown(tmp_path_factory: pytest.TempPathFactory) -> Views:
    """Two variants of MAML, and vanilla under the base variant; two tunings and three seeds."""
    root = write_grid(tmp_path_factory.mktemp("runs") / "grid", labels=("base",), seeds=(0, 1, 2))
    for seed in (0, 1, 2):
        origin = write_pretraining(root, "nano", "maml", seed, "fast")
        for tuning in ("head_only", "full"):
            write_finetuning(root, {**origin, "step": 60}, "en_ewt", tuning, 0.95)
    return views(collect([root]), 500, None, "updates")


@pytest.fixture(scope="module")
def data(shown: Views) -> ReportData:
    return shown.first


def rows(shown: Views, name: str) -> list[dict[str, Any]]:
    (table,) = (table for table in claims.section(shown).tables if table.name == name)
    return [dict(zip(heads(table), row, strict=True)) for row in table.rows]


def heads(table: Table) -> list[str]:
    return [column.head for column in table.columns]


def test_set_groups(data: ReportData) -> None:
    """Target sets, and sets in languages that no run was fine-tuned on."""
    assert claims.set_groups(data.collection) == {"target sets": ["ceb_gja", "tl_trg"], "other languages": []}
    names = ("en_pud", "sv_pud", "tl_trg", "en_ewt")
    collection = SimpleNamespace(_sources={"en_ewt"}, target_sets=lambda: ["tl_trg"], set_names=lambda: names)
    assert type(data.collection).other_language_sets(collection) == ["sv_pud"]  # type: ignore[arg-type]


def test_claims_are_means_over_sets_with_corrected_p(shown: Views, data: ReportData) -> None:
    table = [row for row in rows(shown, "claims") if row["comparison"] == "maml minus vanilla"]
    expected = [(variant, tuning) for variant in ("base", "fast") for tuning in ("full", "head_only")]
    assert [(row["variant"], row["tuning"]) for row in table] == expected
    assert [row["corrected p"] for row in table] == holm([row["p"] for row in table])
    for row in table:
        means = [
            np.mean(
                [
                    data.scores.value(run, name)
                    for run in data.collection.finetuning
                    for name in ("tl_trg", "ceb_gja")
                    if (run.setting.variant, run.setting.tuning) == (variant, row["tuning"])
                    and run.objective == objective
                ]
            )
            for objective, variant in (("maml", row["variant"]), ("vanilla", "base"))
        ]
        assert row["first"] == pytest.approx(means[0])
        assert row["difference"] == pytest.approx(means[0] - means[1], abs=1e-6)
        assert row["comparisons"] == 2


def test_claims_by_set(shown: Views, data: ReportData) -> None:
    """Differences of means over the runs of a set; over sets their mean is that of the claim."""
    table = [row for row in rows(shown, "claims_by_set") if row["comparison"] == "maml minus vanilla"]
    assert len(table) == 2 * 2 * 2  # variants, tunings, sets
    for row in table:
        first, second = (
            np.mean(
                [
                    data.scores.value(run, row["set"])
                    for run in data.collection.finetuning
                    if (run.setting.variant, run.setting.tuning) == (variant, row["tuning"])
                    and run.objective == objective
                ]
            )
            for objective, variant in (("maml", row["variant"]), ("vanilla", "base"))
        )
        assert (row["first"], row["second"]) == pytest.approx((first, second), abs=1e-6)
        assert row["difference"] == pytest.approx(first - second, abs=1e-6)
        low, high = row["95 % CI"]
        assert low <= row["difference"] <= high
        assert row["gold spans"] > 0
    for claimed in rows(shown, "claims")[:4]:
        parts = [row for row in table if all(row[key] == claimed[key] for key in ("variant", "tuning"))]
        assert np.mean([row["difference"] for row in parts]) == pytest.approx(claimed["difference"], abs=1e-6)


def test_variants_are_compared_with_base_without_a_verdict(shown: Views) -> None:
    claimed = rows(shown, "claims")
    table = [row for row in claimed if row["comparison"] == "maml/fast minus maml/base"]
    assert [(row["variant"], row["tuning"]) for row in table] == [("fast", "full"), ("fast", "head_only")]
    assert {(row["verdict"], row["corrected p"]) for row in table} == {("descriptive", None)}
    against_vanilla = {
        (row["variant"], row["tuning"]): row["first"] for row in claimed if row["second"] != "maml/base"
    }
    for row in table:
        assert row["second"] == pytest.approx(against_vanilla["base", row["tuning"]])
        assert row["first"] == pytest.approx(against_vanilla["fast", row["tuning"]])
        assert row["difference"] == pytest.approx(row["first"] - row["second"], abs=1e-6)
        low, high = row["95 % CI"]
        assert low <= row["difference"] <= high


def test_budgets_that_compare_other_runs_have_no_verdicts(shown: Views, tmp_path: Path) -> None:
    """An update with episodes costs 0.6 of the FLOPs of another one here: vanilla's 36 are matched with MAML's 60."""
    assert rows(shown, "claims_by_budget") == []  # every budget compares the only checkpoints that there are
    for objective, flops, steps in (("vanilla", 4e12, (36, 60)), ("maml", 2.4e12, (60,))):
        origin = write_pretraining(tmp_path, objective=objective, flops=flops)
        for step in steps:
            write_finetuning(tmp_path, {**origin, "step": step}, sets=("tl_trg",))
    collection = collect([tmp_path])
    found = views(collection, 50, None, "updates")
    (other,) = rows(found, "claims_by_budget")
    assert other["matched budget"] == "FLOPs"
    assert "verdict" not in other
    value = {
        (run.objective, run.setting.step): found.first.scores.value(run, "tl_trg")
        for run in collection.finetuning
    }
    assert other["difference"] == pytest.approx(value["maml", 60] - value["vanilla", 36])
    (claimed,) = rows(found, "claims")
    assert claimed["difference"] == pytest.approx(value["maml", 60] - value["vanilla", 60])


def test_every_tuning_has_a_claim_at_its_own_last_step(tmp_path: Path) -> None:
    """Averages by tuning differ in nothing else, so that there are none."""
    root = write_grid(tmp_path / "grid", seeds=(0, 1, 2), tunings=("head_only",), steps=(30, 60))
    write_grid(root, seeds=(0, 1, 2), tunings=("full",), steps=(30,))
    write_baseline(root, "particle")
    shown = views(collect([root]), 200, None, "updates")
    found = claims.claims_at(shown, "updates")["target sets"]
    steps = {
        (item.setting.tuning, item.setting.step) for claim in found for item in claim.average.comparisons
    }
    assert steps == {("full", 30), ("head_only", 60)}
    section = comparisons.tuning_section(shown.first)
    assert section.tables[0].rows == []
    assert section.paragraphs[0].startswith("Averages by tuning leave out 4 of 4 comparisons")
    table = baseline_rows.systems_table(shown.first.collection, shown.first.scores)
    index = heads(table).index("tuning")
    assert {row[index] for row in table.rows} == {"", "full", "head_only"}


def test_what_two_comparisons_share_counts_once(tmp_path: Path) -> None:
    """The comparison of one tuning makes a claim that the comparison of both tunings makes too."""
    root = write_grid(tmp_path / "grid", seeds=(0, 1, 2))
    both, of_one = Contrast("maml", "vanilla"), Contrast("maml", "vanilla", tunings=("full",))
    alone, shown = (
        views(collect([root], contrasts=found), 200, None, "updates") for found in ([both], [both, of_one])
    )
    for name in ("claims", "claims_by_set"):
        tables = [rows(each, name) for each in (alone, shown)]
        for row in (*tables[0], *tables[1]):
            del row["runs"]
        assert tables[0] == tables[1]
    corrected = [row["corrected p"] for row in rows(alone, "claims")]
    family = claims.claims_at(shown, "updates")["target sets"]
    assert [claim.corrected_p for claim in family] == [*corrected, corrected[0]]  # tunings: full, head_only


def test_grids_declare_a_comparison_once() -> None:
    pair = {"first": "maml", "second": "vanilla", "tunings": ["full"], "may_differ": ["ner.lr"]}
    found = declared_contrasts([[pair | {"primary": False}], [pair]])
    assert found == [Contrast("maml", "vanilla", True, ("full",), ("ner.lr",))]
    with pytest.raises(
        UserError, match=r"maml minus vanilla \(full\) with may_differ=\[ner.lr\] and .*=\[\]"
    ):
        declared_contrasts([[pair], [pair | {"may_differ": []}]])


def test_a_report_without_primary_comparisons_says_so(tmp_path: Path) -> None:
    root = write_grid(tmp_path / "grid", seeds=(0, 1, 2), tunings=("full",))
    contrast = Contrast("maml", "vanilla", primary=False)
    shown = views(collect([root], contrasts=[contrast]), 50, None, "updates")
    sentence = lead.lead(shown.first, claims.claims_at(shown, "updates")).sentence
    assert sentence.endswith("This comparison is descriptive: no grid declares it as primary.")


def test_without_a_pair_the_section_says_what_is_needed(tmp_path: Path) -> None:
    collection = collect([write_grid(tmp_path / "grid", objectives=("maml",))])
    section = claims.section(views(collection, 100, None, "updates"))
    assert section.paragraphs == [
        "Needed: two runs that differ in the objective only, with identical fine-tuning."
    ]
    assert not section.without_empty_tables().tables


def test_the_margin_decides_what_is_of_practical_size(tmp_path: Path) -> None:
    """Equal arms: never an effect here; no effect of practical size only if the interval lies within the margin."""
    root = write_grid(tmp_path / "grid", objectives=("vanilla", "twin"), seeds=(0, 1, 2), tunings=("full",))
    for margin, expected in ((100.0, NEGLIGIBLE), (1e-6, INCONCLUSIVE)):
        shown = views(collect([root], margin=margin), 200, None, "updates")
        assert [row["verdict"] for row in rows(shown, "claims")] == [expected]
