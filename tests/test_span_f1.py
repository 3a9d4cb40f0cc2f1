"""Strict and conlleval span scores equal seqeval; the contents of a predictions file."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import (
    precision_recall_fscore_support as conll_precision_recall_fscore_support,
)
from seqeval.metrics.v1 import classification_report, precision_recall_fscore_support
from seqeval.scheme import IOB2

from metapt.data.iob2 import TAGS, Sentence, spans, to_iob2
from metapt.evaluation.bootstrap import micro_f1
from metapt.evaluation.predictions import SentencePrediction, write_predictions
from metapt.evaluation.span_f1 import conlleval_spans, set_scores, span_counts, span_scores


def tag_rows(size: int, valid: bool) -> st.SearchStrategy[list[str]]:
    """Tags of a sentence: arbitrary ones, as a softmax head may predict, or valid IOB2."""
    rows = st.lists(st.sampled_from(TAGS), min_size=size, max_size=size)
    return rows.map(lambda tags: list(to_iob2(tags))) if valid else rows


@st.composite
def tagged(draw: st.DrawFn) -> tuple[list[list[str]], list[list[str]]]:
    """Gold and predicted tags of 1 to 5 sentences, some of which are tagged correctly."""
    sizes = draw(st.lists(st.integers(1, 8), min_size=1, max_size=5))
    valid_gold, valid_predicted = draw(st.booleans()), draw(st.booleans())
    gold = [draw(tag_rows(size, valid_gold)) for size in sizes]
    return gold, [draw(st.one_of(st.just(row), tag_rows(len(row), valid_predicted))) for row in gold]


@settings(max_examples=1000, deadline=None)
@given(tagged())
def test_equals_seqeval(pair: tuple[list[list[str]], list[list[str]]]) -> None:
    """Strict IOB2 is seqeval's strict mode, and the conlleval score is its default mode, on arbitrary tags."""
    gold, predicted = pair
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        strict = precision_recall_fscore_support(
            gold, predicted, average="micro", scheme=IOB2, zero_division=0
        )
        lax = conll_precision_recall_fscore_support(gold, predicted, average="micro", zero_division=0)
    for expected, find in ((strict, spans), (lax, conlleval_spans)):
        found = span_scores(gold, predicted, find)
        assert (found["precision"], found["recall"], found["f1"]) == pytest.approx(expected[:3])
        assert (
            micro_f1(span_counts(*(list(map(find, side)) for side in (predicted, gold))).sum(axis=0))
            == found["f1"]
        )


@settings(max_examples=200, deadline=None)
@given(tagged())
def test_each_type_equals_seqeval(pair: tuple[list[list[str]], list[list[str]]]) -> None:
    gold, predicted = pair
    found = span_scores(gold, predicted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"scheme": IOB2, "zero_division": 0, "output_dict": True}
        report = classification_report(gold, predicted, **options) if _has_span(gold, predicted) else {}
    assert found["gold_spans"] == sum(each["gold_spans"] for each in found["per_type"].values())
    for kind, scores in found["per_type"].items():
        expected = report.get(kind, {"precision": 0, "recall": 0, "f1-score": 0, "support": 0})
        assert tuple(scores[name] for name in ("precision", "recall", "f1", "gold_spans")) == pytest.approx(
            tuple(expected.values())
        )


@settings(max_examples=100, deadline=None)
@given(tagged())
def test_both_scores_agree_on_valid_tags(pair: tuple[list[list[str]], list[list[str]]]) -> None:
    gold, predicted = ([to_iob2(tags) for tags in side] for side in pair)
    assert span_scores(gold, predicted) == span_scores(gold, predicted, conlleval_spans)


def test_conlleval_starts_a_span_at_an_inner_tag() -> None:
    tags = ["O", "I-PER", "I-PER", "I-LOC", "B-LOC", "I-LOC"]
    assert conlleval_spans(tags) == [("PER", 1, 3), ("LOC", 3, 4), ("LOC", 4, 6)]
    assert spans(tags) == [("LOC", 4, 6)]


def test_types_of_other_label_sets_are_counted() -> None:
    found = span_scores([["B-MISC", "O"]], [["I-MISC", "B-LAW"]], conlleval_spans)
    assert (found["gold_spans"], found["predicted_spans"], found["correct_spans"]) == (1, 2, 1)
    assert list(found["per_type"]) == ["LAW", "MISC"]
    assert found["per_type"]["MISC"]["f1"] == 1


def _has_span(*sides: list[list[str]]) -> bool:
    return any(tag.startswith("B-") for side in sides for row in side for tag in row)


def test_worked_example() -> None:
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["B-PER", "O"]]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["B-PER", "B-ORG"]]
    found = span_scores(gold, predicted)
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
        span_scores([["O"]], [["O", "O"]])


def test_set_scores() -> None:
    """One of four names has only an inner tag, which conlleval counts and strict IOB2 does not."""
    gold = [Sentence(str(number), ("ni", "Ana"), ("O", "B-PER")) for number in range(4)]
    found = set_scores("test", gold, [["O", "B-PER"], ["O", "B-PER"], ["O", "I-PER"], ["O", "O"]])
    assert (found["sentences"], found["words"], found["gold_spans"]) == (4, 8, 4)
    assert (found["f1"], found["conlleval"]["f1"]) == pytest.approx((2 * 2 / 6, 2 * 3 / 7))
    low, high = found["f1_interval"]
    assert 0 <= low < found["f1"] < high <= 1
    empty = set_scores("test", [Sentence("1", ("a",), ("O",))], [["O"]])
    assert all(math.isnan(bound) for bound in empty["f1_interval"])


def test_predictions_file(tmp_path: Path) -> None:
    sentence = Sentence("s1", ("Si", "Niño"), ("O", "B-PER"), "text 1")
    predictions = [SentencePrediction(["O", "O"], [-0.25, -2.0]), SentencePrediction(["O", "B-PER"], None)]
    write_predictions(tmp_path / "p" / "tl.jsonl", [sentence] * 2, predictions)
    assert [
        json.loads(line) for line in (tmp_path / "p" / "tl.jsonl").read_text(encoding="utf-8").splitlines()
    ] == [
        {
            "id": "s1",
            "document": "text 1",
            "words": ["Si", "Niño"],
            "gold": ["O", "B-PER"],
            "predicted": predicted,
            "gold_logprob": logprob,
        }
        for predicted, logprob in ((["O", "O"], [-0.25, -2.0]), (["O", "B-PER"], None))
    ]
