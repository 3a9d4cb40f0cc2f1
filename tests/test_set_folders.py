"""Folders of labelled sets in both layouts of Universal NER, and splits that are held out where a set has none."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest

from metapt.config import NerDataConfig
from metapt.data.iob2 import Sentence, write_iob2
from metapt.data.labelled_sets import open_collection, source_sets
from metapt.errors import UserError


def held_out(tmp_path: Path, name: str = "xx_odd", **keys: float) -> dict[str, list[Sentence]]:
    collection = open_collection(NerDataConfig(name="uner", uner_dir=str(tmp_path), **keys))
    return {split: collection.load(name, split) for split in collection.splits[name]}


def test_missing_splits_are_held_out(tmp_path):
    sentences = [Sentence(str(number), ("Ana",), ("B-PER",)) for number in range(400)]
    write_iob2(tmp_path / "xx_odd" / "train.iob2", sentences)
    write_iob2(tmp_path / "xx_one" / "train.iob2", sentences[:2])
    write_iob2(tmp_path / "xx_one" / "dev.iob2", sentences[2:4])
    parts = held_out(tmp_path)
    assert {split: len(part) for split, part in parts.items()} == {"train": 320, "test": 40, "dev": 40}
    assert sorted(chain(*parts.values()), key=lambda sentence: int(sentence.id)) == sentences
    assert parts == held_out(tmp_path) != held_out(tmp_path, split_seed=1)
    assert len(held_out(tmp_path, dev_fraction=0.25, test_fraction=0)["dev"]) == 100
    assert held_out(tmp_path, "xx_one", test_fraction=0)["dev"] == sentences[2:4]
    collection = open_collection(NerDataConfig(name="uner", uner_dir=str(tmp_path), test_fraction=0))
    assert source_sets(collection, "all") == ["xx_odd", "xx_one"]
    collection.load("xx_odd", "dev")
    assert collection.notes() == [
        "xx_odd: dev 40 sentences held out of its train split by sentence (data.split_seed=0); train 360"
    ]
    (tmp_path / "xx_one" / "dev.iob2").unlink()
    with pytest.raises(
        UserError, match=r"xx_one: its 2 sentence\(s\) cannot be divided into train, test and dev"
    ):
        held_out(tmp_path, "xx_one")


@pytest.mark.parametrize("layout", ["single repository", "folder of repositories", "SET/SPLIT.iob2"])
def test_universal_ner_as_it_is_published(tmp_path, layout):
    folder, name = {
        "single repository": (tmp_path, "en_ewt-ud-{}.iob2"),
        "folder of repositories": (tmp_path / "UNER_English-EWT", "en_ewt-ud-{}.iob2"),
        "SET/SPLIT.iob2": (tmp_path / "en_ewt", "{}.iob2"),
    }[layout]
    for split in ("train", "dev", "test"):
        write_iob2(folder / name.format(split), [Sentence(split, ("Ana",), ("B-PER",))])
    (folder / "README.md").write_text("x")
    (tmp_path / "LICENSES").mkdir()
    (tmp_path / "scripts").mkdir()
    collection = open_collection(NerDataConfig(name="uner", uner_dir=str(tmp_path)))
    assert collection.splits == {"en_ewt": ("dev", "test", "train")}
    assert [collection.load("en_ewt", split)[0].id for split in ("train", "dev", "test")] == [
        "train",
        "dev",
        "test",
    ]
    assert collection.notes() == [f"{tmp_path}: no labelled set in scripts"]


def test_a_folder_that_matches_nothing_is_named(tmp_path):
    (tmp_path / "english").mkdir()
    (tmp_path / "english" / "train.conll").write_text("Ana\tB-PER\n")
    with pytest.raises(UserError, match=r"contains neither SET/SPLIT\.iob2 nor .*; it contains english"):
        open_collection(NerDataConfig(name="uner", uner_dir=str(tmp_path)))


def test_files_of_one_folder_given_by_their_paths_are_one_set(tmp_path):
    """`source=train.conll data.eval_sets=[test.conll]`, as docs/data.md has it; other splits are held out."""
    (tmp_path / "own").mkdir()
    train, test = tmp_path / "own" / "train.conll", tmp_path / "own" / "test.conll"
    train.write_text("Ana B-PER\nran O\n\n" * 30)
    test.write_text("Cebu B-LOC\n\n")
    collection = open_collection(NerDataConfig(name="custom"), str(train), [str(test)])
    assert collection.splits == {"own": ("train", "test", "dev")}
    assert collection.paths == {str(train): "own", str(test): "own"}
    parts = {split: len(collection.load("own", split)) for split in ("train", "dev", "test")}
    assert parts == {"train": 27, "dev": 3, "test": 1}
    other = tmp_path / "more" / "own"
    other.mkdir(parents=True)
    (other / "test.conll").write_text("Davao B-LOC\n")
    for paths in ([str(test), str(other / "test.conll")], [str(other / "test.conll")]):
        with pytest.raises(UserError, match="two sets called own"):
            open_collection(NerDataConfig(name="custom"), str(train), paths)


def test_every_document_is_in_one_fold(tmp_path):
    documents = [Sentence(f"{n}", ("Ana", f"w{n}"), ("B-PER", "O"), f"d{n // 2}") for n in range(46)]
    write_iob2(tmp_path / "xx" / "train.iob2", documents)
    write_iob2(tmp_path / "xx" / "test.iob2", documents[:2])
    write_iob2(tmp_path / "yy" / "test.iob2", documents[:4])
    folds = [held_out(tmp_path, "xx", fold=f"{number}/5") for number in range(1, 6)]
    tests = [{sentence.id for sentence in fold["test"]} for fold in folds]
    assert sorted(chain(*tests), key=int) == [sentence.id for sentence in documents]
    assert {len(test) for test in tests} == {8, 10}
    for fold in folds:
        parts = [{sentence.document for sentence in fold[split]} for split in ("train", "dev", "test")]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 23
    assert (
        held_out(tmp_path, "xx", fold="1/5") == folds[0] != held_out(tmp_path, "xx", fold="1/5", split_seed=1)
    )
    assert held_out(tmp_path, "yy", fold="1/5")["test"] == documents[:4]
    for wrong in ("0/5", "6/5", "1", "1/1"):
        with pytest.raises(UserError, match=r"data\.fold=.*must be k/n"):
            held_out(tmp_path, "xx", fold=wrong)
