"""Tagging new text: word splitting, streams, output formats, the public function, the command."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ner_world import labelled, make_tokenizer, write_checkpoint, write_collection
from torch import Tensor

import metapt
from metapt import tag
from metapt.config import commandline
from metapt.data.bad_input import refusing
from metapt.data.iob2 import TAGS, read_iob2
from metapt.data.labelled_files import FileOptions, read_sentences
from metapt.data.word_splitting import word_offsets
from metapt.errors import UserError
from metapt.finetuning.run_finetuning import finetune
from metapt.inference import entity_tagger
from metapt.inference.entity_tagger import EntityTagger
from metapt.inference.formatting import with_brackets, with_colours
from metapt.models.base_model import load_base_model
from metapt.tagger import encoding
from metapt.tagger.encoding import EncodingSettings
from metapt.tagger.model import Tagger, TagLayer
from metapt.tagger.serialization import save_tagger
from metapt.training.signals import StopRequest

TEXT = "Juan Cruz met Maria.\t Pedro  lives in Davao City."


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose tagger has learned the sentences of ner_world."""
    folder = tmp_path_factory.mktemp("world")
    words = [f"checkpoint={write_checkpoint(folder / 'model')}", "source=aa_one", "tuning=full"]
    words += [f"data.uner_dir={write_collection(folder / 'uner', train=96)}", f"run_dir={folder / 'run'}"]
    words += ["ner.batch_size=8", "ner.lr=0.005", "ner.max_epochs=12", "ner.max_len=64"]
    finetune(commandline.load("finetune", words), StopRequest())
    return folder / "run"


@pytest.fixture(scope="module")
def tagger(run_dir: Path) -> EntityTagger:
    return metapt.load_tagger(run_dir)


def random_tagger(folder: Path, head: str) -> EntityTagger:
    """A tagger with random weights, which predicts many entities."""
    torch.manual_seed(1)
    layer = TagLayer(32, TAGS, head, dropout=0.1)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    (folder / "tagger").mkdir()
    model = Tagger(load_base_model(write_checkpoint(folder / "model")), layer, "first")
    save_tagger(folder / "tagger", model, make_tokenizer(), EncodingSettings(prefix_space=True, max_len=64))
    return metapt.load_tagger(folder / "tagger")


def words_of(text: str) -> list[str]:
    return [text[begin:end] for begin, end in word_offsets(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Pumunta si Maria sa Cebu.", "Pumunta si Maria sa Cebu ."),
        ("nag-aaral si O'Brien (taga-Cebu) - hindi?", "nag-aaral si O'Brien ( taga-Cebu ) - hindi ?"),
        ("$3,000.50 noong 10:30... ng U.S. !!", "$ 3,000.50 noong 10:30 ... ng U.S. !!"),
        ("हिन्दी में, A\u0301na", "हिन्दी में , A\u0301na"),
        ("我住在 Cebu", "我 住 在 Cebu"),
        ("👩‍👩‍👧, ok", "👩‍👩‍👧 , ok"),
    ],
)
def test_words_are_split_from_punctuation(text: str, expected: str) -> None:
    assert words_of(text) == expected.split(" ")


@settings(max_examples=400, deadline=None)
@given(st.text() | st.text(alphabet="aÑ1.-'’_,: \n\t\u0301\u0600\u200d北👩"))
def test_words_cover_everything_but_white_space(text: str) -> None:
    offsets = word_offsets(text)
    assert "".join(words_of(text)) == "".join(text.split())
    assert all(begin < end for begin, end in offsets)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(offsets))
    assert all(words_of(text[begin:end])[0] for begin, end in offsets)


def test_entities_have_offsets_and_probabilities(tagger: EntityTagger) -> None:
    (found,) = tagger.tag([TEXT])
    assert [(each.type, each.text) for each in found.entities] == [
        ("PER", "Juan Cruz"),
        ("PER", "Maria"),
        ("PER", "Pedro"),
        ("LOC", "Davao City"),
    ]
    assert " ".join(found.words) == "Juan Cruz met Maria . Pedro lives in Davao City ."
    assert [TEXT[begin:end] for begin, end in found.offsets] == list(found.words)
    assert len(found.words) == len(found.tags) == len(found.probabilities)
    for each in found.entities:
        assert TEXT[each.start : each.end] == each.text
        assert found.tags[each.start_word] == f"B-{each.type}"
        assert 0.5 < each.probability <= min(found.probabilities[each.start_word : each.end_word]) + 1e-6


