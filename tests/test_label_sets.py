"""Taggers of other entity types than PER, ORG and LOC: tags come from the training data."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tuned import arguments, tune

import metapt
from metapt import evaluate_command as evaluate
from metapt import finetune_command
from metapt.data.iob2 import tags_of
from metapt.errors import UserError
from metapt.evaluation.score_inputs import read_gold
from metapt.inference.entity_tagger import TaggedSentence
from metapt.inference.formatting import as_iob2
from metapt.runs import Run

TYPES = {"PER": "gene", "ORG": "work_of_art", "LOC": "MISC"}


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tagger that was fine-tuned on a CoNLL file of other types, by its path."""
    folder = tmp_path_factory.mktemp("labels")
    rows = (world / "uner/aa_one/train.iob2").read_text().splitlines()
    lines = [row for row in rows if not row.startswith("#")]
    cells = [line.split("\t") for line in lines]
    text = "\n".join(f"{cell[1]} {cell[2]}" if len(cell) > 1 else "" for cell in cells)
    for kind, other in TYPES.items():
        text = text.replace(f"-{kind}", f"-{other}")
    (folder / "bio.conll").write_text(text + "\n")
    words = [f"source={folder / 'bio.conll'}", "data=custom", "data.uner_dir=null", "data.dev_fraction=0.2"]
    return tune(world, folder / "run", *words, "tuning=full", "ner.lr=0.005", "ner.max_epochs=12")


def test_tags_scores_and_card_have_the_types_of_the_data(run: Run) -> None:
    result = run.result()
    assert result["types"] == ["MISC", "gene", "work_of_art"]
    assert result["source_sets"] == ["bio"]
    assert result["train_sentences"] + result["sets"]["bio"]["sentences"] < 48  # the rest is the dev split
    assert result["sets"]["bio"]["f1"] > 0.8
    assert set(result["sets"]["bio"]["per_type"]) <= set(TYPES.values())
    card = (run.tagger_dir / "README.md").read_text()
    assert "A named entity tagger (MISC, gene, work_of_art)." in card
    assert "It knows only MISC, gene, work_of_art," in card
    tagger = metapt.load_tagger(run.path)
    assert tagger.tags == tags_of(result["types"])
    (tagged,) = tagger.tag([["the", "Red", "Cross", "moved", "to", "Cebu", "."]])
    assert [(entity.type, entity.text) for entity in tagged.entities] == [
        ("work_of_art", "Red Cross"),
        ("MISC", "Cebu"),
    ]


def test_types_that_a_tagger_does_not_know_count_as_missed(
    run: Run, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main([f"checkpoint={run.path}", f"data.uner_dir={world / 'uner'}", "sets=[bb_two]"])
    assert (
        "spans of types that the tagger does not know, which count as missed: PER" in capsys.readouterr().err
    )
    scores = run.result()["sets"]["bb_two"]
    assert (scores["correct_spans"], scores["f1"]) == (0, 0)
    assert scores["per_type"]["PER"]["gold_spans"] > 0
    lines = (run.predictions_dir / "bb_two.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        unknown = [value < math.log(1e-299) for value in line["gold_logprob"]]
        assert unknown == [tag != "O" for tag in line["gold"]]


def test_a_tagger_is_not_trained_further_on_types_it_does_not_know(
    run: Run, world: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="does not know the entity types LOC, ORG, PER of source=aa_one"):
        tune(world, tmp_path / "more", f"checkpoint={run.path}", "tuning=full")


def test_cross_validation_scores_every_sentence_once(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["folds=3", "ner.max_epochs=1", "data.max_train_sentences=24"]
    finetune_command.main(arguments(world, tmp_path / "cv", *words))
    found = json.loads((tmp_path / "cv" / "cross_validation.json").read_text())
    runs = [Run(tmp_path / "cv" / f"fold-{number}") for number in (1, 2, 3)]
    results = [run.result()["sets"]["aa_one"] for run in runs]
    pooled = found["sets"]["aa_one"]
    assert pooled["sentences"] == pooled["units"] == 48  # all of the train split
    for count in ("gold_spans", "predicted_spans", "correct_spans"):
        assert pooled[count] == sum(result[count] for result in results)
    assert found["fold_f1"] == {"aa_one": [result["f1"] for result in results]}
    low, high = pooled["f1_interval"]
    assert low < pooled["f1"] < high
    assert f"aa_one: F1 {pooled['f1']:.3f}, 95 % CI [{low:.3f}, {high:.3f}]" in capsys.readouterr().out
    evaluate.main([f"checkpoint={runs[0].path}", f"data.uner_dir={world / 'uner'}", "sets=[bb_two]"])
    finetune_command.main(arguments(world, tmp_path / "cv", *words))
    assert json.loads((tmp_path / "cv" / "cross_validation.json").read_text()) == found


def test_a_tagger_learns_further_from_a_source_with_some_of_its_types(
    run: Run, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It needs no PER, ORG or LOC because others of them occur. The header has the rate of what is trained."""
    rows = (world / "uner/aa_one/train.iob2").read_text().splitlines()
    cells = [row.split("\t") for row in rows if not row.startswith("#")]
    text = "\n".join(f"{cell[1]} {cell[2]}" if len(cell) > 1 else "" for cell in cells) + "\n"
    few = ["data=custom", "data.uner_dir=null", "data.dev_fraction=0.2", "tuning=full", "ner.max_epochs=1"]
    (tmp_path / "date.conll").write_text(text.replace("-ORG", "-DATE"))
    first = tune(world, tmp_path / "first", f"source={tmp_path / 'date.conll'}", *few)
    assert first.result()["types"] == ["PER", "LOC", "DATE"]
    (tmp_path / "two.conll").write_text(text.replace("B-ORG", "O").replace("I-ORG", "O"))
    more = [f"checkpoint={first.path}", f"source={tmp_path / 'two.conll'}"]
    few[3:] = ["tuning=head_only", "ner.head_lr=0.02", "ner.max_epochs=1"]
    assert tune(world, tmp_path / "more", *more, *few).result()["types"] == ["PER", "LOC", "DATE"]
    assert "updates at learning rate 0.02" in capsys.readouterr().err


def test_a_type_with_a_space_is_read_tagged_and_scored(tmp_path: Path) -> None:
    file = tmp_path / "doccano.jsonl"
    file.write_text('{"text": "Ana is CEO", "label": [[7, 10, "Job Title"]]}\n')
    (sentence,) = read_gold(file, [], {}).sentences
    assert sentence.tags == ("O", "O", "B-Job Title")
    tagged = TaggedSentence("Ana is CEO", sentence.words, (), sentence.tags, (), ())
    (tmp_path / "tagged.iob2").write_text(as_iob2(tagged))
    assert read_gold(tmp_path / "tagged.iob2", [], {}).sentences[0].tags == sentence.tags
