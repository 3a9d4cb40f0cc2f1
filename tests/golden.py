"""Golden losses: the losses of a few updates of each objective at nano, recorded and compared bit for bit.

Kinds of CPUs round matrix products differently, so that each kind has its own recording. `make golden` replaces the
recording of this kind. If that changes a bit of it, the recordings of other kinds are wrong too and are deleted. Only a
commit that is meant to change the losses does so, and its message says why.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from machine import bf16_support, processor

from metapt.config import commandline
from metapt.data.corpus import prepare_corpus
from metapt.data.corpus_classes import classes_folder, save_classes
from metapt.data.word_classes import WordClasses
from metapt.pretrain import main
from metapt.runs import Run

GOLDEN_FILE = Path(__file__).parent / "golden" / "nano.json"
CLASSES_FILE = GOLDEN_FILE.with_name("classes.npz")
"""Word classes of the demo's corpus, stored since kinds of CPUs may cluster words differently."""
DEMO_CLASSES = "classes.sizes=[16,32,16,32,16]"
OBJECTIVES = {
    "vanilla": [],
    "maml_paper": [],
    "both": [
        *[DEMO_CLASSES, "classes.repeats=1", "multitask.weight=0.3"],
        *["episodes.n_way=8", "episodes.inner_steps=3", "episodes.start_step=0"],
    ],
}
"""Objectives, with what they set beside their own keys."""
STEPS = 50
RECORDED_VALUES = (
    "kind",
    "step",
    "lm_loss_nats",
    "support_loss_nats",
    "query_loss_nats",
    "eval_loss_nats",
    "episodes_query_loss_nats",
    "multitask_loss_nats",
    "grad_norm",
)


def machine() -> dict[str, str]:
    """What determines rounding; on a machine where it differs, losses agree up to rounding only."""
    return {
        "processor": f"{processor()} ({bf16_support()})",
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }


def recordings() -> list[dict[str, Any]]:
    """`machine` and `losses` (by objective) of each recorded machine."""
    recorded: list[dict[str, Any]] = json.loads(GOLDEN_FILE.read_text())
    return recorded


def agree(losses: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    """Whether the losses of the first updates are equal up to rounding, which AdamW amplifies in later ones."""
    return all(
        line[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-2))
        for line, expected_line in zip(losses[:5], expected[:5], strict=True)
        for name, value in expected_line.items()
    )


def train(objective: str, folder: Path, cache: Path) -> list[dict[str, Any]]:
    """Pretrain for STEPS updates; return the recorded values of each line of metrics.jsonl."""
    schedule = [
        f"train.max_steps={STEPS}",
        "train.warmup_steps=5",
        "train.eval_every=10",
        "train.eval_sequences=16",
    ]
    arguments = [
        f"objective={objective}",
        *OBJECTIVES[objective],
        *schedule,
        f"run_dir={folder}",
        f"data.cache_dir={cache}",
    ]
    use_stored_classes(arguments)
    main(arguments)
    lines = (line for line in Run(folder).metrics() if line["kind"] != "dynamics")
    return [{name: line[name] for name in RECORDED_VALUES if name in line} for line in lines]


def use_stored_classes(arguments: list[str]) -> None:
    """Put the stored word classes where a run looks for them, unless they are there."""
    config = commandline.load("pretrain", arguments)
    folder = classes_folder(prepare_corpus(config.data), config.classes)
    if config.classes.sizes and not folder.exists():
        with np.load(CLASSES_FILE) as arrays:
            keys, partitions = arrays["keys"], arrays["partitions"]
        save_classes(WordClasses(keys, np.ones(len(keys), np.int64), partitions, ("",) * len(keys)), folder)


def record() -> None:
    """Replace the recording of this machine; keep others if it is unchanged, or is the first of its kind and agrees with them."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        losses = {name: train(name, root / name, root / "corpus") for name in OBJECTIVES}
    old = [each["losses"] for each in recordings() if each["machine"] == machine()]
    others = [each for each in recordings() if each["machine"] != machine()]
    kept = still_valid(losses, old[0] if old else None, others)
    text = json.dumps([*kept, {"machine": machine(), "losses": losses}], indent=1)
    GOLDEN_FILE.write_text(text + "\n")
    print(
        f"recorded in {GOLDEN_FILE}; {len(kept)} recordings of other machines kept, {len(others) - len(kept)} deleted"
    )


def still_valid(
    losses: dict[str, Any], old: dict[str, Any] | None, others: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The recordings of other machines that remain right, given the new and the old losses of this one."""
    if old is not None:
        return others if old == losses else []
    return [
        other
        for other in others
        if other["losses"].keys() == losses.keys()
        and all(agree(losses[name], other["losses"][name]) for name in losses)
    ]


if __name__ == "__main__":
    record()