def test_tags_equal_the_predictions_of_the_run(run_dir: Path, tagger: EntityTagger) -> None:
    file = run_dir / "predictions" / "aa_one.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    found = tagger.tag([line["words"] for line in lines])
    assert [list(each.tags) for each in found] == [line["predicted"] for line in lines]


def test_tagger_folder_has_a_card_with_the_scores(run_dir: Path) -> None:
    result = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
    card = (run_dir / "tagger" / "README.md").read_text(encoding="utf-8")
    for name, scores in result["sets"].items():
        low, high = scores["f1_interval"]
        assert f"| {name} | {scores['f1']:.3f} | [{low:.3f}, {high:.3f}] |" in card


def test_given_words_are_kept_and_batching_has_no_effect(tagger: EntityTagger) -> None:
    sentences = [list(each.words) for each in labelled(12, 5)] + [[], ["a b", "Maria"]]
    together = tagger.tag(sentences)
    assert [list(each.words) for each in together] == sentences
    assert together[-1].offsets == ((0, 3), (4, 9))
    assert together[-2] == entity_tagger.TaggedSentence("", (), (), (), (), ())
    for alone, each in zip((tagger.tag([one])[0] for one in sentences), together, strict=True):
        assert (alone.text, alone.tags, alone.offsets) == (each.text, each.tags, each.offsets)
        assert alone.probabilities == pytest.approx(each.probabilities, abs=1e-5)
    assert tagger.tag([]) == []
    with pytest.raises(TypeError, match="not one string"):
        tagger.tag("Maria")
    with pytest.raises(UserError, match="character 2"):
        tagger.tag(["a\ud800"])


def test_sentences_longer_than_a_window_or_a_group(
    tagger: EntityTagger, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(["Maria lives in Cebu ."] * 60)
    expected = tagger.tag([text, TEXT])
    assert len(expected[0].tags) == 300
    assert expected[0].tags[:5] == ("B-PER", "O", "O", "B-LOC", "O")
    assert expected[1].tags == tagger.tag([TEXT])[0].tags
    monkeypatch.setattr(entity_tagger, "MAX_GROUP_WORDS", 10)
    monkeypatch.setattr(encoding, "MAX_CACHED_WORDS", 2)
    assert [each.tags for each in tagger.tag([text, TEXT])] == [each.tags for each in expected]


@torch.no_grad()
def brute_force(emissions: Tensor, tagger: EntityTagger, kind: str, begin: int, end: int) -> float:
    """The total probability of all tag sequences that contain exactly this span."""
    sequence, total = tagger.tagger.layer.ner_head, 0.0
    length = torch.tensor([len(emissions)])
    for path in itertools.product(range(len(TAGS)), repeat=len(emissions)):
        tags = [TAGS[tag] for tag in path]
        if (kind, begin, end) in entity_tagger.spans(tags):
            try:
                total += float(sequence.log_likelihood(emissions[None], torch.tensor([path]), length).exp())
            except ValueError:  # a forbidden transition
                continue
    return total


@pytest.mark.parametrize("head", ["crf", "softmax"])
def test_entity_probability_equals_brute_force(tmp_path: Path, head: str) -> None:
    tagger = random_tagger(tmp_path, head)
    found = [
        each for text in ("Maria met Juan", "Cebu", "the Red", "it rained all") for each in tagger.tag([text])
    ]
    assert sum(len(each.entities) for each in found) > 3
    for sentence in found:
        encoded = encoding.encode(
            [entity_tagger.Sentence("", sentence.words, ("O",) * len(sentence.words))],
            tagger.word_tokenizer,
            64,
            TAGS,
            split=False,
        )
        emissions = tagger.tagger.layer.linear(encoding.word_features(tagger.tagger, encoded, 1)).detach()
        for each in sentence.entities:
            expected = brute_force(emissions, tagger, each.type, each.start_word, each.end_word)
            assert each.probability == pytest.approx(expected, rel=1e-3)


def test_bf16_finds_the_same_entities(run_dir: Path, tagger: EntityTagger) -> None:
    low = metapt.load_tagger(run_dir, precision="bf16")
    assert low.tag([TEXT])[0].tags == tagger.tag([TEXT])[0].tags
    assert low.tag([TEXT])[0].probabilities != tagger.tag([TEXT])[0].probabilities
    with pytest.raises(UserError, match="fp32, bf16"):
        metapt.load_tagger(run_dir, precision="fp16")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["Maria lives in Cebu", "\t[x] Juan Cruz\x07", " ", "Pedro met Ana Lim.\r"])))
