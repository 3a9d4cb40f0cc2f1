"""Evaluation sets with one gold span, or with none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import analysis_runs
import numpy as np
import pytest
from analysis_runs import write_grid

from analysis.load.collect import collect
from analysis.sections.aggregates import aggregates_table
from analysis.sections.base import ReportData, views
from analysis.sections.comparisons import scale_section
from analysis.sections.summary import summary

Labelled = list[tuple[list[str], list[str]]]
ENTITY = (["si", "Maria", "bata"], ["O", "B-PER", "O"])


def data_of(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    sets: Sequence[str],
    first: Sequence[tuple[list[str], list[str]]] = (),
) -> ReportData:
    """Runs of two arms and three seeds; in these sets, no sentence but the `first` has a gold span."""
    sentences = analysis_runs.sentences

    def with_few_spans(name: str, words: Sequence[str] = ()) -> Labelled:
        found = sentences(name, words)
        if name not in sets:
            return found
        return [*first, *((tokens, ["O"] * len(tags)) for tokens, tags in found[len(first) :])]

    monkeypatch.setattr(analysis_runs, "sentences", with_few_spans)
    write_grid(root, seeds=(0, 1, 2), tunings=("head_only",))
    return views(collect([root]), 50, None, "updates").first


def test_a_gain_without_a_known_interval_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All gold spans are in one sentence, so that nothing is known of how sentences vary."""
    data = data_of(tmp_path / "grid", monkeypatch, ("tl_trg", "ceb_gja"), [ENTITY])
    gains = [item.difference.relative_gain for item in data.final_comparisons]
    assert any(np.isinf(gain.interval).all() for gain in gains)
    (figure,) = scale_section(data).figures
    figure.draw(*figure.data).draw_without_rendering()


def test_pairs_without_a_gold_span_are_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_of(tmp_path / "grid", monkeypatch, ("tl_trg", "ceb_gja"))
    assert summary(data, []) == [
        "maml and vanilla cannot be compared: no target set with gold spans was scored by both on the same sentences."
    ]


def test_aggregates_leave_out_sets_without_gold_spans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_of(tmp_path / "grid", monkeypatch, ("tl_trg",))
    table = aggregates_table(data)
    cells = [dict(zip([column.head for column in table.columns], row, strict=True)) for row in table.rows]
    assert {row["sets"] for row in cells} == {"ceb_gja"}
    assert all(np.isfinite(row["F1"]) for row in cells)
