"""`metapt evaluate`: a finished tagger scored on further sets, in its own run folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from analysis.load.collect import collect
from metapt import evaluate_command as evaluate
from metapt import load_tagger
from metapt.errors import UserError
from metapt.evaluation.score_inputs import read_gold, read_predictions
from metapt.evaluation.score_system import ScoredSystem, SetName
from metapt.inference.formatting import as_iob2, as_json, as_jsonl
from metapt.runs import Run


def test_scores_equal_those_of_fine_tuning(
    world: Path, head_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A set is removed from a finished run, and scored again."""
    run = Run(shutil.copytree(head_run.path, tmp_path / "run"))
    complete, file = run.result(), run.predictions_dir / "bb_two.jsonl"
    predictions = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    without = json.loads(json.dumps(complete))
    for entry in ("sets", "shared_sentences"):
        del without[entry]["bb_two"]
    run.finish(without)
    file.unlink()

    words = [f"checkpoint={run.path}", f"data.uner_dir={world / 'uner'}"]
    evaluate.main([*words, "sets=[bb_two]"])
    assert f"bb_two: F1 {complete['sets']['bb_two']['f1']:.3f}, 95 % CI [" in capsys.readouterr().out
    result = run.result()
    assert {name: result[name] for name in ("sets", "shared_sentences", "origin", "dev_f1")} == {
        name: complete[name] for name in ("sets", "shared_sentences", "origin", "dev_f1")
    }
    assert set(result["inputs"]) == {*complete["inputs"], "sentences of bb_two"}
    for line, expected in zip(file.read_text(encoding="utf-8").splitlines(), predictions, strict=True):
        found = json.loads(line)
        assert found.pop("gold_logprob") == pytest.approx(expected.pop("gold_logprob"), abs=1e-5)
        assert found == expected
    (record,) = collect([tmp_path]).finetuning
    assert set(record.sets) == set(complete["sets"])

    evaluate.main(words)  # every set has been scored
    assert capsys.readouterr().err.count("it is not tagged again") == len(complete["sets"])
    assert run.result() == result


def test_other_sentences_under_the_same_name_are_refused(world: Path, head_run: Run, tmp_path: Path) -> None:
    run = Run(shutil.copytree(head_run.path, tmp_path / "run"))
    (tmp_path / "uner" / "bb_two").mkdir(parents=True)
    (tmp_path / "uner" / "bb_two" / "test.iob2").write_text("1\tAna\tB-PER\t-\t-\n")
    with pytest.raises(UserError, match=r"bb_two\.jsonl: holds predictions of other sentences"):
        evaluate.main([f"checkpoint={run.path}", f"data.uner_dir={tmp_path / 'uner'}"])


def test_other_sentences_under_the_name_of_a_source(world: Path, head_run: Run, tmp_path: Path) -> None:
    """A collection with another train split of the source cannot say what the tagger has seen."""
    run = Run(shutil.copytree(head_run.path, tmp_path / "run"))
    labels = Path(shutil.copytree(world / "uner", tmp_path / "uner"))
    (labels / "cc_new").mkdir()
    shutil.copy(labels / "aa_one" / "train.iob2", labels / "cc_new" / "test.iob2")
    (labels / "aa_one" / "train.iob2").unlink()
    evaluate.main([f"checkpoint={run.tagger_dir}", f"data.uner_dir={labels}", "sets=[cc_new]"])
    assert run.result()["shared_sentences"] is None


def test_further_set_without_the_sources(
    world: Path, head_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the data of fine-tuning, it is unknown which sentences the tagger has seen."""
    run = Run(shutil.copytree(head_run.path, tmp_path / "run"))
    (tmp_path / "uner" / "cc_new").mkdir(parents=True)
    (tmp_path / "uner" / "cc_new" / "test.iob2").write_text("1\tAna\tB-PER\t-\t-\n\n1\tx\tO\t-\t-\n")
    data = f"data.uner_dir={tmp_path / 'uner'}"
    evaluate.main([f"checkpoint={run.tagger_dir}", data])
    result = run.result()
    assert result["sets"]["cc_new"]["gold_spans"] == 1
    assert result["shared_sentences"] is None
    printed = capsys.readouterr().out

    alone = shutil.copytree(run.tagger_dir, tmp_path / "tagger_alone")
    evaluate.main([f"checkpoint={alone}", data])
    assert capsys.readouterr().out == printed.splitlines()[0] + (
        f"\n{alone} is a tagger without its run folder: scores and predictions are not stored\n"
    )
    with pytest.raises(UserError, match="sets: no test split of nowhere; available are cc_new"):
        evaluate.main([f"checkpoint={alone}", data, "sets=[nowhere]"])


def test_output_of_metapt_tag_is_scored_alike(world: Path, head_run: Run, tmp_path: Path) -> None:
    """As JSON, as IOB2, and as JSON lines in place of the labels and predictions that the input had."""
    gold_file = world / "uner" / "bb_two" / "test.iob2"
    gold = read_gold(gold_file, [], {})
    tagged = load_tagger(str(head_run.path)).tag([list(sentence.words) for sentence in gold.sentences])
    (tmp_path / "json").write_text("".join(f"{as_json(sentence)}\n" for sentence in tagged))
    (tmp_path / "iob2").write_text("".join(as_iob2(sentence) for sentence in tagged))
    before = [
        {"words": each.words, "gold": ["O"] * len(each.words), "predicted": ["O"] * len(each.words)}
        for each in gold.sentences
    ]
    lines = (as_jsonl(sentence, values) for sentence, values in zip(tagged, before, strict=True))
    (tmp_path / "jsonl").write_text("".join(f"{line}\n" for line in lines))
    expected = head_run.result()["sets"]["bb_two"]
    for name in ("json", "iob2", "jsonl"):
        predictions = read_predictions(tmp_path / name, gold, [], {})
        scores = ScoredSystem(name, SetName("bb_two", "test"), gold, predictions).scores
        assert scores == {key: expected[key] for key in scores} | {
            "f1_interval": tuple(expected["f1_interval"])
        }