def test_colours_and_brackets_preserve_the_text(tagger: EntityTagger, parts: list[str]) -> None:
    text = " ".join(parts)
    (found,) = tagger.tag([text])
    assert re.sub(r"\x1b\[[\d;]*m", "", with_colours(found)) == text
    assert with_colours(found).count("\x1b[0m") == len(found.entities)
    assert with_brackets(found).count("[") == text.count("[") + len(found.entities)
    for kind in ("PER", "LOC"):
        assert with_brackets(found).count(f"[{kind} ") == sum(each.type == kind for each in found.entities)


def test_command_tags_sentences(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tag.main([f"checkpoint={run_dir}", "Maria lives in Cebu.", "Juan Cruz met Pedro ."])
    assert capsys.readouterr().out == "[PER Maria] lives in [LOC Cebu].\n[PER Juan Cruz] met [PER Pedro] .\n"
    tag.main([f"checkpoint={run_dir / 'tagger'}", "format=json", "--", "checkpoint=1", "Maria"])
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["words"] == ["checkpoint", "=", "1"]
    (entity,) = second["entities"]
    assert entity.pop("probability") == pytest.approx(second["probabilities"][0], abs=1e-6)
    assert entity == {"type": "PER", "text": "Maria", "start": 0, "end": 5, "start_word": 0, "end_word": 1}


def test_json_lines_are_tagged_and_written_back(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other entries are kept, gold labels are replaced, and the output is a labelled file."""
    lines = [
        {"id": 7, "text": "Maria lives in\nCebu.", "label": [[0, 3, "X"]], "meta": {"by": "me"}},
        {"tokens": ["Pedro", "met", "Ana", "Lim"], "ner_tags": ["O"] * 4},
    ]
    file = tmp_path / "in.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n\n" for line in lines))
    tag.main([f"checkpoint={run_dir}", f"input={file}", "format=jsonl"])
    printed = capsys.readouterr().out
    first, second = map(json.loads, printed.splitlines())
    probabilities = [span.pop("probability") for span in first["spans"]]
    assert all(0 < value <= 1 for value in probabilities)
    assert first == {
        "id": 7,
        "text": lines[0]["text"],
        "meta": {"by": "me"},
        "spans": [{"start": 0, "end": 5, "label": "PER"}, {"start": 15, "end": 19, "label": "LOC"}],
    }
    assert second == {"tokens": lines[1]["tokens"], "ner_tags": ["B-PER", "O", "B-PER", "I-PER"]}
    file.write_text(printed)
    found = read_sentences(file, FileOptions(), refusing(), print)
    assert found[0].words == ("Maria", "lives", "in", "Cebu", ".")
    assert [sentence.tags for sentence in found] == [
        ("B-PER", "O", "O", "B-LOC", "O"),
        ("B-PER", "O", "B-PER", "I-PER"),
    ]
    for line, message in (
        ("{", "not a JSON object"),
        ('{"words": "x"}', "neither a text nor a list of words"),
    ):
        file.write_text(f"\n{line}\n")
        with pytest.raises(UserError, match=rf"in\.jsonl:2: .*{message}"):
            tag.main([f"checkpoint={run_dir}", f"input={file}"])


def test_colours_only_on_terminals_without_no_color(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich assume a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    tag.main([f"checkpoint={run_dir}", "Maria lives"])
    out, legend = capsys.readouterr()
    assert re.fullmatch(r"\x1b\[[\d;]+mMaria\x1b\[0m lives\n", out)
    assert re.findall(r"[A-Z]{3}", legend) == ["PER", "ORG", "LOC"]
    monkeypatch.setenv("NO_COLOR", "1")
    tag.main([f"checkpoint={run_dir}", "Maria lives"])
    assert capsys.readouterr().out == "[PER Maria] lives\n"


def test_column_file_keeps_words_and_comments(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tag.main([f"checkpoint={run_dir}", f"input={run_dir.parent / 'uner/bb_two/test.iob2'}", "format=iob2"])
    output = tmp_path / "output.iob2"
    output.write_text(capsys.readouterr().out, encoding="utf-8")
    given = read_iob2(run_dir.parent / "uner/bb_two/test.iob2")
    assert [(each.id, each.words) for each in read_iob2(output)] == [(each.id, each.words) for each in given]
    predicted = (run_dir / "predictions/bb_two.jsonl").read_text(encoding="utf-8").splitlines()
    assert [list(each.tags) for each in read_iob2(output)] == [
        json.loads(line)["predicted"] for line in predicted
    ]
    output.write_text("Maria NNP\nlives VB\n", encoding="utf-8")
    tag.main([f"checkpoint={run_dir}", f"input={output}"])
    out, err = capsys.readouterr()
    assert (out, err) == (
        "[PER Maria] lives\n",
        f"{output}: the words are in column 1; word_column= changes it\n",
    )


def test_iob2_output_of_text_can_be_read(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Maria\tlives.\n\nit rained\n")))
    tag.main([f"checkpoint={run_dir}", "format=iob2", "input=-"])
    (tmp_path / "output.iob2").write_text(capsys.readouterr().out, encoding="utf-8")
    found = read_iob2(tmp_path / "output.iob2")
    assert [(each.words, each.tags) for each in found] == [
        (("Maria", "lives", "."), ("B-PER", "O", "O")),
        (("it", "rained"), ("O", "O")),
    ]


def test_configuration_errors(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.txt").write_bytes(b"Maria\n\xff\n")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text("config: {}\n", encoding="utf-8")
    for words, message in (
        (["Maria"], "checkpoint is required"),
        ([f"chekpoint={run_dir}"], "did you mean checkpoint"),
        ([f"checkpoint={run_dir}", "x=1 says Maria"], "After --, it is not a key"),
        ([f"checkpoint={run_dir}", "format=xml"], "text, json, jsonl, iob2"),
        ([f"checkpoint={run_dir}", "input=-", "Maria"], "not both"),
        ([f"checkpoint={run_dir}", "input=/nowhere"], "no such file"),
        ([f"checkpoint={run_dir}", f"input={tmp_path / 'bad.txt'}"], "bad.txt:2: not UTF-8"),
        (["checkpoint=/nowhere", "Maria"], "neither a fine-tuning run nor a tagger folder"),
        ([f"checkpoint={unfinished}", "Maria"], "not finished"),
        ([f"checkpoint={run_dir.parent / 'model'}", "Maria"], "not a tagger folder"),
    ):
        with pytest.raises(UserError, match=message):
            tag.main(words)
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit):
        tag.main(["Maria", "--help"])
    assert "word_column " in capsys.readouterr().out


@pytest.mark.commands
def test_interactive_lines_are_answered_and_a_closed_pipe_is_no_error(run_dir: Path) -> None:
    command = [sys.executable, "-m", "metapt.tag", f"checkpoint={run_dir}"]
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipe, env={**os.environ, "NO_COLOR": "1"}) as process:
        watchdog = threading.Timer(240, process.kill)
        watchdog.start()
        for name in ("Maria", "Pedro"):
            process.stdin.write(f"{name} lives in Cebu.\n".encode())
            process.stdin.flush()
            assert process.stdout.readline() == f"[PER {name}] lives in [LOC Cebu].\n".encode()
        process.stdout.close()
        process.stdin.write(b"it rained\n")
        process.stdin.close()
        assert (process.wait(), process.stderr.read()) == (0, b"")
        watchdog.cancel()
