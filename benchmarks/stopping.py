"""Time from a signal to the end of a run: `python benchmarks/stopping.py` writes benchmarks/stopping.md.

METAPT_TEXT_DIR and METAPT_TOKENIZER are the text and the tokenizer. Runs of `model=tiny` at its defaults, in which an
update takes minutes on a CPU, receive TERM at random moments after training has begun. The time is measured until the
process has ended, with its checkpoint written and exit code 75. It is also given as a multiple of the longest time
between two checks for signals, one micro-batch with its backward pass, measured on the same machine.
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
from steps import micro_batch_step
from timing import medians

from metapt.config import commandline
from metapt.errors import EXIT_INTERRUPTED, OperationalError, run_command
from metapt.runs import Run

MOMENTS = 4
MAX_DELAY_SECONDS = 30.0
VARIANTS = {
    "objective=vanilla": ["objective=vanilla"],
    "objective=maml_paper meta.scope=head meta.rho=1": ["objective=maml_paper", "meta.rho=1"],
    "objective=maml_paper meta.scope=full meta.rho=1": [
        "objective=maml_paper",
        "meta.rho=1",
        "meta.scope=full",
    ],
}


def arguments(variant: str, folder: Path) -> list[str]:
    """The command line of a run, without its run folder."""
    return [
        "model=tiny",
        *VARIANTS[variant],
        "data=text",
        *(commandline.quote_override(f"data.{key}", os.environ[name]) for key, name in DATA.items()),
        "data.max_tokens=5000000",
        commandline.quote_override("data.cache_dir", folder / "corpus"),
        "train.eval_sequences=4",
        "train.dynamics_every=0",
    ]


def seconds_to_stop(settings: list[str], run: Run, delay: float, log: Path) -> float:
    """Start a run, send TERM `delay` seconds after its first line of metrics, and time its end."""
    command = [
        sys.executable,
        "-m",
        "metapt.pretrain",
        *settings,
        commandline.quote_override("run_dir", run.path),
    ]
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    while process.poll() is None and not any(run.metrics()):
        time.sleep(0.2)
    time.sleep(delay)
    process.send_signal(signal.SIGTERM)
    sent = time.perf_counter()
    if process.wait() != EXIT_INTERRUPTED:
        raise OperationalError(f"exit code {process.returncode} instead of {EXIT_INTERRUPTED}; see {log}")
    return time.perf_counter() - sent


def main(argv: Sequence[str]) -> None:
    """Measure all variants, at the number of moments given as argument, and write the table."""
    moments = int(argv[0]) if argv else MOMENTS
    (unit,) = medians(micro_batch_step(commandline.load("pretrain", ["model=tiny", "objective=vanilla"])))
    lines = [
        "# Time from TERM to the end of the process",
        "",
        f"`python benchmarks/stopping.py` measured this, at {moments} random moments per row. Machine: {machine()},",
        "with other processes. A unit is one micro-batch of 4 sequences of 2,048 tokens with its backward pass.",
        "",
        f"A unit took {unit:.1f} s.",
        "",
        "| `model=tiny` with | longest time, s | in units |",
        "|---|---:|---:|",
    ]
    generator = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number, variant in enumerate(VARIANTS):
            settings = arguments(variant, root)
            seconds = [
                seconds_to_stop(
                    settings,
                    Run(root / f"{number}-{moment}"),
                    generator.uniform(0, MAX_DELAY_SECONDS),
                    root / "log",
                )
                for moment in range(moments)
            ]
            lines.append(f"| {variant} | {max(seconds):.1f} | {max(seconds) / unit:.1f} |")
            print(lines[-1], *(f"{one:.1f}" for one in seconds), flush=True)
    (Path(__file__).parent / "stopping.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
