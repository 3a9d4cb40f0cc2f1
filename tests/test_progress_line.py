"""What a run shows while it works: the header, and the progress line in a log and on a terminal."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from metapt.config import PretrainConfig, commandline
from metapt.data.corpus import Corpus
from metapt.runs import Run
from metapt.training import progress_line
from metapt.training.metrics import progress_values
from metapt.training.progress_line import ProgressLine, quantity
from metapt.training.run_header import run_header


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show_five_steps(out: io.StringIO, monkeypatch: pytest.MonkeyPatch, *, stops_early: bool = False) -> str:
    """Show steps 1 to 5 of 5, one every 4 seconds."""
    clock = iter(range(100, 200, 4))
    monkeypatch.setattr(progress_line, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    line = ProgressLine(5, stops_early=stops_early, out=out)
    for step in range(1, 6):
        line.show(step, [f"loss {step}"])
    line.close()
    return out.getvalue()


def test_log_gets_a_line_every_ten_seconds_and_the_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = show_five_steps(io.StringIO(), monkeypatch).splitlines()
    assert lines == ["1/5  loss 1", "4/5  loss 4  0:00:04 left", "5/5  loss 5  0:00:00 left"]


def test_a_terminal_has_one_line_that_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    line = ProgressLine(6000, out=out)
    latest = {"lm_loss_nats": 10.123, "query_accuracy": 0.031, "eval_perplexity": 50123.4}
    values = list(progress_values(latest | {"tokens_per_second": 123_456.0}, n_way=32))
    assert values == ["lm 10.12", "acc 3% (chance 3%)", "ppl 5.012e+04", "123 k tok/s"]
    clock = iter([100.0, 300.0])  # 100 updates in 200 seconds
    monkeypatch.setattr(progress_line, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    line.show(100, values)
    line.show(200, values)
    line.close()
    shown = [
        re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", part).strip() for part in re.split(r"[\r\n]", out.getvalue())
    ]
    shown = [part for part in shown if part]
    assert {part.split()[0] for part in shown} == {"100/6000", "200/6000"}
    assert shown[-1].endswith("123 k tok/s  3:13:20 left")
    assert max(map(len, shown)) <= 80


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"episodes_query_accuracy": [0.1, 0.4], "episodes_ways": 16.0}, "acc 40% (chance 6%)"),
        ({"query_accuracy": 0.5}, "acc 50% (chance 25%)"),
        ({"multitask_accuracy": 0.2}, "acc 20%"),
    ],
)
def test_accuracy_is_shown_beside_chance(entries: dict[str, object], text: str) -> None:
    assert list(progress_values(entries, n_way=4)) == [text]


def test_the_header_says_what_a_run_does(small_corpus: Corpus, tmp_path: Path) -> None:
    words = ["model=nano", "objective=maml_paper", "train.seq_len=32", "train.max_steps=50"]
    words += ["train.warmup_steps=2", f"run_dir={tmp_path}"]
    config: PretrainConfig = commandline.load("pretrain", words)
    lines = run_header(config, Run(tmp_path), small_corpus, torch.device("cpu"), 2, 20).splitlines()
    tokens = 50 // 2 * 8 * 2 * 32  # in half of 50 updates, of two micro-batches of eight sequences
    parameters = 2048 * 48 * 2 + 3 * (48 * 48 * 2 + 48 * 24 * 2 + 48 * 128 * 3 + 2 * 48) + 48
    assert lines == [
        "device     cpu, 2 ranks, fp32",
        f"model      nano: {quantity(parameters)} parameters, objective maml_paper",
        f"corpus     {quantity(len(small_corpus.train))} tokens, {quantity(len(small_corpus.eval))} held out; "
        f"tokenizer {small_corpus.tokenizer.name}",
        f"training   50 updates, next-token prediction on {quantity(tokens)} tokens: "
        f"{tokens / len(small_corpus.train):.2g} passes over the corpus",
        f"run        {tmp_path}, resumed from update 20",
    ]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (950, "950"), (12_345, "12.3 k"), (2_200_000, "2.2 M"), (1_536_000_000, "1.54 B")],
)
def test_quantities_have_three_digits(number: int, text: str) -> None:
    assert quantity(number) == text
