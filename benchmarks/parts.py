"""Where an update goes, ours beside that of transformers' Trainer: `python benchmarks/parts.py` writes benchmarks/parts.md.

What is left to win is told by the row of the matrix products: an update that made nothing but them would still take as
long. Times are torch's profiler's own for each operation, medians over updates of both in turn.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from statistics import median

from machine import machine, precisions
from peers import trainer_step
from steps import configuration, our_step, random_sequences
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
REST = "all else, the optimizer too"


def parts_of(step: Callable[[], None]) -> dict[str, float]:
    """Seconds of each part of one update."""
    place = {f"aten::{name}": part for part, names in PARTS.items() for name in names}
    found = dict.fromkeys([*PARTS, REST], 0.0)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    for event in profiler.key_averages():
        found[place.get(event.key, REST)] += event.self_cpu_time_total / 1e6
    return found


def shares(size: str, precision: str) -> dict[str, tuple[float, float]]:
    """(ours, Trainer's) of each part, as shares of Trainer's update."""
    config = configuration(size, 512, precision, "objective=vanilla")
    sequences = random_sequences(config)
    theirs = trainer_step(config, sequences[:, :-1])  # before there is a process group
    sides = (our_step(config, sequences), theirs)
    for step in sides:
        step()
    measured = [[parts_of(step) for step in sides] for _ in range(REPETITIONS)]
    ours, other = ({part: median(both[side][part] for both in measured) for part in [*PARTS, REST]} for side in (0, 1))  # fmt: skip
    whole = sum(other.values())
    return {part: (ours[part] / whole, other[part] / whole) for part in ours}


def table(size: str, precision: str, found: dict[str, tuple[float, float]]) -> list[str]:
    """A heading, a line for each part, and their sum."""
    lines = [f"## {size} in {precision}, 4 sequences of 512", "", "| part | this suite | Trainer |", "|---|---:|---:|"]  # fmt: skip
    sums = [sum(column) for column in zip(*found.values(), strict=True)]
    rows = [*found.items(), ("the update", sums)]
    lines += [f"| {part} | {ours:.2f} | {theirs:.2f} |" for part, (ours, theirs) in rows]
    return [*lines, ""]


def main(argv: Sequence[str]) -> None:
    """Measures each case in a process of its own, and writes the file."""
    if argv:
        print(json.dumps(shares(*argv)))
        return
    lines = ["# Where an update goes", "", "As shares of Trainer's update; benchmarks/parts.py says how.", ""]
    lines += [f"Machine: {machine()}; {date.today()}.", ""]
    for case in CASES:
        done = subprocess.run([sys.executable, __file__, *case], stdout=subprocess.PIPE, text=True, check=True)  # fmt: skip
        lines += table(*case, json.loads(done.stdout.splitlines()[-1]))
        print("\n".join(lines[-len(PARTS) - 7 :]), flush=True)
    FILE.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
