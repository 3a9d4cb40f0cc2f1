"""What a researcher tries in the first week: own text, own labels, own model size and grid; then evaluate and report."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
from ner_world import labelled

from metapt.__main__ import main
from metapt.config import commandline
from metapt.data import demo
from metapt.data.iob2 import Sentence
from metapt.launch.grid import plan
from metapt.launch.grid_dir import GridDir
from metapt.launch.run_checks import check_plan
from metapt.runs import Run

GRID = """\
sizes: [narrow.yaml]
objectives: [vanilla]
pretrain: [data=text, data.text_dir=my texts, data.vocab_size=512]
sources: [aa_news]
tunings: [full]
finetune: [data=custom, "data.corpora=[aa_news:my-news]", ner.max_epochs=1, ner.batch_size=8]
finetune_axes: {ner.lr: [1e-2, 1e-9]}
baselines: [capitals, majority]
targets: [aa]
"""
NARROW = """\
defaults: [nano, _self_]
model: {hidden_size: 16, intermediate_size: 32, num_layers: 1, num_heads: 2, num_kv_heads: 1, vocab_size: 512}
train: {max_steps: 4, warmup_steps: 1, seq_len: 32, eval_sequences: 4, dynamics_every: 0, checkpoint_every: 4}
"""


def write_conll(file: Path, sentences: Sequence[Sentence]) -> None:
    """A CoNLL file with four columns, as annotation tools and shared tasks write them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    blocks = (
        "".join(f"{word} NN _ {tag}\n" for word, tag in zip(sentence.words, sentence.tags, strict=True))
        for sentence in sentences
    )
    file.write_text("-DOCSTART- -X- O O\n\n" + "\n".join(blocks))


@pytest.mark.commands
def test_own_text_labels_size_and_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, text in enumerate(islice(demo.documents(demo.SEED), 400)):
        file = tmp_path / "my texts" / f"{number % 7}" / f"{number}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for split, count, seed in (("train", 96, 1), ("dev", 12, 2), ("test", 20, 3)):
        write_conll(tmp_path / "my-news" / f"{split}.conll", labelled(count, seed))
    write_conll(tmp_path / "later.conll", labelled(15, 4))
    (tmp_path / "mine.yaml").write_text(GRID)
    (tmp_path / "narrow.yaml").write_text(NARROW)

    grid_plan = plan(commandline.load("submit", ["grid=mine.yaml", "cluster=inline"]))
    check_plan(grid_plan)
    GridDir("runs/mine").write_plan(grid_plan)
    for job in grid_plan.jobs:  # as `metapt submit` does, but in one process
        main([job.kind, *job.argv])
    printed = capsys.readouterr()
    assert "model      narrow: " in printed.err
    assert "training   4 updates" in printed.err
    assert "gold spans; best baseline: " in printed.out
    runs = {run.path.name.rpartition("-")[0]: run for run in map(Run, Path("runs/mine/finetune").iterdir())}
    assert set(runs) == {f"narrow-vanilla-s0-aa_news-full-lr_{rate}" for rate in ("0.01", "1e-09")}
    learned = runs["narrow-vanilla-s0-aa_news-full-lr_0.01"]
    result = learned.result()
    assert result["train_sentences"] == 96
    assert result["sets"]["aa_news"]["gold_spans"] == sum(
        tag.startswith("B-") for sentence in labelled(20, 3) for tag in sentence.tags
    )

    main(["evaluate", f"checkpoint={learned.path}", "data=custom", "data.corpora=[aa_later:later.conll]"])
    assert "aa_later: F1 " in capsys.readouterr().out
    main(["report", "runs/mine"])
    with Path("runs/mine/report/tables/f1_intervals.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["objective"] == "vanilla"]
    f1 = {(row["tuning"], row["set"]): row["F1"] for row in rows}
    assert set(f1) == {
        ("full, ner.lr=0.01", "aa_news"),
        ("full, ner.lr=0.01", "aa_later"),
        ("full, ner.lr=1e-09", "aa_news"),
    }
    for name in ("aa_news", "aa_later"):
        assert float(f1["full, ner.lr=0.01", name]) == pytest.approx(
            learned.result()["sets"][name]["f1"], abs=1e-3
        )
    assert "narrow" in Path("runs/mine/report/index.html").read_text()
