"""The fast reading of predictions gives what plain JSON does, of whatever file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from analysis.load import prediction_reader
from analysis.load.prediction_reader import Pool, json_lines, read_predictions
from analysis.load.run_reader import train_losses
from metapt.data.iob2 import spans
from metapt.evaluation.span_f1 import conlleval_spans

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "I-ORG"]
KEYS = (
    '", "predicted": ["O"], "gold_logprob": [-1.0]}\n{"id'  # a word that looks like the border of two lines
)
ERRORS = (ValueError, KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError)
words = st.text(max_size=6) | st.sampled_from([KEYS, ', "predicted": ', "]}", "\\", "\u2028", '"', "null}"])
numbers = st.floats(-20, 0).map(lambda value: round(value, 6)) | st.just(float("nan"))


@st.composite
def lines(draw: st.DrawFn) -> dict[str, Any]:
    size = draw(st.integers(0, 4))

    def each(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=size, max_size=size))

    tags = st.sampled_from(TAGS)
    logprobs = draw(st.none()) if draw(st.booleans()) else each(numbers)
    return {"id": draw(words), "words": each(words), "gold": each(tags), "predicted": each(tags), "gold_logprob": logprobs}  # fmt: skip


def outcome(path: Path, plain: bool, with_logprobs: bool = True) -> Any:
    """What is read of a file, or the error."""
    pool = Pool()
    try:
        found = (
            prediction_reader._read_plainly(path, path.read_bytes(), pool, with_logprobs)
            if plain
            else read_predictions(path, pool, with_logprobs)
        )
    except Exception as error:
        return error.__class__, str(error)
    gold = (found.gold.name, found.gold.ids, found.gold.words, found.gold.spans, found.gold_lax)
    return gold, list(found.taggings), repr(found.logprobs)


@given(
    st.lists(lines(), max_size=4),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 400), st.sampled_from([b"", b"[", b"]", b"]}", b",", b'"', b"\n", b"{", b"7", b"\xff", b"\r"])), max_size=2),
)  # fmt: skip
@example([], False, [])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
def test_a_file_is_read_as_plain_json_does_however_it_is_damaged(
    tmp_path: Path, made: list[dict[str, Any]], escaped: bool, damages: list[tuple[int, bytes]]
) -> None:
    content = "".join(json.dumps(line, ensure_ascii=escaped) + "\n" for line in made).encode(
        errors="surrogatepass"
    )
    for place, what in damages:
        content = content[:place] + what + content[place + 1 :]
    path = tmp_path / "set.jsonl"
    path.write_bytes(content)
    assert outcome(path, plain=False) == outcome(path, plain=True)
    fast, plain = (outcome(path, plain, with_logprobs=False) for plain in (False, True))
    if (
        fast[0] in ERRORS or plain[0] not in ERRORS
    ):  # where numbers alone are damaged, only the plain way tells
        assert fast == plain


def test_a_file_of_this_suite_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = {"id": "1", "words": ["si", KEYS], "gold": ["O", "B-PER"], "predicted": ["O", "I-PER"], "gold_logprob": [-0.1, -2.5]}  # fmt: skip
    path = tmp_path / "set.jsonl"
    path.write_text(
        "".join(json.dumps({**line, "id": str(number)}) + "\n" for number in range(3)) + '{"id": "cut'
    )
    monkeypatch.setattr(prediction_reader, "_read_plainly", lambda *_: pytest.fail("parsed in full"))
    pool = Pool()
    found = read_predictions(path, pool)
    assert found.gold.ids == ("0", "1", "2")
    assert found.gold.words == (("si", KEYS),) * 3
    assert [tagging.spans for tagging in found.taggings] == [tuple(spans(line["predicted"]))] * 3
    assert [tagging.lax for tagging in found.taggings] == [tuple(conlleval_spans(line["predicted"]))] * 3
    assert found.logprobs == [[-0.1, -2.5]] * 3
    assert read_predictions(path, pool).gold is found.gold


@pytest.mark.parametrize("content", ["", '{"a": NaN}\n', '{"a": 1}\n{"a": 2}\n{"a', '{"a": 123456789012345678901234567890}\n'])  # fmt: skip
def test_lines_of_json(content: str) -> None:
    whole = content[: content.rfind("\n") + 1]
    expected = [json.loads(line) for line in whole.splitlines()]
    assert repr([{k: float(v) for k, v in line.items()} for line in json_lines(content.encode())]) == repr(
        [{k: float(v) for k, v in line.items()} for line in expected]
    )


@given(
    st.lists(st.tuples(st.sampled_from(["train", "dev"]), numbers | st.none()), max_size=5),
    st.integers(0, 300),
    st.sampled_from([b"", b'"', b"}", b"\n", b"a", b","]),
)
@settings(deadline=None)
def test_losses_are_cut_from_the_lines_that_tuning_writes(
    made: list[tuple[str, float | None]], place: int, damage: bytes
) -> None:
    """The same as by plain JSON, of a damaged file too, if that is still JSON."""
    kinds = {"train": {"epoch": 1}, "dev": {"epoch": 1, "f1": 0.5}}
    rest = {"train": {"lr": 3e-05, "seconds_total": 0.1}, "dev": {}}
    lines = [json.dumps({"step": 7, "kind": kind, **kinds[kind], "loss_nats": finite(loss), **rest[kind]}) for kind, loss in made]  # fmt: skip
    content = "".join(line + "\n" for line in lines).encode()
    expected = [finite(loss) for kind, loss in made if kind == "train"]
    assert train_losses(content) == expected
    content = content[:place] + damage + content[place:]
    try:
        plain = [line["loss_nats"] for line in json_lines(content) if line["kind"] == "train"]
    except (ValueError, KeyError, TypeError):
        return
    assert train_losses(content) == plain


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
