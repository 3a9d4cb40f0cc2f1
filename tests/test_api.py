"""The Python interface: `import metapt`."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import analysis_runs
import numpy as np
import pytest
import yaml
from conftest import REPO
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2

import metapt
from metapt.data.iob2 import read_iob2
from metapt.errors import UserError
from metapt.runs import Run

RECORDED = REPO / "tests" / "recorded"


def test_no_module_has_the_name_of_a_function() -> None:
    """Importing such a module would replace the function. The one exception is for `python -m` and is imported by nothing."""
    assert [name for name in metapt.__all__ if importlib.util.find_spec(f"metapt.{name}")] == ["finetune"]
    assert callable(metapt.finetune)
    assert all(getattr(metapt, name) for name in metapt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'finetun'"):
        metapt.finetun  # noqa: B018
    assert (Path(metapt.__file__).parent / "py.typed").exists()


def test_tags_are_scored_as_seqeval_does() -> None:
    gold = [["B-PER", "I-PER", "O"], ["O", "B-LOC"], ["B-ORG", "O", "B-PER"]]
    predicted = [["B-PER", "I-PER", "O"], ["O", "B-ORG"], ["B-ORG", "O", "O"]]
    score = metapt.score(gold, predicted)
    assert score.f1 == pytest.approx(f1_score(gold, predicted, mode="strict", scheme=IOB2))
    assert (score.precision, score.recall) == (pytest.approx(2 / 3), pytest.approx(2 / 4))
    assert (score.gold_spans, score.sentences) == (4, 3)
    assert score.low < score.f1 < score.high
    assert score.per_type["PER"] == pytest.approx(2 / 3)
    assert math.isnan(metapt.score([["O"]], [["O"]]).low)
    with pytest.raises(UserError, match="differ in the number of sentences"):
        metapt.score(gold, predicted[:2])


def test_files_are_scored_and_compared() -> None:
    gold, first = (RECORDED / name for name in ("news.conll", "spacy.jsonl"))
    types = {"PERSON": "PER", "GPE": "LOC", "DATE": "O"}
    score = metapt.score(gold, first, types=types)
    assert 0 < score.f1 < 1
    comparison = metapt.compare(gold, first, gold, types=types)
    assert comparison.difference == pytest.approx(score.f1 - 1)
    assert comparison.interval[0] <= comparison.difference <= comparison.interval[1]
    itself = metapt.compare(gold, gold, gold)
    assert (itself.difference, itself.p) == (0.0, 1.0)


def test_a_run_from_fine_tuning_to_a_table(world: Path, tmp_path: Path) -> None:
    uner = {"data.uner_dir": world / "uner"}
    settings = {
        **uner,
        "ner.lr": 0.005,
        "ner.max_epochs": 2,
        "ner.batch_size": 8,
        "data.eval_sets": ["aa_one"],
    }
    run_dir = tmp_path / "a run" / "finetune"
    for _ in range(2):  # the second call reads the finished run
        tuned = metapt.finetune(world / "model", "aa_one", run_dir, tuning="full", settings=settings)
    result = Run(run_dir).result()
    assert tuned.dev_f1 == result["dev_f1"]
    assert {name: score.f1 for name, score in tuned.sets.items()} == {
        "aa_one": result["sets"]["aa_one"]["f1"]
    }

    scores = metapt.evaluate(run_dir, ["bb_two"], settings=uner)
    words = [list(sentence.words) for sentence in read_iob2(world / "uner" / "bb_two" / "test.iob2")]
    gold = [sentence.tags for sentence in read_iob2(world / "uner" / "bb_two" / "test.iob2")]
    tagged = tuned.load(device="cpu").tag(words)
    assert scores["bb_two"] == metapt.score(gold, [sentence.tags for sentence in tagged])

    frame = metapt.load_runs(run_dir.parent)
    assert sorted(frame["set"]) == ["aa_one", "bb_two"]
    row = frame.set_index("set").loc["bb_two"]
    assert (row["tuning"], row["source"], row["seed"]) == ("full", "aa_one", 0)
    assert (row["f1"], row["low"]) == (scores["bb_two"].f1, scores["bb_two"].low)
    assert frame.attrs["excluded"] == []
    with pytest.raises(UserError, match=r"ner\.lrr: no such key; did you mean ner\.lr"):
        metapt.finetune(world / "model", "aa_one", run_dir, settings={"ner.lrr": 1})
    with pytest.raises(UserError, match="folds: only for the command `metapt finetune`"):
        metapt.finetune(world / "model", "aa_one", run_dir, settings={**settings, "folds": 2})


def test_pretraining_runs_as_a_table_and_what_is_left_out(tmp_path: Path) -> None:
    for objective in ("vanilla", "maml"):
        analysis_runs.write_pretraining(tmp_path, objective=objective, seed=3)
    unfinished = tmp_path / "pretrain" / "x"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text(yaml.safe_dump({}))
    with pytest.warns(UserWarning, match="1 run folders are left out"):
        frame = metapt.load_runs(tmp_path, kind="pretrain")
    assert frame[["scale", "objective", "seed"]].values.tolist() == [
        ["nano", "vanilla", 3],
        ["nano", "maml", 3],
    ]
    for row in frame.to_dict("records"):
        assert row["eval_perplexity"] == Run(row["run"]).result()["eval_perplexity"]
    assert [path for path, _ in frame.attrs["excluded"]] == [str(unfinished)]


def test_an_episode_is_a_function_of_settings_step_and_number(corpus_cache: Path) -> None:
    settings = {"data.cache_dir": corpus_cache, "meta.n_way": 4, "meta.k_shot": 2, "meta.q_query": 3}
    episode = metapt.sample_episode(3, 1, settings=settings)
    assert isinstance(episode, metapt.Episode)
    assert episode.support.tokens.shape == (8, 32)
    assert np.bincount(episode.query.labels).tolist() == [3, 3, 3, 3]
    again = metapt.sample_episode(3, 1, settings=settings)
    assert np.array_equal(again.query.windows, episode.query.windows)
    other = metapt.sample_episode(3, 0, settings=settings)
    assert not np.array_equal(other.query.windows, episode.query.windows)
