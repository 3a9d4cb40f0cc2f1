"""`metapt score` as a user meets it: run folders, rows of the report, names, packages that it needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO
from score_formats import write_columns, write_texts, write_uner, write_words

from analysis import report
from analysis.load.collect import collect
from metapt import baseline
from metapt import score_command as score
from metapt.data.iob2 import Sentence
from metapt.errors import UserError
from metapt.evaluation.score_system import SetName, default_set_name, default_system_name
from metapt.runs import Run


@pytest.mark.parametrize(
    ("path", "name", "split"),
    [
        ("uner/tl_trg/test.iob2", "tl_trg", "test"),
        ("UNER_English-EWT/en_ewt-ud-dev.iob2", "en_ewt", "dev"),
        ("gold.conll", "gold", ""),
    ],
)
def test_names(path: str, name: str, split: str) -> None:
    assert default_set_name(Path(path)) == SetName(name, split)
    assert default_system_name(Path("out/gpt.jsonl")) == "gpt"
    assert default_system_name(Path("runs/ner/predictions/tl_trg.jsonl")) == "ner"


def test_given_columns(tmp_path: Path) -> None:
    """A tag that is not in the last column, and predictions whose columns have another order."""
    (tmp_path / "gold.conll").write_text("Ana B-PER NN\nCruz I-PER NN\n")
    (tmp_path / "found.conll").write_text("B-PER Ana\nI-PER Cruz\n")
    words = [str(tmp_path / "gold.conll"), str(tmp_path / "found.conll"), f"out={tmp_path}"]
    score.main([*words, "columns=[word,tag,pos]", "predicted_columns=[tag,word]"])
    assert Run(tmp_path / "found").result()["sets"]["gold"]["f1"] == 1
    with pytest.raises(UserError, match=r"found\.conll:1: unknown tag 'Ana'"):
        score.main(words)
    with pytest.raises(UserError, match="must name the columns `word` and `tag`"):
        score.main([*words, "columns=[word,pos]"])


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "metapt", *map(str, words)],
        cwd=cwd,
        env={"PYTHONPATH": str(REPO), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.commands
def test_as_a_user_meets_it(tmp_path: Path) -> None:
    """Two systems scored on two sets, compared, and shown by the report."""
    first = [Sentence(str(n), ("si", f"Ana{n}"), ("O", "B-PER")) for n in range(12)]
    second = [Sentence(str(n), ("sa", f"Cebu{n}"), ("O", "B-LOC")) for n in range(8)]
    for name, sentences in (("tl_one", first), ("ceb_two", second)):
        (tmp_path / name).mkdir()
        write_uner(tmp_path / name / "test.iob2", sentences)
    good = [Sentence(s.id, s.words, s.tags if int(s.id) < 9 else ("O", "O")) for s in first]
    write_texts(tmp_path / "gpt_tl.jsonl", good)
    write_columns(tmp_path / "gpt_ceb.conll", second)
    write_words(tmp_path / "weak.jsonl", [Sentence(s.id, s.words, ("B-PER", "O")) for s in first])

    done = run("score", "tl_one/test.iob2", "gpt_tl.jsonl", "name=gpt", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "gpt on tl_one: 12 sentences, 24 words, 12 gold spans\nF1 0.857, 95 % CI [0." in done.stdout
    assert "strict IOB2    12          9        9      1.000   0.750  0.857" in done.stdout
    assert run("score", "ceb_two/test.iob2", "gpt_ceb.conll", "name=gpt", cwd=tmp_path).returncode == 0
    assert run("score", "tl_one/test.iob2", "weak.jsonl", cwd=tmp_path).returncode == 0

    other = run("score", "tl_one/test.iob2", "weak.jsonl", "name=gpt", cwd=tmp_path)
    assert other.returncode == 2
    assert "holds predictions of tl_one from" in other.stderr
    mismatch = run("score", "ceb_two/test.iob2", "weak.jsonl", cwd=tmp_path)
    assert mismatch.returncode == 2
    assert mismatch.stderr.startswith(
        "error: weak.jsonl:1: word 1 of sentence 1 is 'si', but 'sa' in ceb_two/"
    )

    pair = run("score", "tl_one/test.iob2", "gpt_tl.jsonl", "weak.jsonl", cwd=tmp_path)
    assert "A minus B: +85.7 points, 95 % CI [+" in pair.stdout
    assert "The CI excludes 0: A is better on texts like these." in pair.stdout
    assert sorted(path.name for path in (tmp_path / "runs" / "score").iterdir()) == ["gpt", "weak"]

    shown = run("report", "runs/score", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert ["gpt", "baseline", "1", "1.000", "0.857"] in rows
    assert ["weak", "baseline", "1", "–", "0.000"] in rows


def test_scores_of_a_set_are_replaced_by_those_of_a_new_version_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gold = [Sentence("1", ("Ana",), ("B-PER",))]
    write_uner(tmp_path / "gold.iob2", gold)
    words = [str(tmp_path / "gold.iob2"), str(tmp_path / "a.jsonl"), f"out={tmp_path / 'out'}"]
    values = []
    for tag in ("O", "B-PER"):
        write_words(tmp_path / "a.jsonl", [Sentence("1", ("Ana",), (tag,))])
        score.main(words)
        (record,) = collect([tmp_path / "out"]).finetuning
        values.append(record.sets["gold"].f1)
        assert record.is_baseline
    assert values == [0, 1]
    report.main([str(tmp_path / "out")])
    Run(tmp_path / "out" / "b").start({"name": "b"}, {})
    with pytest.raises(UserError, match="holds a run of another command"):
        score.main([*words, "name=b"])
    with pytest.raises(UserError, match="both systems have the name 'a'"):
        score.main([words[0], words[1], words[1]])
    with pytest.raises(
        UserError, match=r"name=a/b: must be a name that does not begin with a full stop and has no /"
    ):
        score.main([*words, "name=a/b"])
    with pytest.raises(UserError, match=r"set_name=\.x: must be"):
        score.main([*words, "set_name=.x"])
    with pytest.raises(UserError, match="1 file names"):
        score.main(words[:1])
    assert capsys.readouterr().out


def test_other_runs_on_the_same_file_are_comparable(tmp_path: Path) -> None:
    """The gold sentences of a baseline and of a scored system are the same, with their documents and ids."""
    sentences = [Sentence(f"s{n}", ("si", f"Ana{n}"), ("O", "B-PER"), f"d{n // 3}") for n in range(6)]
    (tmp_path / "uner" / "tl_one").mkdir(parents=True)
    gold = tmp_path / "uner" / "tl_one" / "test.iob2"
    write_uner(gold, sentences)
    gold.write_text(gold.read_text() + "1\tx\tB-OTH\t-\t-\n2\ty\tI-LOC\t-\t-\n\n")
    run_dir = tmp_path / "runs" / "rule"
    baseline.main(["name=particle", f"data.uner_dir={tmp_path / 'uner'}", f"run_dir={run_dir}"])
    words = [str(gold), str(run_dir / "predictions" / "tl_one.jsonl")]
    score.main([*words, "name=copy", f"out={tmp_path / 'runs'}"])
    found = collect([tmp_path / "runs"])
    assert [run.setting.scale for run in found.finetuning] == ["copy", "particle"]
    assert len(found.gold_sets("tl_one")) == 1
    one, other = (run.sets["tl_one"] for run in found.finetuning)
    assert (one.f1, one.totals) == (other.f1, other.totals)
