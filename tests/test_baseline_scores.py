"""Scores of baselines that fine-tuning runs share: trained once, equal to the bit, and never those of other inputs."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metapt.config import FinetuneConfig, commandline, training_splits
from metapt.data.collection import Collection
from metapt.data.iob2 import Sentence
from metapt.data.run_sets import RunSets
from metapt.evaluation.reference_scores import sample
from metapt.finetuning import baseline_scores

Splits = dict[tuple[str, str], list[Sentence]]
Score = Callable[..., dict[str, Any]]


def labelled(count: int, seed: int) -> list[Sentence]:
    """Sentences about persons and places, some of which begin with a name."""
    rng = random.Random(seed)
    sentences = []
    for number in range(count):
        person, place = rng.choice(["Ana", "Juan", "Maria"]), rng.choice(["Cebu", "Davao", "Iloilo"])
        words, tags = (person, "sa", place, "ito"), ("B-PER", "O", "B-LOC", "O")
        start = rng.randrange(3)
        sentences.append(Sentence(f"s{number}", words[start:], tags[start:]))
    return sentences


def splits() -> Splits:
    return {
        ("aa_one", "train"): labelled(30, 1),
        ("aa_one", "dev"): labelled(8, 2),
        ("aa_one", "test"): labelled(9, 3),
        ("bb_two", "test"): labelled(7, 4),
    }


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of training sentences of each time that baselines were trained."""
    real, counted = baseline_scores.reference_scores, []

    def counting(train: list[Sentence], *others: Any) -> dict[str, Any]:
        counted.append(len(train))
        return real(train, *others)

    monkeypatch.setattr(baseline_scores, "reference_scores", counting)
    return counted


def configuration(*words: str) -> FinetuneConfig:
    arguments = ["checkpoint=x", "source=aa_one", "data.uner_dir=x", "run_dir=x", *words]
    return commandline.load("finetune", arguments)


def scores(sentences: Splits, *words: str, sets: tuple[str, ...] = ("aa_one", "bb_two")) -> dict[str, Any]:
    names: Mapping[str, list[str]] = {"aa_one": ["train", "dev", "test"], "bb_two": ["test"]}
    collection = Collection("x", names, lambda name, split: sentences[name, split])
    config = configuration(*words)
    run_sets = RunSets(config.data, collection, ["aa_one"], training_splits(config), sets)
    return baseline_scores.baseline_scores(run_sets, config.ner.cache_dir)


@pytest.fixture
def shared(tmp_path: Path) -> Score:
    """`scores` with a cache; the folder does not exist before."""
    return lambda *arguments, **sets: scores(*arguments, f"ner.cache_dir={tmp_path / 'cache'}", **sets)


def test_runs_with_the_same_sentences_share_the_scores(shared: Score, trainings: list[int]) -> None:
    """Whatever else differs; ids and documents do not count. Without a cache every run trains."""
    alone = scores(splits())
    assert alone["train_words"] == sum(len(sentence.words) for sentence in splits()["aa_one", "train"])
    assert 0 < alone["dev_f1"] == alone["sets"]["bb_two"]["crf"] > alone["sets"]["bb_two"]["capitals"]
    assert scores(splits()) == alone
    assert trainings == [30, 30]
    assert shared(splits()) == alone
    renamed = {
        key: [replace(sentence, id=f"other {sentence.id}", document="text") for sentence in sentences]
        for key, sentences in splits().items()
    }
    assert shared(renamed, "tuning=full", "train.seed=3", "checkpoint=y") == alone
    assert trainings == [30, 30, 30]
    assert list(alone["sets"]["bb_two"]) == list(shared(splits())["sets"]["bb_two"])  # same order


def _without_last(sentences: list[Sentence]) -> list[Sentence]:
    return sentences[:-1]


def _other_tag(sentences: list[Sentence]) -> list[Sentence]:
    """The first word of the first sentence changes its tag."""
    first = sentences[0]
    tag = "O" if first.tags[0] != "O" else "B-LOC"
    return [
        replace(first, tags=(tag, *(other.replace("I-", "B-") for other in first.tags[1:]))),
        *sentences[1:],
    ]


def _other_word(sentences: list[Sentence]) -> list[Sentence]:
    return [replace(sentences[0], words=("Sa", *sentences[0].words[1:])), *sentences[1:]]


@pytest.mark.parametrize("change", [_without_last, _other_tag, _other_word])
@pytest.mark.parametrize("part", splits(), ids="-".join)
def test_other_sentences_have_other_scores(
    shared: Score, trainings: list[int], part: tuple[str, str], change: Callable[[Any], Any]
) -> None:
    shared(splits())
    changed = splits() | {part: change(splits()[part])}
    assert shared(changed) == scores(changed)
    assert len(trainings) == 3


def test_other_settings_code_and_versions_have_other_scores(
    shared: Score, trainings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = shared(splits())
    assert shared(splits(), sets=("aa_one",))["sets"] == {"aa_one": everything["sets"]["aa_one"]}
    assert shared(splits(), "data.max_train_sentences=9") != everything
    assert shared(splits(), "data.max_train_sentences=9", "data.subset_seed=1") != everything
    assert trainings == [30, 30, 9, 9]
    monkeypatch.setattr(baseline_scores, "source_hash", lambda: "other")
    assert shared(splits()) == everything
    monkeypatch.setattr(baseline_scores, "installed_version", lambda _: "1.0")
    assert shared(splits()) == everything
    assert trainings == [30, 30, 9, 9, 30, 30]


def test_concurrent_runs_train_once(shared: Score, trainings: list[int]) -> None:
    with ThreadPoolExecutor(3) as threads:
        first, *others = threads.map(lambda _: shared(splits()), range(3))
    assert others == [first, first]
    assert trainings == [30]


def test_a_damaged_file_and_a_full_disk_cost_a_training_only(
    shared: Score, trainings: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = shared(splits())
    (file,) = (tmp_path / "cache" / "baselines").iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    assert shared(splits()) == right == shared(splits())
    assert trainings == [30, 30]
    file.unlink()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(baseline_scores, "write_json", full)
    assert shared(splits()) == right
    assert trainings == [30, 30, 30]
    assert list(file.parent.iterdir()) == []  # the lock of a run that ends is removed
    file.parent.rmdir()
    file.parent.write_text("not a folder")
    assert shared(splits()) == right


def test_baselines_learn_from_all_sources() -> None:
    """Of a source of 300 sentences and one of 100 behind it, a quarter of the words; all if they are few."""
    train = [*labelled(300, 1), *(replace(sentence, id=f"b{sentence.id}") for sentence in labelled(100, 2))]
    words = sum(len(sentence.words) for sentence in train) // 4
    used = sample(train, words)
    assert words - 4 < sum(len(sentence.words) for sentence in used) <= words
    assert 15 <= sum(sentence.id.startswith("b") for sentence in used) <= 35
    numbers = [train.index(sentence) for sentence in used]
    assert numbers == sorted(set(numbers))
    assert sample(train) == train
    assert sample([]) == []
