"""A run folder may contain anything: with any entry of its files changed, the report is built, and lists the folder or uses it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import yaml
from analysis_runs import write_grid
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.build import build
from analysis.figures import style
from analysis.load.collect import Collection, collect

REMOVED = object()
REPLACEMENTS = (REMOVED, None, "x", -1.5, [], {})
Place = tuple[str | int, ...]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small grid. Figures are drawn in this process, so that an error of theirs fails the test."""

    def draw_now(name: str, draw: Callable[..., Any], *data: Any) -> Future[tuple[str, bytes]]:
        draw(*data)
        future: Future[tuple[str, bytes]] = Future()
        future.set_result(("<svg>", b""))
        return future

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "submit", draw_now)
        yield write_grid(tmp_path_factory.mktemp("grid"), tunings=("head_only",), seeds=(0, 1))


def report(root: Path, file: Path, text: str) -> Collection:
    """Build a report while a file has another text."""
    before = file.read_text()
    file.write_text(text)
    try:
        collection = collect([root])
        build(collection, resamples=10)
        return collection
    finally:
        file.write_text(before)


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    """Yield the place of each entry of a JSON value; of a list only that of the first item."""
    yield place
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from places(entry, (*place, name))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*place, 0))


def changed(value: Any, place: Place, new: Any) -> Any:
    """Return the value with another entry at a place, or without the entry."""
    whole = copy.deepcopy(value)
    if not place:
        return None if new is REMOVED else new
    within = whole
    for name in place[:-1]:
        within = within[name]
    if new is REMOVED:
        del within[place[-1]]
    else:
        within[place[-1]] = new
    return whole


@st.composite
def damages(draw: st.DrawFn, run: Path) -> tuple[Path, str]:
    """A file of a run and its text with one entry changed."""
    file = run / draw(st.sampled_from(("result.json", "metrics.jsonl", "config.yaml")))
    text = file.read_text()
    lines = text.splitlines()
    first: dict[str, int] = {}  # line number by kind of metrics
    if file.suffix == ".jsonl":
        first = {json.loads(line)["kind"]: number for number, line in reversed(list(enumerate(lines)))}
    number = draw(st.sampled_from(sorted(first.values()))) if first else 0
    read = yaml.safe_load if file.suffix == ".yaml" else json.loads
    value = read(lines[number] if first else text)
    new = changed(value, draw(st.sampled_from(list(places(value)))), draw(st.sampled_from(REPLACEMENTS)))
    if file.suffix == ".yaml":
        return file, yaml.safe_dump(new, sort_keys=False)
    lines[number] = json.dumps(new)
    return file, "\n".join(lines) + "\n" if first else lines[number]


@pytest.mark.parametrize("kind", ["finetune", "pretrain"])
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_entry_of_a_file_stops_the_report(grid: Path, kind: str, data: st.DataObject) -> None:
    run = min((grid / kind).iterdir())
    collection = report(grid, *data.draw(damages(run)))
    items = [*collection.pretraining, *collection.finetuning, *collection.excluded]
    assert {item.path for item in items} == {*(grid / "finetune").iterdir(), *(grid / "pretrain").iterdir()}
    assert all(item.reason for item in collection.excluded)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("finetune", "steps", "Object missing required field `steps`"),
        ("finetune", "dev_f1", "Expected `float | null`, got `str` - at `$.dev_f1`"),
        ("pretrain", "flops_total", "Expected `float`, got `str` - at `$.flops_total`"),
    ],
)
def test_the_reason_names_the_wrong_entry(grid: Path, kind: str, name: str, message: str) -> None:
    file = min((grid / kind).iterdir()) / "result.json"
    new = REMOVED if "missing" in message else "much"
    text = json.dumps(changed(json.loads(file.read_text()), (name,), new))
    (excluded,) = report(grid, file, text).excluded
    assert (excluded.path, excluded.state, excluded.reason) == (file.parent, "broken", message)


def test_a_perplexity_that_is_not_finite_is_no_damage(grid: Path) -> None:
    """It is null, like every number of result.json that is not finite: the run diverged."""
    file = min((grid / "pretrain").iterdir()) / "result.json"
    diverged = {**json.loads(file.read_text()), "eval_perplexity": None}
    collection = report(grid, file, json.dumps(diverged))
    assert not collection.excluded
    (run,) = (run for run in collection.pretraining if run.path == file.parent)
    assert run.result.eval_perplexity is None
