"""Time of each part of an update, beside that of transformers' Trainer: `python benchmarks/parts.py` writes benchmarks/parts.md.

The matrix products bound what can be gained: an update of nothing else would still take their time. Times are those of
torch's profiler for each operation, medians over updates of both sides in turn.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from statistics import median

from baselines import trainer_step
from machine import machine, precisions
from steps import configuration, random_sequences, update_step
from timing import REPETITIONS
from torch.profiler import ProfilerActivity, profile

from metapt.errors import run_command

FILE = Path(__file__).with_suffix(".md")
CASES = [(size, precision) for precision in precisions() for size in ("tiny", "small")]
PARTS = {
    "matrix products": ("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_"),
    "torch's attention": (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "softmax and loss": (
        "_softmax",
        "_softmax_backward_data",
        "_log_softmax",
        "_log_softmax_backward_data",
        "nll_loss_forward",
        "nll_loss_backward",
        "amax",
        "gather",
        "scatter_add_",
        "masked_fill_",
    ),
    "copies, casts, zeros": ("copy_", "cat", "fill_", "zero_", "clone", "contiguous"),
}
REST = "all other operations, including the optimizer"


def parts_of(step: Callable[[], None]) -> dict[str, float]:
    """Seconds of each part of one update."""
    part_of = {f"aten::{name}": part for part, names in PARTS.items() for name in names}
    seconds = dict.fromkeys([*PARTS, REST], 0.0)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    for event in profiler.key_averages():
        seconds[part_of.get(event.key, REST)] += event.self_cpu_time_total / 1e6
    return seconds


def fractions(size: str, precision: str) -> dict[str, tuple[float, float]]:
    """Time of each part, of metapt and of Trainer, as a fraction of Trainer's update."""
    config = configuration(size, 512, precision, "objective=vanilla")
    sequences = random_sequences(config)
    baseline = trainer_step(config, sequences[:, :-1])  # before a process group exists
    steps = (update_step(config, sequences), baseline)
    for step in steps:
        step()
    measured = [[parts_of(step) for step in steps] for _ in range(REPETITIONS)]
    ours, trainers = (
        {part: median(repetition[side][part] for repetition in measured) for part in [*PARTS, REST]}
        for side in (0, 1)
    )
    total = sum(trainers.values())
    return {part: (ours[part] / total, trainers[part] / total) for part in ours}


def table(size: str, precision: str, parts: dict[str, tuple[float, float]]) -> list[str]:
    """A heading, a line for each part, and their sum."""
    lines = [
        f"## {size} in {precision}, 4 sequences of 512",
        "",
        "| part | metapt | Trainer |",
        "|---|---:|---:|",
    ]
    sums = [sum(column) for column in zip(*parts.values(), strict=True)]
    rows = [*parts.items(), ("whole update", sums)]
    lines += [f"| {part} | {ours:.2f} | {trainers:.2f} |" for part, (ours, trainers) in rows]
    return [*lines, ""]


def main(argv: Sequence[str]) -> None:
    """Measure each case in its own process and write the file."""
    if argv:
        print(json.dumps(fractions(*argv)))
        return
    lines = [
        "# Time of the parts of an update",
        "",
        "Fractions of the time of Trainer's update; benchmarks/parts.py describes the measurement.",
        "",
        f"Machine: {machine()}; {date.today()}.",
        "",
    ]
    for case in CASES:
        command = [sys.executable, __file__, *case]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        lines += table(*case, json.loads(done.stdout.splitlines()[-1]))
        print("\n".join(lines[-len(PARTS) - 7 :]), flush=True)
    FILE.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
