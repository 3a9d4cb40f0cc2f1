"""A pretraining run on word classes: exact resume, refusal of other classes, and the same scores from `metapt probe`."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import run_module
from safetensors.torch import load_file
from test_world_size import truncate

from metapt.config import commandline, settings
from metapt.data import describe
from metapt.data.corpus import prepare_corpus
from metapt.data.corpus_classes import corpus_classes
from metapt.data.word_classes import WordClasses
from metapt.errors import UserError
from metapt.estimate.flops import flops_of_step
from metapt.pretrain import main
from metapt.probe import probe, table
from metapt.runs import Run

pytestmark = pytest.mark.commands
WORD_TERMS = [
    *["classes.sizes=[8,16,8]", "classes.repeats=1", "meta.batch_sequences=2"],
    *["episodes.n_way=4", "episodes.start_step=0"],
]
"""Settings of terms that the synthetic corpus and small updates allow."""
TIMES = ("seconds", "tokens_per_second", "seconds_total")


@pytest.fixture(scope="module")
def arguments(small_arguments: list[str]) -> list[str]:
    return [*small_arguments, "objective=both", *WORD_TERMS, "multitask.start_step=2"]


@pytest.fixture(scope="module")
def finished(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("finished"))
    main([*arguments, f"run_dir={run.path}"])
    return run


def interrupted(finished: Run, folder: Path) -> Run:
    """A copy of a finished run as an interruption after 3 of its 9 updates leaves it."""
    shutil.copytree(finished.path, folder)
    truncate(Run(folder), 3)
    return Run(folder)


def test_an_interrupted_run_resumes_exactly(finished: Run, arguments: list[str], tmp_path: Path):
    run = interrupted(finished, tmp_path / "run")
    main([*arguments, f"run_dir={run.path}"])
    lines, expected = (
        [{name: value for name, value in line.items() if name not in TIMES} for line in each.metrics()]
        for each in (run, finished)
    )
    assert lines == expected
    weights, expected_weights = (
        load_file(each.checkpoint(9) / "model" / "model.safetensors") for each in (run, finished)
    )
    assert all(torch.equal(value, expected_weights[name]) for name, value in weights.items())


def test_a_run_does_not_resume_with_other_classes(
    finished: Run, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = interrupted(finished, tmp_path / "run")
    monkeypatch.setattr(WordClasses, "sha256", "another")
    with pytest.raises(UserError, match=r"classes\.sizes=.*\(hash of classes differs\)"):
        main([*arguments, f"run_dir={run.path}"])


def test_flops_of_an_update_are_those_of_its_terms(finished: Run, arguments: list[str]):
    """multitask begins at the third update."""
    config = commandline.load("pretrain", arguments)
    counted = [line["flops"] for line in finished.metrics() if line["kind"] == "lm"]
    terms = [["episodes"]] * 2 + [["episodes", "multitask"]] * 7
    assert counted == [flops_of_step(config, False, names) for names in terms]
    assert counted[0] < counted[2] == flops_of_step(config, False)


def test_the_probe_gives_what_the_run_measured(finished: Run, arguments: list[str]):
    config = commandline.load("probe", [*arguments, f"checkpoint={finished.path}"])
    scores = probe(config)
    measured = [line for line in finished.metrics() if line["kind"] == "dynamics"][-1]
    assert scores
    assert scores == {name: pytest.approx(measured[name], abs=1e-6) for name in scores}
    assert "words and partitions of training" in table(scores)


def test_the_probe_measures_with_the_settings_of_the_checkpoint(
    finished: Run, arguments: list[str], monkeypatch: pytest.MonkeyPatch
):
    """The corpus and its classes are given; the size of the model, the sequences and the precision are not."""
    given = [word for word in arguments if word.startswith(("data", "classes", "objective"))]
    config = commandline.load("probe", [*given, f"checkpoint={finished.path}"])
    assert (config.train.seq_len, config.train.eval_sequences, config.model.hidden_size) == (32, 6, 16)
    measured = [line for line in finished.metrics() if line["kind"] == "dynamics"][-1]
    scores = probe(config)
    assert scores == {name: pytest.approx(measured[name], abs=1e-6) for name in scores} != {}
    other = [*given, f"checkpoint={finished.path}", "train.seq_len=16"]
    assert commandline.load("probe", other).train.seq_len == 16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device=cuda: torch"):
        probe(replace(config, device="cuda"))


def test_a_checkpoint_of_another_size_brings_its_vocabulary(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    tiny = commandline.load("pretrain", ["model=tiny", "data=hub", "data.max_tokens=5000"])
    (tmp_path / "metapt.json").write_text(json.dumps({"settings": settings(tiny)}))
    words = ["objective=maml", "data=hub", f"checkpoint={tmp_path}"]
    config = commandline.load("probe", words)
    assert (config.model, config.data) == (tiny.model, tiny.data)
    assert (config.train.seq_len, config.train.eval_sequences) == (2048, 64)
    assert config.train.precision == "bf16"
    assert commandline.load("probe", [*words, "data.vocab_size=3000"]).data.vocab_size == 3000


def test_the_command_prints_its_table_alone(finished: Run, arguments: list[str]):
    result = run_module("metapt.probe", [*arguments, f"checkpoint={finished.path}"])
    assert "words and partitions of training" in result.stdout
    assert "Loading weights" not in result.stderr


def test_more_episodes_begin_with_those_of_the_run(finished: Run, arguments: list[str]):
    words = [*arguments, f"checkpoint={finished.path}"]
    few, more = (probe(commandline.load("probe", [*words, *count])) for count in ([], ["probe_episodes=24"]))
    for name, values in few.items():
        if name.endswith("prototype_accuracy"):
            assert len(more[name]) > len(values)  # those with two classes or more
            assert more[name][: len(values)] == pytest.approx(values, abs=1e-6)
    one_sequence = probe(commandline.load("probe", [*words, "probe_tokens=1"]))
    assert one_sequence != few


def test_describe_classes_prints_sizes_and_frequent_words(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
):
    describe.main(["classes", *arguments])
    config = commandline.load("prepare", arguments)
    classes = corpus_classes(prepare_corpus(config.data), config.classes)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(
        f"{len(classes.texts):,} word types, {classes.is_held_out.sum():,} of them held out"
    )
    titles = [line for line in printed if line.startswith("partition")]
    assert [line.split(":")[0] for line in titles] == ["partition 0", "partition 1", "partition 2, held out"]
    counts, label = classes.counts, classes.partitions[0]
    largest = max(set(label.tolist()), key=lambda one: (label == one).sum())
    top = max(range(len(label)), key=lambda word: counts[word] if label[word] == largest else -1)
    assert printed[3].split()[:2] == [str((label == largest).sum()), classes.texts[top].strip()]


def test_a_checkpoint_with_another_tokenizer_is_refused(finished: Run, arguments: list[str], tmp_path: Path):
    model = tmp_path / "model"
    shutil.copytree(finished.checkpoint(9) / "model", model)
    with (model / "tokenizer.json").open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="its tokenizer is not that of the corpus"):
        probe(commandline.load("probe", [*arguments, f"checkpoint={model}"]))
    with pytest.raises(UserError, match=r"classes\.sizes is empty"):
        probe(
            commandline.load(
                "probe",
                [
                    *arguments,
                    "classes.sizes=[]",
                    "objective=vanilla",
                    "episodes.weight=0",
                    "multitask.weight=0",
                    f"checkpoint={model}",
                ],
            )
        )
