"""How long a run takes to end after a signal: `python benchmarks/stopping.py` writes benchmarks/stopping.md.

METAPT_TEXT_DIR and METAPT_TOKENIZER say where the text and the tokenizer are. Runs of `model=tiny` at its defaults, in which
one update is minutes long here, get TERM at moments drawn at random after training has begun. Told is the time until the
process is gone, its checkpoint written and its exit code 75, and the same as a share of the longest stretch without a look
at the flag, which is measured in the same run: one micro-batch with its backward pass.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from large import DATA
from machine import machine
from steps import our_micro_batch
from timing import medians

from metapt.config import commandline
from metapt.errors import EXIT_INTERRUPTED, OperationalError, run_command
from metapt.runs import Run

MOMENTS = 4
LATEST_SECONDS = 30.0
VARIANTS = {
    "objective=vanilla": ["objective=vanilla"],
    "objective=maml meta.scope=head meta.rho=1": ["objective=maml", "meta.rho=1"],
    "objective=maml meta.scope=full meta.rho=1": ["objective=maml", "meta.rho=1", "meta.scope=full"],
}


def words(variant: str, folder: Path) -> list[str]:
    """The command line of a run, its folder excepted."""
    data = [commandline.quote_override(f"data.{key}", os.environ[name]) for key, name in DATA.items()]
    small = ["data.max_tokens=5000000", "train.eval_batches=1", "train.dynamics_every=0"]
    cache = commandline.quote_override("data.cache_dir", folder / "corpus")
    return ["model=tiny", *VARIANTS[variant], "data=text", *data, *small, cache]


def seconds_to_stop(settings: list[str], run: Run, after: float, log: Path) -> float:
    """Starts a run, sends TERM so many seconds after its first held-out loss, and times its end."""
    command = [sys.executable, "-m", "metapt.pretrain", *settings, commandline.quote_override("run_dir", run.path)]
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    while process.poll() is None and not any(run.metrics()):
        time.sleep(0.2)
    time.sleep(after)
    process.send_signal(signal.SIGTERM)
    asked = time.perf_counter()
    if process.wait() != EXIT_INTERRUPTED:
        raise OperationalError(f"exit code {process.returncode} where {EXIT_INTERRUPTED} was due; see {log}")
    return time.perf_counter() - asked


def main(argv: Sequence[str]) -> None:
    """Measures all variants, at so many moments each as the argument says, and writes the table."""
    moments = int(argv[0]) if argv else MOMENTS
    (unit,) = medians(our_micro_batch(commandline.load("pretrain", ["model=tiny", "objective=vanilla"])))
    lines = [
        "# From TERM to the end of the process",
        "",
        f"`python benchmarks/stopping.py` measured this; {moments} random moments each. Machine: {machine()},",
        "which others use as well. A unit is one micro-batch of 4 sequences of 2,048 tokens with its backward pass.",
        "",
        f"One took {unit:.1f} s.",
        "",
        "| `model=tiny` with | to the end, longest, s | in units |",
        "|---|---:|---:|",
    ]
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number, variant in enumerate(VARIANTS):
            settings = words(variant, root)
            runs = [Run(root / f"{number}-{moment}") for moment in range(moments)]
            found = [
                seconds_to_stop(settings, run, draw.uniform(0, LATEST_SECONDS), root / "log") for run in runs
            ]
            lines.append(f"| {variant} | {max(found):.1f} | {max(found) / unit:.1f} |")
            print(lines[-1], *(f"{each:.1f}" for each in found), flush=True)
    (Path(__file__).parent / "stopping.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
