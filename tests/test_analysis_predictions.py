"""Reading predictions and losses: complete lines, shared gold sets, and damage."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.load.prediction_reader import evaluate, read_predictions
from analysis.load.run_reader import train_losses
from analysis.load.schema import SetResult, TypeResult
from metapt.data.iob2 import spans
from metapt.evaluation.bootstrap import micro_f1
from metapt.evaluation.span_f1 import conlleval_spans, span_counts

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "I-ORG"]
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(["\\", "\u2028", '"'])
logprobs = st.floats(-20, 0).map(lambda value: round(value, 6))


@st.composite
def prediction_lines(draw: st.DrawFn) -> dict[str, Any]:
    size = draw(st.integers(0, 4))

    def lists(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=size, max_size=size))

    tags = st.sampled_from(TAGS)
    return {
        "id": draw(words),
        "words": lists(words),
        "gold": lists(tags),
        "predicted": lists(tags),
        "gold_logprob": lists(logprobs) if draw(st.booleans()) else None,
    }


def write(path: Path, lines: list[dict[str, Any]], escaped: bool = True) -> Path:
    path.write_text(
        "".join(json.dumps(line, ensure_ascii=escaped) + "\n" for line in lines), encoding="utf-8"
    )
    return path


def strict_f1(lines: list[dict[str, Any]]) -> float:
    counts = span_counts(
        [spans(line["predicted"]) for line in lines], [spans(line["gold"]) for line in lines]
    )
    return float(micro_f1(counts.sum(axis=0)))


@given(st.lists(prediction_lines(), max_size=4), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_was_written_is_read(tmp_path: Path, lines: list[dict[str, Any]], escaped: bool) -> None:
    path = write(tmp_path / "tl_trg.jsonl", lines, escaped)
    found = evaluate(path, SetResult(strict_f1(lines), {"PER": TypeResult(0.5)}), True)
    assert found.gold.ids == tuple(line["id"] for line in lines)
    assert found.gold.words == tuple(tuple(line["words"]) for line in lines)
    assert found.gold.spans == tuple(tuple(spans(line["gold"])) for line in lines)
    predicted, gold = ([conlleval_spans(line[side]) for line in lines] for side in ("predicted", "gold"))
    assert found.conlleval_f1 == pytest.approx(micro_f1(span_counts(predicted, gold).sum(axis=0)))
    assert found.per_type == {"PER": 0.5}
    expected = [value for line in lines for value in line["gold_logprob"] or ()]
    np.testing.assert_array_equal(found.logprobs, np.array(expected, dtype=np.float32))


def test_runs_share_gold_sets(tmp_path: Path) -> None:
    """Gold sets are compared by identity, also after they were sent between processes."""
    line = {"id": "1", "words": ["si", "Ana"], "gold": ["O", "B-PER"], "gold_logprob": None}
    result = SetResult(0.0, {})
    (tmp_path / "run").mkdir()
    one = write(tmp_path / "en_ewt.jsonl", [{**line, "predicted": ["O", "O"]}])
    other = write(tmp_path / "run" / "en_ewt.jsonl", [{**line, "predicted": ["B-LOC", "O"]}])
    gold = evaluate(one, result, True).gold
    assert evaluate(other, result, True).gold is gold
    assert pickle.loads(pickle.dumps(gold)) is gold
    changed = write(one, [{**line, "words": ["si", "Jo"], "predicted": ["O", "O"]}])
    assert evaluate(changed, result, True).gold is not gold


LINE = '{"id": "1", "words": ["a"], "gold": ["O"], "predicted": ["O"], "gold_logprob": [-0.1]}\n'


def test_a_last_line_that_was_cut_off_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "tl_trg.jsonl"
    path.write_text(LINE + LINE[:30])
    assert [line.id for line in read_predictions(path)] == ["1"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '["O"], "gold_logprob"',
            '["O", "O"], "gold_logprob"',
            r"predictions/tl_trg.jsonl, line 2: .* differ",
        ),
        ("[-0.1]", "[-0.1, -2]", r"predictions/tl_trg.jsonl, line 2: .* differ"),
        ("[-0.1]", "[NaN]", r"predictions/tl_trg.jsonl: JSON is malformed"),
        ('"gold_logprob"', '"other"', r"predictions/tl_trg.jsonl: .* missing required field `gold_logprob`"),
        ('["O"], "predicted"', '"O", "predicted"', r"predictions/tl_trg.jsonl: Expected `array`, got `str`"),
        ("}", "", r"predictions/tl_trg.jsonl: Input data was truncated"),
    ],
)
def test_damage_is_reported(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "tl_trg.jsonl"
    path.write_text(LINE + LINE.replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_predictions(path)


def test_a_missing_file_and_another_f1_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "tl_trg.jsonl"
    with pytest.raises(ValueError, match=r"predictions/tl_trg.jsonl is missing"):
        evaluate(path, SetResult(0.0, {}), True)
    path.write_text(LINE)
    with pytest.raises(
        ValueError, match=r"F1 is 0.0000 by predictions/tl_trg.jsonl and 0.5000 by result.json"
    ):
        evaluate(path, SetResult(0.5, {}), True)


@given(st.lists(st.tuples(st.sampled_from(["train", "dev"]), st.floats() | st.none()), max_size=5))
def test_training_losses(lines: list[tuple[str, float | None]]) -> None:
    """Lines of other kinds need no loss; null is a loss that is not finite."""
    rest: dict[str, dict[str, Any]] = {"train": {"lr": 3e-05}, "dev": {"f1": 0.5}}
    finite = [(kind, loss if loss is None or math.isfinite(loss) else None) for kind, loss in lines]
    content = "".join(
        json.dumps({"step": 7, "kind": kind, "loss_nats": loss, **rest[kind]}) + "\n" for kind, loss in finite
    )
    expected = [loss for kind, loss in finite if kind == "train"]
    assert train_losses(content.encode()) == expected
    assert train_losses(content.encode() + b'{"step": 8, "kind": "train", "loss_na') == expected


def test_a_training_line_without_a_loss_is_damage() -> None:
    with pytest.raises(KeyError, match="loss_nats"):
        train_losses(b'{"step": 1, "kind": "train"}\n')
