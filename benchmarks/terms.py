"""What terms on the words of the batch cost beside next-token prediction: `python benchmarks/terms.py [SIZE ...]` writes a table beside it.

An update of one micro-batch of 4 x 2,048 tokens with the terms of an objective, against the same update without them: times in
turn in one process (ratio of medians), operations that launch a kernel, and peak memory in a process of its own. Text is sampled by
Zipf's law; three of five tokens are words of a known type, as in the corpus of the study.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine, precisions
from memory import status_bytes
from timing import medians
from torch.utils._python_dispatch import TorchDispatchMode

from metapt.config import PretrainConfig, commandline
from metapt.data.corpus_words import TokenKind, find_units
from metapt.data.word_classes import WordClasses
from metapt.errors import run_command
from metapt.meta.objectives import next_token_objective
from metapt.meta.terms import active_weights, add_terms, word_groups
from metapt.models.meta_lm import build_meta_lm
from metapt.training.engine import Engine

FILE = Path(__file__).with_suffix(".md")
SEQUENCES, LENGTH, WORDS = 4, 2048, 20_000
OBJECTIVES = ("episodes", "multitask", "both")
SIZES = ("tiny", "small")
STEP = 200  # an update in which every term takes part


class KernelCounter(TorchDispatchMode):
    """Counts operations that compute something: all but views."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_view = any(value.alias_info and not value.alias_info.is_write for value in func._schema.returns)
        self.kernels += not is_view
        return func(*args, **(kwargs or {}))


def configuration(size: str, objective: str, precision: str) -> PretrainConfig:
    """A run whose updates are one micro-batch; its sequences are one group of four episodes."""
    shape = [f"train.seq_len={LENGTH}", f"train.micro_batch={SEQUENCES}", "train.micro_batches_per_update=1"]
    settings = [
        f"model={size}",
        f"model.max_positions={LENGTH}",
        f"objective={objective}",
        f"train.precision={precision}",
        *shape,
    ]
    return commandline.load("pretrain", [*settings, f"meta.batch_sequences={SEQUENCES}"])


def text(vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [n, T + 1] sampled by Zipf's law, and the kind of each token id."""
    draw = np.random.default_rng(0)
    frequency = 1 / (np.arange(vocabulary) + 2.7)
    tokens = draw.choice(vocabulary, (SEQUENCES, LENGTH + 1), p=frequency / frequency.sum())
    is_word = draw.random(vocabulary) < 0.6
    return tokens, np.where(is_word, TokenKind.BEGINS, TokenKind.ALONE).astype(np.uint8)


def word_classes(kinds: np.ndarray, sizes: Sequence[int]) -> WordClasses:
    """The most frequent words, in classes at random."""
    words = np.flatnonzero(kinds == TokenKind.BEGINS)[:WORDS]
    keys, draw = np.sort(find_units(words, kinds).keys), np.random.default_rng(1)
    partitions = np.stack([draw.integers(0, size, len(keys)) for size in sizes]).astype(np.int16)
    return WordClasses(keys, np.ones(len(keys), np.int64), partitions, ())


def update_of(size: str, objective: str, precision: str) -> Callable[[], None]:
    """An update with the engine, from the sampling of its words to the optimizer."""
    config = configuration(size, objective, precision)
    tokens, kinds = text(config.model.vocab_size)
    classes = word_classes(kinds, config.classes.partitions) if config.classes.sizes else None
    meta_lm = build_meta_lm(config)
    terms = add_terms(meta_lm, config, classes)
    engine, sequences = Engine(meta_lm, config), torch.from_numpy(tokens)

    def update() -> None:
        active = {name: (weight, terms[name]) for name, weight in active_weights(config, STEP).items()}
        groups = word_groups(tokens[:, :-1], kinds, classes, SEQUENCES, 0) if classes else []
        output = next_token_objective(engine.meta_lm, sequences, active, groups, STEP)
        engine.backward(output.loss, last=True)
        engine.step(config.train.lr)

    return update


def kernels_of(update: Callable[[], None]) -> int:
    """Operations of an update that launch a kernel."""
    with KernelCounter() as counter:
        update()
    return counter.kernels


def measure(size: str, objective: str, precision: str) -> dict[str, float]:
    """Time ratio, and kernels with and without the terms."""
    plain, with_terms = (update_of(size, name, precision) for name in ("vanilla", objective))
    seconds, plain_seconds = medians(with_terms, plain)
    return {
        "time": seconds / plain_seconds,
        "kernels": kernels_of(with_terms),
        "plain kernels": kernels_of(plain),
    }


def peak(size: str, objective: str, precision: str) -> int:
    """Peak bytes that two updates add to this process."""
    update_of("nano", objective, precision)()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = status_bytes("VmRSS")
    update = update_of(size, objective, precision)
    update()
    update()
    return status_bytes("VmHWM") - before


def in_process(*words: str) -> Any:
    """The result of this script for these words, in a process of its own."""
    command = [sys.executable, __file__, *words]
    return json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    )


def table(sizes: Sequence[str]) -> Iterator[str]:
    """The lines of the Markdown table of the cases of some sizes, each as soon as it is measured."""
    yield "| update | objective | time | peak memory | kernels |"
    yield "|---|---|---:|---:|---:|"
    for size in sizes:
        for precision in precisions():
            plain_peak = in_process("peak", size, "vanilla", precision)
            for objective in OBJECTIVES:
                found = in_process("time", size, objective, precision)
                memory = in_process("peak", size, objective, precision) / plain_peak
                yield (
                    f"| {size} {precision} {SEQUENCES} x {LENGTH:,} | {objective} | {found['time']:.2f} | {memory:.2f} "
                    f"| {found['kernels']:,} ({found['plain kernels']:,} without) |"
                )


def classes_seconds(text_dir: str, folder: str) -> float:
    """Seconds of one core for 24 training partitions of a corpus whose shards exist or are made before."""
    from metapt.data.corpus import prepare_corpus
    from metapt.data.corpus_classes import corpus_classes

    torch.set_num_threads(1)
    data = [
        "data=text",
        f"data.text_dir='{text_dir}'",
        f"data.cache_dir='{folder}'",
    ]
    config = commandline.load("pretrain", ["model=laptop", "objective=multitask", *data])
    corpus = prepare_corpus(config.data)
    started = time.process_time()
    corpus_classes(corpus, config.classes)
    return time.process_time() - started


def main(argv: Sequence[str]) -> None:
    """Measure everything, or the one case that the words name."""
    match argv:
        case ["time", size, objective, precision]:
            print(json.dumps(measure(size, objective, precision)))
        case ["peak", size, objective, precision]:
            print(peak(size, objective, precision))
        case ["classes", text_dir, folder]:
            print(classes_seconds(text_dir, folder))
        case _:
            head = f"# Cost of terms on the words of the batch\n\n{(__doc__ or '').split(chr(10) * 2, 1)[1].strip()}"
            text = f"{head}\n\n{machine()}; {date.today()}\n\n"
            for line in table(argv or SIZES):  # written line by line: the table takes an hour
                text += line + "\n"
                FILE.write_text(text, encoding="utf-8")
            if corpus := os.environ.get("METAPT_TEXT_DIR"):
                with tempfile.TemporaryDirectory() as folder:
                    seconds = in_process("classes", corpus, folder)
                sentence = f"24 training partitions of METAPT_TEXT_DIR: {seconds:.0f} s of one core."
                FILE.write_text(f"{text}\n{sentence}\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
