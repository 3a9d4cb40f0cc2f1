"""Word classes as features (benchmarks/class_features.py), where the class of a word decides its tag."""

from __future__ import annotations

import json
from pathlib import Path

import class_features
import numpy as np
import pytest
import torch
from ner_world import make_tokenizer, write_checkpoint

from analysis.load.schema import decode_result
from metapt.config import commandline, settings
from metapt.data.corpus_words import find_units, token_kinds, token_texts
from metapt.data.iob2 import Sentence, write_iob2
from metapt.data.word_classes import WordClasses
from metapt.runs import Run
from metapt.tagger.encoding import EncodingSettings, encode

PERSONS = ("Ana", "Lim", "Pedro", "Maria", "Juan", "Cruz", "Red", "Cross")
OTHERS = ("lives", "works", "moved", "met", "the", "it", "for", "all")


def ids_of(word: str) -> tuple[int, ...]:
    return tuple(make_tokenizer()(f" {word}")["input_ids"])


@pytest.fixture(scope="module")
def table() -> class_features.ClassTable:
    """Two partitions for training, one that is held out; in both, persons have a class of their own."""
    kinds = token_kinds(token_texts(make_tokenizer().backend_tokenizer))
    words = [*PERSONS, *OTHERS]
    keys = np.concatenate([find_units(np.array(ids_of(word)), kinds).keys for word in words])
    is_person = np.array([word in PERSONS for word in words])
    order = np.argsort(keys)
    labels = np.stack([is_person, np.where(is_person, 2, np.arange(len(words)) % 2), is_person])
    counts = np.ones(len(words), np.int64)
    texts = tuple(f" {words[index]}" for index in order)
    return class_features.ClassTable(
        WordClasses(keys[order], counts, labels[:, order].astype(np.int16), texts), kinds
    )


def test_classes_of_words(table: class_features.ClassTable) -> None:
    found = table.of_words([ids_of(word) for word in ("Ana", "lives", "Ana-Lim", "Anas", "Red")])
    assert (table.partitions, table.size) == (2, 1 + 2 + 3)
    assert found[0].tolist() == found[4].tolist() == [2, 5]
    assert found[1].tolist() == [1, 3]
    assert found[2:4].tolist() == [[0, 0], [0, 0]]  # two words and a hyphen; a word that is in no class


def test_words_of_windows_have_the_classes_of_the_words(table: class_features.ClassTable) -> None:
    """Also of a sentence that is longer than a window."""
    words = tuple(np.random.default_rng(0).choice([*PERSONS, *OTHERS, "unknown"], 60).tolist())
    tokenizer = EncodingSettings(prefix_space=True, max_len=32).word_tokenizer(make_tokenizer())
    encoded = encode([Sentence("s", words, ("O",) * 60)], tokenizer, 32, ["O"], split=False)
    assert len(encoded.windows) > 1
    assert table.of_set(encoded).tolist() == table.of_words([ids_of(word) for word in words]).tolist()


def test_words_of_entities_and_other_words_that_have_classes(table: class_features.ClassTable) -> None:
    """Words are counted as often as they occur; numbers and punctuation are neither."""
    sentences = [
        Sentence("a", ("Ana", "lives", "in", "1999", "."), ("B-PER", "O", "O", "O", "O")),
        Sentence("b", ("Ana", "Xyz", "works"), ("B-PER", "I-PER", "O")),
    ]
    tokenizer = EncodingSettings(prefix_space=True, max_len=32).word_tokenizer(make_tokenizer())
    of_entities, others = class_features.entity_words(sentences), class_features.other_words(sentences)
    assert of_entities == ["Ana", "Ana", "Xyz"]
    assert others == ["lives", "in", "works"]
    assert table.has_classes(tokenizer(of_entities)).tolist() == [True, True, False]
    assert table.has_classes(tokenizer(others)).tolist() == [True, False, True]


def test_a_class_adds_its_scores(table: class_features.ClassTable) -> None:
    layer = class_features.ClassTagLayer(4, table.size, ["O", "B-PER", "I-PER"], "crf", 0.0)
    states, classes = torch.randn(3, 4), torch.tensor([[2.0, 5.0], [1.0, 3.0], [0.0, 0.0]])
    lengths = torch.tensor([3])
    with torch.no_grad():
        layer.of_classes.weight[1:] = torch.randn(table.size - 1, 3)
        found = layer.emissions(torch.cat([states, classes], 1), lengths)[0] - layer.linear(states)
    weights = layer.of_classes.weight.detach()
    expected = torch.stack([weights[2] + weights[5], weights[1] + weights[3], torch.zeros(3)])
    torch.testing.assert_close(found, expected)


