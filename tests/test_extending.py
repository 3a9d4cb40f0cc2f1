"""The worked example of docs/extending.md does what it says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPO

from metapt.config import PretrainConfig, commandline
from metapt.config.keys import fields_by_path, key_of
from metapt.config.registry import INITIAL_HEADS, TASKS, Entry
from metapt.meta.terms import add_terms
from metapt.meta.window_episodes import episode_objective
from metapt.models.meta_lm import build_meta_lm


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's module and its two entries."""
    text = (REPO / "docs" / "extending.md").read_text(encoding="utf-8")
    code, _ = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "same_text.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    entries = re.findall(
        r'^(TASKS|INITIAL_HEADS)\["(\w+)"\] = Entry\("(.*)", "metapt\.meta\.(.*)"\)$',
        text,
        flags=re.MULTILINE,
    )
    assert len(entries) == 2
    keys = {"TASKS": "meta.task", "INITIAL_HEADS": "meta.initial_head"}
    for registry, name, help_text, target in entries:
        monkeypatch.setitem(
            {"TASKS": TASKS, "INITIAL_HEADS": INITIAL_HEADS}[registry], name, Entry(help_text, target)
        )
        monkeypatch.setitem(key_of(fields_by_path(PretrainConfig)[keys[registry]]).choices, name, help_text)
    yield
    sys.modules.pop("same_text", None)


@pytest.mark.usefixtures("example")
def test_the_example_trains(small_corpus) -> None:
    settings = [
        "meta.task=same_text",
        "meta.initial_head=shared",
        "meta.window=8",
        "meta.min_context=2",
        "meta.inner_steps=2",
    ]
    shape = ["meta.n_way=3", "meta.k_shot=2", "meta.q_query=1", "meta.inner_lr=0.1", "run_dir=run"]
    config = commandline.load("pretrain", ["model=nano", "objective=maml_paper", *settings, *shape])
    task = TASKS[config.meta.task].load().of(config, small_corpus).episode(0, 0)
    starts = np.concatenate([task.support.windows.reshape(3, 2), task.query.windows.reshape(3, 1)], axis=1)
    assert (np.diff(starts, axis=1) == 8).all(), "windows of a class follow each other"
    config.model.vocab_size = small_corpus.tokenizer.size
    meta_lm = build_meta_lm(config)
    add_terms(meta_lm, config, None)
    output = episode_objective(meta_lm, task, config.meta, 0, 0, 0)
    assert float(output.metrics["support_loss_nats"][0]) == pytest.approx(float(torch.tensor(3.0).log()))
    output.loss.backward()
    row = dict(meta_lm.named_parameters())["term_heads.windows.rows.weight"]
    assert row.shape == (1, config.model.hidden_size)
    assert row.grad is not None
    assert row.grad.any()
