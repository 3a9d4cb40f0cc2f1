"""Estimated and measured peak memory of an update: `python benchmarks/memory.py` writes benchmarks/memory.md.

Each case runs in its own process. An update of two micro-batches (or episodes) is made twice, and the peak of the
resident set (VmHWM) is measured, less the memory of the libraries, which an update of nano has loaded before. The
allocator returns blocks of 64 KiB and more to the system, so that the peak is that of the tensors and not of a
fragmented heap.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from metapt.config import PretrainConfig, commandline
from metapt.estimate import memory
from metapt.estimate.flops import LABELLED_FRACTION

if TYPE_CHECKING:
    from metapt.data.word_classes import WordClasses
    from metapt.meta.terms import WordGroup

MIB = 2**20
ALLOCATOR = "glibc.malloc.mmap_threshold=65536"
SMALL_EPISODE = [
    "meta.n_way=4",
    "meta.k_shot=2",
    "meta.q_query=2",
    "meta.inner_steps=2",
    "meta.window=64",
    "meta.prediction_position=end",  # the estimate is for full windows
]
SHORT = ["train.seq_len=128", "train.micro_batch=2"]
LONG = ["train.seq_len=512", "train.micro_batch=4"]
FP32 = ["train.precision=fp32"]
CASES = [
    (size, kind, overrides)
    for size in ("tiny", "small", "medium")
    for kind, overrides in [
        ("lm", ["ds=zero0", *SHORT]),
        ("lm", ["ds=zero2", *SHORT]),
        ("lm", ["ds=zero2", *LONG]),
        ("lm", ["ds=zero0", *LONG, *FP32]),
        ("episode", ["ds=zero0", "meta.scope=head", *SMALL_EPISODE]),
        ("episode", ["ds=zero2", "meta.scope=head", *SMALL_EPISODE]),
        ("episode", ["ds=zero0", "meta.scope=full", *SMALL_EPISODE]),
        ("episode", ["ds=zero2", "meta.scope=full", *SMALL_EPISODE]),
        ("episode", ["ds=zero2", "meta.scope=full", *SMALL_EPISODE, *FP32]),
    ]
] + [("laptop", "lm", ["ds=zero2", "objective=multitask"])]


def arguments(size: str, overrides: list[str]) -> list[str]:
    """The command line of a case; each update has two micro-batches or episodes."""
    units = ["train.micro_batches_per_update=2", "meta.tasks_per_step=2"]
    return [f"model={size}", "objective=maml_paper", "meta.max_window_fraction=1", *units, *overrides]


def estimate(size: str, kind: str, overrides: list[str]) -> tuple[str, int]:
    """The moment of the estimated peak, and its bytes."""
    config = commandline.load("pretrain", arguments(size, overrides))
    moment, peak = memory.peak(config, kind, memory.Ranks(1, "cpu"))
    return moment, peak.total + peak.host


def measure(size: str, kind: str, overrides: list[str]) -> int:
    """Measured peak in bytes, of a new process."""
    command = [sys.executable, __file__, kind, *arguments(size, overrides)]
    environment = {**os.environ, "GLIBC_TUNABLES": ALLOCATOR, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def status_bytes(name: str, process: str | int = "self") -> int:
    """VmRSS or VmHWM of a process, in bytes."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def peak_of_this_process(kind: str, arguments: list[str]) -> int:
    """Peak memory in bytes that two updates add to this process."""
    run_updates(kind, ["objective=maml_paper", "meta.max_window_fraction=1", *arguments[4:], "model=nano"])
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = status_bytes("VmRSS")
    run_updates(kind, arguments)
    return status_bytes("VmHWM") - before


def run_updates(kind: str, arguments: list[str]) -> None:
    """Two updates of one kind on random tokens."""
    import numpy as np
    import torch
    from tokens import Tokens

    from metapt.data.episodes import EpisodeSampler, WindowIndex
    from metapt.meta.objectives import next_token_objective
    from metapt.meta.terms import add_terms
    from metapt.meta.window_episodes import episode_objective
    from metapt.models.meta_lm import build_meta_lm
    from metapt.training.engine import Engine

    config = commandline.load("pretrain", arguments)
    train, meta = config.train, config.meta
    tokens = np.random.default_rng(0).integers(2, 200, 40_000)
    index = WindowIndex.build(tokens, 256, meta.window, meta.min_context)
    sampler = EpisodeSampler(Tokens(tokens), index, meta, 0, 1, 0)  # type: ignore[arg-type]
    meta_lm = build_meta_lm(config)
    classes, groups = labelled_words(config) if config.classes.sizes else (None, [])
    terms = {name: (1.0, term) for name, term in add_terms(meta_lm, config, classes).items()}
    engine = Engine(meta_lm, config)
    for step in range(2):
        for unit in range(2):
            if kind == "episode":
                output = episode_objective(engine.meta_lm, sampler.episode(step, unit), meta, 0, step, unit)
            else:
                sequences = torch.randint(2, 200, (train.micro_batch, train.seq_len + 1))
                output = next_token_objective(engine.meta_lm, sequences, terms, groups)
            engine.backward(output.loss / 2, last=unit == 1)
            del output
        engine.step(1e-3)


def labelled_words(config: PretrainConfig) -> tuple[WordClasses, list[WordGroup]]:
    """Word types in classes, and words of these types at the usual fraction of the positions of a micro-batch."""
    import numpy as np

    from metapt.data.word_classes import WordClasses, WordExamples
    from metapt.meta.terms import WordGroup

    numbers, shape = np.arange(4096), (config.train.micro_batch, config.train.seq_len)
    partitions = np.stack([numbers % size for size in config.classes.partitions]).astype(np.int16)
    classes = WordClasses(numbers.astype(np.uint64), np.ones_like(numbers), partitions, ())
    draw = np.random.default_rng(0)
    rows, positions = np.nonzero(draw.random(shape) < LABELLED_FRACTION)
    types = draw.choice(np.flatnonzero(~classes.is_held_out), len(rows))
    return classes, [WordGroup(WordExamples(rows, positions, types), shape, 0)]


def main() -> None:
    """Measure all cases, two processes at a time, and write the table."""
    from machine import machine

    lines = [
        "# Memory of an update on one rank: estimated and measured",
        "",
        "`python benchmarks/memory.py` measured this and describes it. The memory model is in `metapt/estimate/memory.py`.",
        "",
        f"Machine: {machine()}.",
        "",
        "| model | update | settings | peak at | estimated, MiB | measured, MiB | ratio |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    with ThreadPoolExecutor(2) as pool:  # peaks do not depend on other processes
        peaks = pool.map(lambda case: measure(*case), CASES)
        for (size, kind, overrides), measured in zip(CASES, peaks, strict=True):
            moment, estimated = estimate(size, kind, overrides)
            cells = f"{estimated / MIB:,.0f} | {measured / MIB:,.0f} | {estimated / measured:.2f}"
            lines.append(f"| {size} | {kind} | {' '.join(overrides)} | {moment} | {cells} |")
            print(lines[-1], flush=True)
    (Path(__file__).parent / "memory.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(peak_of_this_process(sys.argv[1], sys.argv[2:]))
    else:
        main()