def world(folder: Path) -> Path:
    """Sentences in which half of the persons, those of the test set, are in no training sentence."""
    rng = np.random.default_rng(0)
    for split, persons, count in (
        ("train", PERSONS[:4], 60),
        ("dev", PERSONS[:4], 10),
        ("test", PERSONS[4:], 20),
    ):
        sentences = []
        for number in range(count):
            words = [str(rng.choice(persons if rng.random() < 0.3 else OTHERS)) for _ in range(8)]
            tags = [
                f"{'I' if index and words[index - 1] in PERSONS else 'B'}-PER" if word in PERSONS else "O"
                for index, word in enumerate(words)
            ]
            sentences.append(Sentence(f"{split}{number}", tuple(words), tuple(tags)))
        (folder / "xx_one").mkdir(parents=True, exist_ok=True)
        write_iob2(folder / "xx_one" / f"{split}.iob2", sentences)
    return folder


def test_classes_find_persons_that_no_training_sentence_has(
    table: class_features.ClassTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [f"data.uner_dir={world(tmp_path / 'sets')}", "data.eval_sets=[xx_one]", "source=xx_one"]
    words = [
        *sets,
        "data=uner",
        "ner.lr=0.05",
        "ner.max_epochs=20",
        "ner.batch_size=4",
        "ner.dropout=0.5",
        "tuning=head_only",
        "device=cpu",
    ]
    words.append(f"checkpoint={write_checkpoint(tmp_path / 'model')}")
    run, again = (commandline.load("finetune", [*words, f"run_dir={tmp_path / name}"]) for name in "aa")
    class_features.tune(run, table)
    result = Run(tmp_path / "a").result()
    assert result["sets"]["xx_one"]["f1"] > 0.95
    assert result["sets"]["xx_one"][class_features.COVERED] == 1
    assert result["origin"]["variant"] == class_features.VARIANT
    assert result["settings"] == settings(run) | {
        class_features.VARIANT: True
    }  # another tagger than without classes
    monkeypatch.setattr(class_features, "build_setup", None)  # a finished run is not trained again
    class_features.tune(again, table)

    crf = commandline.load("baseline", [*sets, "data=uner", "name=crf", f"run_dir={tmp_path / 'crf'}"])
    class_features.train_crf(crf, table, make_tokenizer())
    assert Run(tmp_path / "crf").result()["sets"]["xx_one"]["f1"] > 0.95
    results = [decode_result((tmp_path / name / "result.json").read_bytes()) for name in ("a", "crf")]
    assert [type(each).__name__ for each in results] == ["FinetuneResult", "BaselineResult"]


def test_table_of_a_grid(tmp_path: Path) -> None:
    """Means over the runs that both folders have."""
    jobs = [
        {
            "id": f"finetune/s{seed}",
            "kind": "finetune",
            "objective": "vanilla",
            "tuning": "head_only",
            "needs": ["pretrain/a"],
        }
        for seed in (0, 1, 2)
    ]
    jobs.append(
        {
            "id": "finetune/full",
            "kind": "finetune",
            "objective": "vanilla",
            "tuning": "full",
            "needs": ["pretrain/a"],
        }
    )
    plan = {"grid": "x", "jobs": jobs, "comparisons": [], "targets": [], "margin": 2.0}
    grid, out = tmp_path / "grid", tmp_path / "out"
    for root, scores in ((grid, (0.1, 0.2, 0.9)), (out, (0.3, 0.5))):
        for seed, f1 in enumerate(scores):
            run = Run(root / "finetune" / f"s{seed}")
            run.path.mkdir(parents=True)
            run.finish({"sets": {"xx_one": {"f1": f1, class_features.COVERED: 0.25}}})
    (grid / "plan.json").write_text(json.dumps(plan))
    assert "| xx_one | 25% | 15.0 | 40.0 | - | - |" in class_features.Control(grid, out).table()
