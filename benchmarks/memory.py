"""Predicted against measured peak memory on this machine: `python benchmarks/memory.py` writes benchmarks/memory.md.

Each case runs in a process of its own: an update of two micro-batches (or tasks) is made twice, and the peak of
the resident set (VmHWM) counts, less what the libraries take, which a run of nano before has brought in. Blocks of
64 KiB and more come from the system one by one, so that the peak is that of the tensors and not of the heap's holes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from metapt.config import commandline
from metapt.estimate import memory

ALLOCATOR = "glibc.malloc.mmap_threshold=65536"
# What is told holds for windows that are read whole; those read at the mask are shorter, as the text has it.
SMALL_EPISODE = ["meta.n_way=4", "meta.k_shot=2", "meta.q_query=2", "meta.inner_steps=2", "meta.window=64"]
SMALL_EPISODE += ["meta.prediction_position=end"]
SHORT = ["train.seq_len=128", "train.micro_batch=2"]
LONG = ["train.seq_len=512", "train.micro_batch=4"]
FP32 = ["train.precision=fp32"]
CASES = [
    (size, kind, words)
    for size in ("tiny", "small", "medium")
    for kind, words in [
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
]


def arguments(size: str, words: list[str]) -> list[str]:
    """The command line of a case; an update has two units."""
    two = ["train.micro_batches_per_update=2", "meta.tasks_per_step=2"]
    return [f"model={size}", "objective=maml", "meta.max_window_fraction=1", *two, *words]


def predicted(size: str, kind: str, words: list[str]) -> tuple[str, int]:
    """The moment of the peak and its bytes."""
    config = commandline.load("pretrain", arguments(size, words))
    moment, peak = memory.peak(config, kind, memory.Ranks(1, "cpu"))
    return moment, peak.total + peak.host


def measured(size: str, kind: str, words: list[str]) -> int:
    """Peak in bytes, of a fresh process."""
    command = [sys.executable, __file__, kind, *arguments(size, words)]
    environment = {**os.environ, "GLIBC_TUNABLES": ALLOCATOR, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def status_bytes(name: str, process: str | int = "self") -> int:
    """VmRSS or VmHWM of a process."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure(kind: str, words: list[str]) -> int:
    """The peak of this process for two updates, in bytes."""
    run_updates(kind, ["objective=maml", "meta.max_window_fraction=1", *words[4:], "model=nano"])
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status_bytes("VmRSS")
    run_updates(kind, words)
    return status_bytes("VmHWM") - before


def run_updates(kind: str, words: list[str]) -> None:
    """Two updates of one kind from random tokens."""
    import numpy as np
    import torch
    from tokens import Tokens

    from metapt.data.episodes import EpisodeSampler, WindowIndex
    from metapt.meta.objectives import episode_objective, next_token_objective
    from metapt.models.meta_lm import build_meta_lm
    from metapt.training.engine import Engine

    config = commandline.load("pretrain", words)
    train, meta = config.train, config.meta
    tokens = np.random.default_rng(0).integers(2, 200, 40_000)
    index = WindowIndex.build(tokens, 256, meta.window, meta.min_context)
    sampler = EpisodeSampler(Tokens(tokens), index, meta, 0, 1, 0)  # type: ignore[arg-type]
    engine = Engine(build_meta_lm(config), config)
    for step in range(2):
        for unit in range(2):
            if kind == "episode":
                outcome = episode_objective(engine.meta_lm, sampler.episode(step, unit), meta, 0, step, unit)
            else:
                outcome = next_token_objective(
                    engine.meta_lm, torch.randint(2, 200, (train.micro_batch, train.seq_len + 1))
                )
            engine.backward(outcome.loss / 2, last=unit == 1)
            del outcome
        engine.step(1e-3)


def main() -> None:
    """Measures every case, two processes at a time, and writes the table."""
    from machine import machine

    lines = [
        "# Memory of an update on one rank: predicted and measured",
        "",
        "`python benchmarks/memory.py` measured this; it also says how. Model of memory: `metapt/estimate/memory.py`.",
        "",
        f"Machine: {machine()}.",
        "",
        "| model | update | settings | peak at | predicted, MiB | measured, MiB | ratio |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    with ThreadPoolExecutor(2) as two:  # memory does not mind company
        peaks = two.map(lambda case: measured(*case), CASES)
        for (size, kind, words), found in zip(CASES, peaks, strict=True):
            moment, expected = predicted(size, kind, words)
            figures = f"{expected / 2**20:,.0f} | {found / 2**20:,.0f} | {expected / found:.2f}"
            lines.append(f"| {size} | {kind} | {' '.join(words)} | {moment} | {figures} |")
            print(lines[-1], flush=True)
    (Path(__file__).parent / "memory.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(measure(sys.argv[1], sys.argv[2:]))
    else:
        main()
