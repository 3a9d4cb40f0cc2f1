"""Published results: each row says what the system was trained on and which metric its number is."""

from __future__ import annotations

from pathlib import Path

import pytest
from analysis_runs import SETS, write_finetuning

from analysis.load.collect import collect
from analysis.load.published_results import published_results
from analysis.sections.published import scales_table, systems_table


@pytest.mark.parametrize("row", [*published_results()["systems"], published_results()["scale_curve"]])
def test_every_result_names_training_data_and_metric(row: dict[str, str]) -> None:
    supervised, zero_shot = ("supervised" in row["training"], "zero-shot" in row["training"])
    assert supervised != zero_shot
    assert row["metric"] in ("span micro-F1", "token micro-F1")


def test_rows_are_those_of_the_evaluated_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETS, "ceb_cebuaner", 20)
    origin = {"model": "nano", "objective": "maml", "seed": 0, "step": 60}
    write_finetuning(tmp_path, origin, sets=["tl_trg", "ceb_cebuaner"])
    collection = collect([tmp_path])
    table = systems_table(collection)
    heads = [column.head for column in table.columns]
    assert heads == [
        "system",
        *["ceb_cebuaner", "tl_trg"],
        *["training data", "metric", "conditions", "source"],
    ]
    [crf] = [row for row in table.rows if row[1] is not None]
    assert (crf[1], crf[2], crf[4]) == (0.81, None, "token micro-F1")
    assert {row[4] for row in table.rows if row[2] is not None} == {"span micro-F1"}
    assert not scales_table(collection).rows, "the published means are over other sets"
