"""Cached word features of a frozen decoder give the same bits and are never stale."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from ner_world import labelled, write_checkpoint
from tuned import Killed, assert_same, die_after, tune

from metapt.data.iob2 import write_iob2
from metapt.finetuning import features as features_module
from metapt.runs import Run
from metapt.tagger.encoding import EncodedSet, word_features
from metapt.tagger.model import Tagger


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that collects the number of words of each set whose features are computed from now on."""
    counts: list[int] = []

    def counted(tagger: Tagger, encoded: EncodedSet, *more: Any) -> torch.Tensor:
        counts.append(len(encoded.tags))
        return word_features(tagger, encoded, *more)

    monkeypatch.setattr(features_module, "word_features", counted)
    return counts


def test_cache_gives_the_same_bits_and_avoids_decoder_passes(
    world: Path, head_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train, dev and two test sets are computed once, also with another seed, learning rate or head, and after a kill."""
    counts = count_calls(monkeypatch)
    cached = ("ner.max_epochs=6", f"ner.cache_dir={tmp_path / 'cache'}")
    with monkeypatch.context() as patch:
        die_after(patch, 8)
        with pytest.raises(Killed):
            tune(world, tmp_path / "first", *cached)
    assert_same(tune(world, tmp_path / "first", *cached), head_run)
    assert len(counts) == 4
    assert_same(tune(world, tmp_path / "second", *cached), head_run)
    tune(world, tmp_path / "third", *cached, "train.seed=1", "ner.lr=0.01", "ner.head=softmax")
    assert len(counts) == 4
    plain = tune(world, tmp_path / "plain", "ner.max_epochs=1", "data.max_train_sentences=20")
    few = tune(world, tmp_path / "few", *cached, "ner.max_epochs=1", "data.max_train_sentences=20")
    assert_same(few, plain)
    assert len(counts) == 4 + 4 + 1


def test_combined_sources_share_the_features_of_their_sets(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(world / "uner", tmp_path / "uner")
    for split, count, seed in (("train", 30, 8), ("dev", 11, 9)):
        write_iob2(tmp_path / "uner" / "bb_two" / f"{split}.iob2", labelled(count, seed))
    counts = count_calls(monkeypatch)
    more = ("ner.max_epochs=2", f"data.uner_dir={tmp_path / 'uner'}", f"ner.cache_dir={tmp_path / 'cache'}")
    mixed = tune(world, tmp_path / "mixed", *more, "source=bb_two+aa_one")
    assert mixed.result()["train_sentences"] == 78
    assert len(counts) == 6
    for source in ("aa_one", "bb_two", "all"):
        tune(world, tmp_path / source, *more, f"source={source}")
    assert len(counts) == 6
    again = tune(world, tmp_path / "again", *more, "source=bb_two+aa_one", "ner.cache_dir=null")
    assert_same(again, mixed)


def test_cached_features_are_never_stale(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key contains everything that the features depend on, and nothing that only the tag layer depends on."""
    cached = ("ner.max_epochs=1", f"ner.cache_dir={tmp_path / 'cache'}", "data.eval_sets=[bb_two]")
    tune(world, tmp_path / "first", *cached)
    other, config = tmp_path / "other", tmp_path / "config"
    write_checkpoint(other, seed=9)
    shutil.copytree(world / "model", config)
    settings = json.loads((config / "config.json").read_text())
    (config / "config.json").write_text(json.dumps({**settings, "rms_norm_eps": 0.01}))
    shutil.copytree(world / "uner", tmp_path / "uner")
    file = tmp_path / "uner" / "bb_two" / "test.iob2"
    file.write_text(file.read_text(encoding="utf-8").replace("\t.\t", "\t!\t"), encoding="utf-8")
    changes = {f"checkpoint={other}": 3, f"checkpoint={config}": 3, f"data.uner_dir={tmp_path / 'uner'}": 1}
    changes |= {"ner.subword_pooling=mean": 3, "ner.prefix_space=false": 3, "ner.eval_batch_size=3": 3}
    changes |= {"ner.max_len=8": 3, "ner.precision=bf16": 3}
    for number, (change, expected) in enumerate(changes.items()):
        AcceleratorState._reset_state(reset_partial_state=True)
        with monkeypatch.context() as patch:
            counts = count_calls(patch)
            run = tune(world, tmp_path / f"cached{number}", *cached, change)
            assert len(counts) == expected, change
            assert_same(tune(world, tmp_path / f"plain{number}", *cached, change, "ner.cache_dir=null"), run)
