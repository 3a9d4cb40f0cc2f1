"""Fine-tuning that continues from a tagger: few sentences of another set, a fixed number of updates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from ner_world import labelled
from tuned import Killed, assert_same, die_after, tune

from metapt.data.iob2 import write_iob2
from metapt.errors import UserError
from metapt.finetuning.tuner import Tuner
from metapt.runs import Run
from metapt.tagger.serialization import load_tagger

SHOTS = ("source=bb_two", "ner.max_steps=7", "data.max_train_sentences=10", "tuning=full", "ner.lr=0.005")


@pytest.fixture(scope="module")
def target(world: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The override for a collection in which bb_two has a train split, but no dev split."""
    folder = tmp_path_factory.mktemp("target") / "uner"
    shutil.copytree(world / "uner", folder)
    write_iob2(folder / "bb_two" / "train.iob2", labelled(60, 9))
    return f"data.uner_dir={folder}"


@pytest.fixture(scope="module")
def shot_run(world: Path, full_run: Run, target: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return tune(
        world, tmp_path_factory.mktemp("shots") / "run", f"checkpoint={full_run.path}", target, *SHOTS
    )


def test_result_of_a_continued_run(full_run: Run, shot_run: Run) -> None:
    result, first = shot_run.result(), full_run.result()
    assert (result["steps"], result["best_step"], result["train_sentences"]) == (7, 7, 10)
    assert result["epochs"] == 4  # two updates an epoch
    assert result["dev_f1"] is None
    assert {line["kind"] for line in shot_run.metrics()} == {"train"}
    assert result["origin"] == first["origin"]
    (tuning,) = result["earlier_tunings"]
    assert all(tuning[name] == first[name] for name in tuning)
    assert (tuning["source"], tuning["tuning"], tuning["steps"]) == ("aa_one", "full", first["steps"])
    assert "no dev set was used" in (shot_run.tagger_dir / "README.md").read_text()


def test_a_chain_of_tunings_is_kept(world: Path, shot_run: Run, target: str, tmp_path: Path) -> None:
    """Also where only the folder of the tagger is left."""
    shutil.copytree(shot_run.tagger_dir, tmp_path / "tagger")
    run = tune(
        world, tmp_path / "run", f"checkpoint={tmp_path / 'tagger'}", target, *SHOTS[:2], "data.subset_seed=1"
    )
    sources = [tuning["source"] for tuning in run.result()["earlier_tunings"]]
    assert sources == ["aa_one", "bb_two"]
    assert run.result()["origin"] == {"model": "model"}
    assert len(json.loads((run.tagger_dir / "metapt.json").read_text())["tunings"]) == 3


def test_it_continues_with_decoder_tag_layer_and_transitions(
    world: Path, full_run: Run, target: str, tmp_path: Path
) -> None:
    """After one update with a rate of almost zero the tagger is the one it began with, and scores the same."""
    run = tune(
        world,
        tmp_path / "run",
        f"checkpoint={full_run.path}",
        target,
        *SHOTS,
        "ner.lr=1e-30",
        "ner.max_steps=1",
    )
    before, after = (load_tagger(each.tagger_dir)[0].state_dict() for each in (full_run, run))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert run.result()["sets"] == full_run.result()["sets"]


@pytest.mark.parametrize("tuning", ["head_only", "lora"])
def test_other_tunings_continue_too(
    world: Path, full_run: Run, target: str, tmp_path: Path, tuning: str
) -> None:
    run = tune(
        world,
        tmp_path / "run",
        f"checkpoint={full_run.path}",
        target,
        *SHOTS,
        f"tuning={tuning}",
        "ner.lr=1e-3",
    )
    before, after = (load_tagger(each.tagger_dir)[0] for each in (full_run, run))
    assert not torch.equal(before.layer.linear.weight, after.layer.linear.weight)
    weight = "layers.0.self_attn.q_proj.weight"
    same = torch.equal(before.decoder.state_dict()[weight], after.decoder.state_dict()[weight])
    assert same == (tuning == "head_only")


@pytest.mark.parametrize("steps", [3, 4, 7])
def test_a_killed_run_resumes_to_the_same_results(
    world: Path,
    full_run: Run,
    shot_run: Run,
    target: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
) -> None:
    """Killed within an epoch, between two epochs, and after the last update."""
    monkeypatch.setattr("metapt.finetuning.tuner.CHECKPOINT_STEPS", 2)
    words = [f"checkpoint={full_run.path}", target, *SHOTS]
    with monkeypatch.context() as patch:
        if steps == 7:
            patch.setattr(Tuner, "_end_unscored_epoch", _die_at_the_end)
        else:
            die_after(patch, steps)
        with pytest.raises(Killed):
            tune(world, tmp_path / "run", *words)
    assert_same(tune(world, tmp_path / "run", *words), shot_run)


def _die_at_the_end(self: Tuner, first: int) -> None:
    self.state.epoch += 0 if self.state.step == 7 else 1
    self.checkpoints.save()
    if self.state.step == 7:
        raise Killed


def test_subsets_do_not_depend_on_the_seed_of_training(
    world: Path, full_run: Run, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_on = []
    monkeypatch.setattr(Tuner, "train", lambda self: trained_on.append(self.setup.train.together.sha256()))
    for seed, subset_seed in ((0, 0), (1, 0), (0, 1)):
        words = [
            f"checkpoint={full_run.path}",
            target,
            *SHOTS,
            f"train.seed={seed}",
            f"data.subset_seed={subset_seed}",
        ]
        tune(world, tmp_path / f"{seed}-{subset_seed}", *words)
    assert trained_on[0] == trained_on[1] != trained_on[2]


def test_no_scored_sentence_is_trained_on(world: Path, full_run: Run, target: str, tmp_path: Path) -> None:
    """A target whose train split is its test split and one more sentence."""
    folder = tmp_path / "uner"
    shutil.copytree(world / "uner", folder)
    own = [*labelled(7, 4), labelled(1, 77)[0].__class__("new", ("Zamboanga", "sleeps"), ("B-LOC", "O"))]
    write_iob2(folder / "bb_two" / "train.iob2", own)
    words = [f"checkpoint={full_run.path}", f"data.uner_dir={folder}", *SHOTS]
    run = tune(world, tmp_path / "one", *words, "data.max_train_sentences=1")
    assert run.result()["train_words"] == 2  # it is the new sentence
    with pytest.raises(UserError, match="bb_two has only 1 training sentences that are in no test set"):
        tune(world, tmp_path / "two", *words, "data.max_train_sentences=2")
    assert not (tmp_path / "two" / "config.yaml").exists()


def test_a_target_of_data_corpora_without_a_dev_split(world: Path, full_run: Run, tmp_path: Path) -> None:
    """As for Tagalog and Cebuano: the samples are entities per type, and the set is scored by its own test split."""
    write_iob2(tmp_path / "train.iob2", labelled(60, 9))
    write_iob2(tmp_path / "test.iob2", labelled(9, 10))
    (tmp_path / "news.yaml").write_text(
        "name: xx_news\nlicence: none\nfolder: .\nfiles: {train: train.iob2, test: test.iob2}\n"
        "columns: [index, word, tag, other, annotator]\nseparator: tab\ncomment: '#'\n"
    )
    words = [f"checkpoint={full_run.path}", "source=xx_news", f"data.corpora=[{tmp_path / 'news.yaml'}]"]
    run = tune(world, tmp_path / "run", *words, "data.entities_per_type=2", "ner.max_steps=4", *SHOTS[3:])
    result = run.result()
    assert result["source_sets"] == ["xx_news"]
    assert result["sets"]["xx_news"]["f1"] > 0.8
    assert 2 <= result["train_sentences"] <= 3 * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("ner.head=softmax", "trained with ner.head=crf; set it to continue"),
        ("ner.subword_pooling=last", "trained with ner.subword_pooling=first"),
        ("ner.prefix_space=false", "trained with ner.prefix_space=True"),
        ("data.entities_per_type=3", "cannot be combined"),
    ],
)
def test_what_cannot_be_continued(
    world: Path, full_run: Run, target: str, tmp_path: Path, change: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        tune(world, tmp_path / "run", f"checkpoint={full_run.path}", target, *SHOTS, change)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_run_without_a_tagger_cannot_be_continued(
    world: Path, full_run: Run, target: str, tmp_path: Path
) -> None:
    shutil.copytree(full_run.path, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "tagger")
    with pytest.raises(UserError, match="has no tagger and no model"):
        tune(world, tmp_path / "run", f"checkpoint={tmp_path / 'copy'}", target, *SHOTS)


def test_without_a_dev_split_the_number_of_updates_must_be_fixed(
    world: Path, full_run: Run, target: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="'bb_two' has no dev split"):
        tune(
            world,
            tmp_path / "run",
            f"checkpoint={full_run.path}",
            target,
            "source=bb_two",
            "data.dev_fraction=0",
        )


def test_another_tagger_is_another_run(
    world: Path, full_run: Run, shot_run: Run, target: str, tmp_path: Path
) -> None:
    """The transitions of its CRF count, which are not among the safetensors weights."""
    tagger = tmp_path / "tagger"
    shutil.copytree(full_run.tagger_dir, tagger)
    (tagger / "manifest.json").unlink()
    config = json.loads((tagger / "config.json").read_text())
    config["tagger"]["crf"]["end"][0] += 1
    (tagger / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="weights"):
        tune(world, shot_run.path, f"checkpoint={tagger}", target, *SHOTS)
