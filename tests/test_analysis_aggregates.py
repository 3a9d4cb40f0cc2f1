"""Aggregates against plain arithmetic and seqeval: macro over sets and languages, pooled by language, by entity type."""

from __future__ import annotations

import json

import numpy as np
import pytest
from analysis_runs import write_grid
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2

from analysis.load.collect import Collection, collect
from analysis.load.records import FinetuneRun
from analysis.sections.aggregates import aggregates, type_intervals_table
from analysis.sections.base import ReportData, views
from analysis.stats.comparison import Group, groups
from analysis.stats.derived_sets import with_pooled, with_type
from analysis.stats.significance import Scores

SETS = ("tl_trg", "ceb_gja", "en_ewt")


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    root = tmp_path_factory.mktemp("runs") / "grid"
    return collect([write_grid(root, seeds=(0, 1, 2), tunings=("head_only",))])


def tags(run: FinetuneRun, names: tuple[str, ...], kind: str = "") -> tuple[list[list[str]], list[list[str]]]:
    """The gold and the predicted tags in the files of predictions, of one type or of all."""
    lines = [
        json.loads(line)
        for name in names
        for line in (run.path / "predictions" / f"{name}.jsonl").read_text().splitlines()
    ]
    return tuple(  # type: ignore[return-value]
        [[tag if tag.endswith(kind) else "O" for tag in line[side]] for line in lines]
        for side in ("gold", "predicted")
    )


def test_pooled_f1_is_that_of_all_sentences_together(collection: Collection) -> None:
    for run in collection.finetuning:
        pooled = with_pooled(run, SETS, "all")
        gold, predicted = tags(run, SETS)
        expected = f1_score(gold, predicted, mode="strict", scheme=IOB2, zero_division=0)
        assert pooled.sets["all"].f1 == pytest.approx(expected)
        assert pooled.sets["all"].gold.unit_count == sum(run.sets[name].gold.unit_count for name in SETS)
        assert set(run.sets) == set(SETS)


def test_type_f1_is_that_of_the_tags_of_the_type(collection: Collection) -> None:
    run = collection.finetuning[0]
    for kind in ("PER", "LOC", "ORG"):
        gold, predicted = tags(run, ("tl_trg",), kind)
        if any(tag != "O" for sentence in gold for tag in sentence):
            expected = f1_score(gold, predicted, mode="strict", scheme=IOB2, zero_division=0)
            found = with_type(run, "tl_trg", kind).sets[f"tl_trg {kind}"]
            assert found.f1 == pytest.approx(expected)
            assert found.gold.gold_spans == sum(tag == f"B-{kind}" for line in gold for tag in line)


def test_macro_averages(collection: Collection) -> None:
    """Two sets of one language and one of another: over languages, each set of the pair has half the weight."""
    group = groups(collection)[0]
    twice = [
        run.with_sets({"tl_other": with_pooled(run, ("en_ewt",), "tl_other").sets["tl_other"]})
        for run in group.runs
    ]
    names = ("tl_trg", "tl_other", "ceb_gja")
    found = {
        kind: estimate
        for kind, _, estimate in aggregates(Group(group.objective, group.setting, twice), names, Scores(200))
    }
    means = {name: np.mean([run.sets[name].f1 for run in twice]) for name in names}
    assert found["macro over sets"].value == pytest.approx(np.mean(list(means.values())))
    by_language = [(means["tl_trg"] + means["tl_other"]) / 2, means["ceb_gja"]]
    assert found["macro over languages"].value == pytest.approx(np.mean(by_language))
    assert found["pooled: ceb"].value == pytest.approx(means["ceb_gja"])
    for estimate in found.values():
        low, high = estimate.interval
        assert low < estimate.value < high
        assert estimate.seeds == 3


def test_the_table_of_types_has_the_spans_of_each_set(collection: Collection) -> None:
    data: ReportData = views(collection, 100, None, "updates").first
    table = type_intervals_table(data)
    heads = [column.head for column in table.columns]
    rows = [dict(zip(heads, row, strict=True)) for row in table.rows]
    gold = collection.gold_sets("tl_trg")[0]
    spans = {(row["type"], row["gold spans"]) for row in rows if row["set"] == "tl_trg"}
    assert sum(count for _, count in spans) == gold.gold_spans  # type: ignore[misc]
    assert {row["set"] for row in rows} == {"tl_trg", "ceb_gja"}
    for row in rows:
        low, high = row["95 % CI"]  # type: ignore[misc]
        assert low <= row["F1"] <= high
