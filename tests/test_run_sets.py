"""The labelled sets of one run: training sentences by source, and what a run refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from ner_world import labelled, write_collection

from metapt.config import NerDataConfig
from metapt.data.iob2 import Sentence, write_iob2
from metapt.data.run_sets import open_run_sets
from metapt.data.subsets import scored_words, training_subset
from metapt.errors import UserError


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_collection(tmp_path_factory.mktemp("sets"))
    for split, seed in (("train", 5), ("dev", 6)):
        write_iob2(folder / "cc_three" / f"{split}.iob2", labelled(20, seed))
    return folder


@pytest.mark.parametrize("limit", [None, 1, 7, 10_000])
@pytest.mark.parametrize("source", ["aa_one", "aa_one+cc_three"])
def test_the_sample_of_all_sources_comes_by_source(world: Path, source: str, limit: int | None) -> None:
    data = NerDataConfig(name="uner", uner_dir=str(world), max_train_sentences=limit)
    sets = open_run_sets(data, source)
    together = [sentence for sentences in sets.sentences("train") for sentence in sentences]
    chosen = training_subset(together, data, scored_words(sets.collection, sets.evaluated))
    sample = sets.training_sample()
    assert [sentence for sentences in sample for sentence in sentences] == [together[n] for n in chosen]
    for name, sentences in zip(source.split("+"), sample, strict=True):
        ids = {id(sentence) for sentence in sets.collection.load(name, "train")}
        assert {id(sentence) for sentence in sentences} <= ids


def test_a_rule_learns_from_no_set(world: Path) -> None:
    sets = open_run_sets(NerDataConfig(name="uner", uner_dir=str(world), max_train_sentences=5), None)
    assert sets.training_sample() == sets.sentences("train") == sets.sentences("dev") == []
    assert list(sets.tests()) == list(sets.evaluated) == sets.collection.sets("test")


def test_a_split_that_the_run_does_not_read_is_not_in_its_fingerprint(world: Path) -> None:
    data = NerDataConfig(name="uner", uner_dir=str(world))
    both, train_only = (open_run_sets(data, "aa_one", splits) for splits in (("train", "dev"), ("train",)))
    assert both.sentences("dev")
    assert not train_only.sentences("dev")
    assert both.fingerprint() != train_only.fingerprint()


@pytest.mark.parametrize("empty", ["train", "dev"])
def test_a_source_needs_entities(tmp_path: Path, empty: str) -> None:
    """In each split that the run reads; test sets need none."""
    data = NerDataConfig(name="uner", uner_dir=str(tmp_path))
    for split in ("train", "dev", "test"):
        tag = "O" if split in (empty, "test") else "B-PER"
        write_iob2(tmp_path / "xx" / f"{split}.iob2", [Sentence("1", ("Ana",), (tag,))])
    with pytest.raises(UserError, match=f"source=xx: its {empty} split contains no entity"):
        open_run_sets(data, "xx")
    if empty == "dev":
        open_run_sets(data, "xx", ("train",))
    write_iob2(tmp_path / "xx" / f"{empty}.iob2", [Sentence("1", ("Ana",), ("B-PER",))])
    open_run_sets(data, "xx")
