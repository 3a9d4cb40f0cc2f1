"""Fine-tuning of a small decoder: learning, early stopping, results, and rejected configurations."""

from __future__ import annotations

import json
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run_module
from ner_world import labelled, write_checkpoint
from safetensors.torch import load_file
from tuned import arguments, assert_same, outcome, tune

from metapt.config import NerDataConfig, commandline
from metapt.data.labelled_sets import open_collection
from metapt.data.subsets import scored_words, training_subset
from metapt.errors import UserError
from metapt.evaluation.run_baseline import run_baseline
from metapt.evaluation.span_f1 import set_scores
from metapt.finetuning import tuner
from metapt.finetuning.run_summary import print_summary
from metapt.finetuning.tuner import Tuner
from metapt.models.base_model import load_base_model
from metapt.runs import Run
from metapt.tagger.encoding import EncodedSet, WordFeatures, word_features
from metapt.tagger.serialization import load_tagger


def test_full_tuning_learns(full_run: Run) -> None:
    result = full_run.result()
    assert result["dev_f1"] > 0.85
    assert result["sets"]["aa_one"]["f1"] > 0.95
    losses = [line["loss_nats"] for line in full_run.metrics() if line["kind"] == "train"]
    assert losses[-1] < losses[0] / 10


@pytest.mark.parametrize("head", ["crf", "softmax"])
def test_head_only_learns_without_changing_the_decoder(world: Path, tmp_path: Path, head: str) -> None:
    run = tune(world, tmp_path / "run", f"ner.head={head}", "ner.max_epochs=12", "ner.subword_pooling=last")
    assert run.result()["dev_f1"] > 0.6
    before, after = (
        load_base_model(world / "model").state_dict(),
        load_tagger(run.tagger_dir)[0].decoder.state_dict(),
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_full_tuning_changes_the_decoder(world: Path, full_run: Run) -> None:
    before, after = (
        load_base_model(world / "model").state_dict(),
        load_tagger(full_run.tagger_dir)[0].decoder.state_dict(),
    )
    assert not any(torch.equal(before[name], after[name]) for name in before if "proj" in name)


def test_result_and_metrics_have_the_documented_keys(head_run: Run) -> None:
    result = head_run.result()
    documented = {
        "kind",
        "origin",
        "source",
        "tuning",
        "seed",
        "ner_head",
        "steps",
        "epochs",
        "best_epoch",
        "best_step",
    }
    documented |= {
        "dev_f1",
        "seconds_total",
        "types",
        "train_sentences",
        "train_sentences_split",
        "train_words",
        "sentences_left_out",
        "pooled_character_fraction",
        "generated_data",
        "lr",
        "baselines",
        "source_sets",
        "source_sha256",
        "custom_sets",
        "shared_sentences",
        "settings",
        "inputs",
        "sets",
        "earlier_tunings",
    }
    assert result.keys() == documented
    assert result["origin"] == {"model": "model"}
    assert result["earlier_tunings"] == []
    assert (result["steps"], result["epochs"], result["train_sentences"]) == (36, 6, 48)
    assert result["sets"].keys() == {"aa_one", "bb_two"}
    tuned = {sentence.words for sentence in [*labelled(48, 1), *labelled(12, 2)]}
    shared = {"aa_one": labelled(9, 3), "bb_two": labelled(7, 4)}
    assert {name: counts["sentences"] for name, counts in result["shared_sentences"].items()} == {
        name: sum(sentence.words in tuned for sentence in sentences) for name, sentences in shared.items()
    }
    metrics = list(head_run.metrics())
    train, dev = ([line for line in metrics if line["kind"] == kind] for kind in ("train", "dev"))
    assert [line["step"] for line in train] == list(range(1, 37))
    assert all(line.keys() == {"step", "kind", "epoch", "loss_nats", "lr", "seconds_total"} for line in train)
    assert [(line["step"], line["epoch"]) for line in dev] == [(6 * epoch, epoch) for epoch in range(1, 7)]
    assert result["dev_f1"] == max(line["f1"] for line in dev) == dev[result["best_epoch"] - 1]["f1"]
    assert not head_run.checkpoints()


def test_first_loss_is_that_of_an_untrained_tagger(world: Path, head_run: Run) -> None:
    """With seven tags, a CRF at zero and a small linear layer it is near the entropy of all allowed sequences."""
    first = next(head_run.metrics())["loss_nats"]
    assert 1.0 < first < 2.5


def test_predictions_match_the_saved_tagger(world: Path, head_run: Run) -> None:
    """Recomputed from the tagger folder alone, one sentence at a time."""
    tagger, tokenizer, _ = load_tagger(head_run.tagger_dir)
    lines = [
        json.loads(line) for line in (head_run.predictions_dir / "aa_one.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 9
    for line in lines:
        texts = [f" {word}" for word in line["words"]]
        texts = [text if tokenizer.tokenize(text)[0] != "Ġ" else text[1:] for text in texts]
        by_word = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        starts = np.cumsum([0, *map(len, by_word)])[:-1]
        with torch.no_grad():
            states = tagger.decoder(torch.tensor([list(chain(*by_word))])).last_hidden_state[0, starts]
            emissions, length = tagger.layer.linear(states)[None], torch.tensor([len(by_word)])
            decoded = tagger.layer.ner_head.decode(emissions, length)[0]
            marginals = tagger.layer.ner_head.log_marginals(emissions, length)[0]
        assert [tagger.layer.tags[tag] for tag in decoded] == line["predicted"]
        gold = [
            float(row[tagger.layer.tags.index(tag)]) for row, tag in zip(marginals, line["gold"], strict=True)
        ]
        assert gold == pytest.approx(line["gold_logprob"], abs=1e-4)


def test_frozen_features_equal_recomputed_features(
    world: Path, head_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Tuner._step

    def step(self: Tuner, batch: np.ndarray) -> tuple[float, bool]:
        data, tagger = self.setup.train.together, self.setup.tagger
        rows = data.word_rows(batch)
        now = EncodedSet(
            [data.windows[number] for number in batch],
            data.tags[rows],
            data.lengths[torch.from_numpy(batch)],
            sentences=len(batch),
            sentences_split=0,
            words_without_character=0,
        )
        features = torch.full((len(data.tags), 32), torch.nan)
        features[rows] = word_features(tagger, now, 3, self.setup.processes.accelerator)
        self.train_features = WordFeatures([features])
        self.setup.forward.train()
        return real(self, batch)

    monkeypatch.setattr(Tuner, "_step", step)
    again = tune(world, tmp_path / "run", "ner.max_epochs=6")
    losses = [
        [line["loss_nats"] for line in run.metrics() if line["kind"] == "train"] for run in (head_run, again)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_results_depend_only_on_the_seed(world: Path, head_run: Run, tmp_path: Path) -> None:
    assert_same(tune(world, tmp_path / "same", "ner.max_epochs=6"), head_run)
    other = tune(world, tmp_path / "other", "ner.max_epochs=6", "train.seed=1")
    assert outcome(other)[1] != outcome(head_run)[1]


def test_early_stopping_keeps_the_best_epoch(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([(0.0, 2.0), (0.0, 1.0), (0.5, 3.0), (0.4, 0.1), (0.5, 3.0), (0.9, 0.1)])
    monkeypatch.setattr(tuner, "dev_scores", lambda *_: next(scores))
    run = tune(world, tmp_path / "run", "ner.patience=2", "data.eval_sets=[bb_two]")
    result = run.result()
    assert (result["best_epoch"], result["best_step"], result["epochs"], result["steps"]) == (3, 18, 5, 30)
    assert result["dev_f1"] == 0.5
    assert result["sets"].keys() == {"bb_two"}
    monkeypatch.setattr(tuner, "dev_scores", lambda *_: (0.5, 1.0))
    assert torch.equal(
        outcome(tune(world, tmp_path / "short", "ner.max_epochs=1"))[2]["layer.linear.weight"],
        outcome(tune(world, tmp_path / "flat", "ner.patience=2"))[2]["layer.linear.weight"],
    )


def test_finished_run_is_left_unchanged(
    world: Path, head_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {
        path: path.stat().st_mtime_ns for path in head_run.path.rglob("*") if path != head_run.lock_file
    }
    tune(world, head_run.path, "ner.max_epochs=6")
    assert "already done" in capsys.readouterr().out
    assert before == {
        path: path.stat().st_mtime_ns for path in head_run.path.rglob("*") if path != head_run.lock_file
    }


def test_run_folder_of_another_configuration_is_rejected(world: Path, head_run: Run, tmp_path: Path) -> None:
    shutil.copytree(world / "uner", tmp_path / "uner")
    write_checkpoint(tmp_path / "model", seed=9)
    file = tmp_path / "uner" / "bb_two" / "test.iob2"
    file.write_text(file.read_text(encoding="utf-8").replace("\t.\t", "\t!\t"), encoding="utf-8")
    changes = {"ner.lr": "ner.lr=0.01", "weights": f"checkpoint={tmp_path / 'model'}"}
    changes["sentences"] = f"data.uner_dir={tmp_path / 'uner'}"
    for named, change in changes.items():
        with pytest.raises(UserError) as refused:
            tune(world, head_run.path, "ner.max_epochs=6", change)
        key, _, value = change.partition("=")
        recorded = {"ner.lr": "0.02", "checkpoint": world / "model", "data.uner_dir": world / "uner"}[key]
        line = f"{key}: recorded {recorded}, requested {value}" + f" (hash of {named} differs)" * (
            named != key
        )
        assert line in str(refused.value).replace("'", "")


def test_training_sentences_are_limited_and_read_in_windows(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tune(world, tmp_path / "run", "ner.max_epochs=1", "data.max_train_sentences=20", "ner.max_len=8")
    result = run.result()
    data = NerDataConfig(name="uner", uner_dir=str(world / "uner"), max_train_sentences=20)
    collection = open_collection(data)
    train = collection.load("aa_one", "train")
    chosen = training_subset(train, data, scored_words(collection, ["aa_one", "bb_two"]))
    assert result["train_sentences"] == 20
    assert result["train_words"] == sum(len(train[number].words) for number in chosen)
    assert result["steps"] > 3  # with the windows of longer sentences, more than three batches of eight
    assert 0 < result["train_sentences_split"] < 20
    printed = capsys.readouterr().out
    for name, scores in result["sets"].items():
        low, high = scores["f1_interval"]
        line = f"{name}: F1 {scores['f1']:.3f}, 95 % CI [{low:.3f}, {high:.3f}], {scores['gold_spans']} gold spans"
        baseline, f1 = max(result["baselines"]["sets"][name].items(), key=lambda item: item[1])
        assert f"{line}; best baseline: {baseline} {f1:.3f}" in printed
    assert_baselines_are_those_of_the_command(world, tmp_path / "crf", result)
    assert (
        f"scores: {run.result_file}; predictions: {run.predictions_dir}; tagger: {run.tagger_dir}" in printed
    )
    assert (
        f"{result['train_sentences_split']} of 20 sentences are longer than a window (ner.max_len=8)"
        in printed
    )
    assert result["sets"]["aa_one"]["words"] == sum(
        len(json.loads(line)["words"])
        for line in (run.predictions_dir / "aa_one.jsonl").read_text().splitlines()
    )


def assert_baselines_are_those_of_the_command(world: Path, run_dir: Path, result: dict[str, Any]) -> None:
    """Of `metapt baseline` on the same 20 sentences."""
    words = ["name=crf", "source=aa_one", f"data.uner_dir={world / 'uner'}", "data.max_train_sentences=20"]
    run_baseline(commandline.load("baseline", [*words, f"run_dir={run_dir}"]))
    crf = Run(run_dir).result()
    assert result["baselines"]["train_words"] == result["train_words"]
    assert result["baselines"]["dev_f1"] == crf["dev_f1"]
    assert {name: scores["crf"] for name, scores in result["baselines"]["sets"].items()} == {
        name: scores["f1"] for name, scores in crf["sets"].items()
    }


def test_a_tagger_that_predicts_nothing_says_what_to_try(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learning rate that changes nothing, and tags that are all O: the summary names the rate."""
    words = arguments(world, tmp_path, "ner.max_epochs=1", "ner.lr=1e-9")
    config = commandline.load("finetune", words)
    sets = {
        "aa_one": set_scores("test", labelled(3, 3), [["O"] * len(item.words) for item in labelled(3, 3)])
    }
    result = {
        "dev_f1": 0.0,
        "best_epoch": 1,
        "epochs": 1,
        "train_words": 9,
        "train_sentences": 3,
        "sets": sets,
    }
    result |= {"train_sentences_split": 0, "pooled_character_fraction": 1.0, "generated_data": False}
    result |= {"lr": 1e-9, "baselines": {"train_words": 9, "dev_f1": 0.25, "sets": {"aa_one": {"crf": 0.5}}}}
    print_summary(Run(tmp_path), config, result)
    printed = capsys.readouterr().out
    assert "predicts no entity in any test set. Try another ner.lr (it was 1e-09)" in printed
    assert "dev F1 0.000 is below the 0.250 of a CRF on the forms of the words (baseline crf)" in printed
    assert "gold spans; best baseline: crf 0.500" in printed
    result["baselines"]["dev_f1"], result["dev_f1"] = 0.25, 0.25
    print_summary(Run(tmp_path), config, result)
    assert "baseline crf)" not in capsys.readouterr().out


def test_evaluation_on_custom_corpora(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A set without entities is scored like any other, with a warning."""
    (tmp_path / "news.conll").write_text("Maria I-person\nlives O\n\nin O\nDavao S-LOC\n")
    (tmp_path / "quiet.conll").write_text("it O\nrained O\n")
    files = [f"{tmp_path / name}.yaml" for name in ("news", "quiet")]
    for name, file in zip(("news", "quiet"), files, strict=True):
        Path(file).write_text(
            f"name: {name}\nlicence: none\nfolder: .\nfiles: {{test: {name}.conll}}\ncolumns: [word, tag]\n"
            "separator: space\ntypes: {person: PER}\n"
        )
    run = tune(world, tmp_path / "run", "ner.max_epochs=1", f"data.corpora=[{','.join(files)}]", "source=all")
    result = run.result()
    assert result["source_sets"] == ["aa_one"]
    counts = {name: (each["words"], each["gold_spans"]) for name, each in result["sets"].items()}
    assert counts.keys() == {"aa_one", "bb_two", "news", "quiet"}
    assert (counts["news"], counts["quiet"]) == ((4, 2), (2, 0))
    assert result["sets"]["quiet"]["f1"] == 0
    printed = capsys.readouterr().err
    assert "quiet test has no entities" in printed
    assert "news test has no entities" not in printed
    with pytest.raises(UserError, match=r"data\.corpora: 1 error"):
        tune(world, tmp_path / "wrong", "data.corpora=[cebuano]")


def test_bf16_trains(world: Path, tmp_path: Path) -> None:
    run = tune(
        world, tmp_path / "run", "tuning=full", "ner.precision=bf16", "ner.lr=0.005", "ner.max_epochs=4"
    )
    losses = [line["loss_nats"] for line in run.metrics() if line["kind"] == "train"]
    assert losses[-1] < losses[0] / 3
    assert {value.dtype for value in load_file(run.tagger_dir / "model.safetensors").values()} == {
        torch.float32
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("checkpoint=/nowhere", "nowhere"),
        ("ner.max_len=512", "at most 256 subwords"),
        ("source=zz_none", "zz_none"),
        ("source=bb_two", "no train split"),
        ("data.eval_sets=[aa_one,cc_three]", "cc_three"),
    ],
)
def test_configuration_errors_leave_no_run(world: Path, tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tune(world, tmp_path / "run", change)
    assert not Run(tmp_path / "run").config_file.exists()


def test_model_without_weights_or_tokenizer_is_rejected(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "model", tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer"):
        tune(world, tmp_path / "run", f"checkpoint={tmp_path / 'model'}")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="safetensors"):
        tune(world, tmp_path / "run", f"checkpoint={tmp_path / 'model'}")


def test_command(world: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    wrong = run_module("metapt.finetune_command", arguments(world, run_dir, "tuning=half", "ner.lr=-1"))
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
    assert "tuning" in wrong.stderr
    assert "ner.lr" in wrong.stderr
    right = run_module("metapt.finetune_command", arguments(world, run_dir, "ner.max_epochs=1"))
    assert right.returncode == 0, right.stderr
    assert "dev F1" in right.stdout
    assert Run(run_dir).is_done
