"""The span score against seqeval in strict mode, and what a predictions file holds."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.v1 import classification_report, precision_recall_fscore_support
from seqeval.scheme import IOB2

from metapt.data.iob2 import TAGS, Sentence
from metapt.ner.evaluate import Annotation, span_figures, write_predictions

tag_rows = st.lists(st.lists(st.sampled_from(TAGS), min_size=1, max_size=8), min_size=1, max_size=5)


@settings(max_examples=400, deadline=None)
@given(tag_rows, st.data())
def test_equals_seqeval_strict_iob2(gold: list[list[str]], data: st.DataObject) -> None:
    """On any tags at all, also those that are no valid IOB2 (a softmax head may predict them)."""
    predicted = [
        data.draw(
            st.one_of(st.just(row), st.lists(st.sampled_from(TAGS), min_size=len(row), max_size=len(row)))
        )
        for row in gold
    ]
    found = span_figures(gold, predicted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"scheme": IOB2, "zero_division": 0}
        micro = precision_recall_fscore_support(gold, predicted, average="micro", **options)
        report = (
            classification_report(gold, predicted, output_dict=True, **options)
            if _has_span(gold, predicted)
            else {}
        )
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx(micro[:3])
    assert found["gold_spans"] == sum(each["gold_spans"] for each in found["per_type"].values())
    for kind, figures in found["per_type"].items():
        expected = report.get(kind, {"precision": 0, "recall": 0, "f1-score": 0, "support": 0})
        assert (
            figures["precision"],
            figures["recall"],
            figures["f1"],
            figures["gold_spans"],
        ) == pytest.approx(tuple(expected.values()))


def _has_span(*sides: list[list[str]]) -> bool:
    return any(tag.startswith("B-") for side in sides for row in side for tag in row)


def test_figures_of_a_worked_example() -> None:
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["B-PER", "O"]]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["B-PER", "B-ORG"]]
    found = span_figures(gold, predicted)
    assert (found["gold_spans"], found["predicted_spans"], found["correct_spans"]) == (3, 4, 2)
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx((2 / 4, 2 / 3, 4 / 7))
    assert found["per_type"]["PER"]["correct_spans"] == 1
    assert found["per_type"]["ORG"] == {
        "gold_spans": 0,
        "predicted_spans": 1,
        "correct_spans": 0,
        "precision": 0,
        "recall": 0,
        "f1": 0,
    }
    with pytest.raises(ValueError, match="gold tags"):
        span_figures([["O"]], [["O", "O"]])


def test_predictions_file(tmp_path: Path) -> None:
    sentence = Sentence("s1", ("Si", "Niño"), ("O", "B-PER"))
    write_predictions(tmp_path / "p" / "tl.jsonl", [sentence], [Annotation(["O", "O"], [-0.25, -2.0])])
    assert [
        json.loads(line) for line in (tmp_path / "p" / "tl.jsonl").read_text(encoding="utf-8").splitlines()
    ] == [
        {
            "id": "s1",
            "words": ["Si", "Niño"],
            "gold": ["O", "B-PER"],
            "predicted": ["O", "O"],
            "gold_logprob": [-0.25, -2.0],
        }
    ]
