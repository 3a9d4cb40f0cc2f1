"""Time and memory of a report: `python benchmarks/report.py [RUNS] [FOLDER]` writes benchmarks/report.md.

RUNS is a key of run_tree.SHAPES (default 1000). The tree of run folders is created in FOLDER (default: a temporary
folder) unless it exists. Each stage runs in a process of its own. CPU seconds include those of the processes that it
starts; on a machine with other work they are a better measure than elapsed time. The peak of memory is that of all these
processes together (proportional set size, sampled every half second).
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from machine import machine
from metapt.analysis.load.collect import run_folders  # type: ignore[import-not-found]
from run_tree import SHAPES, Tree

from metapt.errors import UserError, run_command

REPO = Path(__file__).parents[1]
READ = "import sys; from pathlib import Path; from metapt.analysis.load.collect import collect; collect([Path(sys.argv[1])], Path(sys.argv[2]))"
REPORT = "import sys; from metapt.analysis.report import main; main([sys.argv[1], '--out', sys.argv[2]])"
STAGES = (
    ("reading all runs", READ, "first"),
    ("reading all runs from the cache", READ, "first"),
    ("report, runs from the cache", REPORT, "first"),
    ("report, without a cache", REPORT, "second"),
)
"""(name, code, folder that the report and the cache are written to)"""


class Measurement(NamedTuple):
    """Elapsed and CPU time in seconds, peak memory in GiB."""

    elapsed: float
    cpu: float
    peak: float


def measure(code: str, root: Path, out: Path) -> Measurement:
    """Run code with the arguments (root, out) in a new process and measure it.

    Raises:
        UserError: the code failed.
    """
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", code, str(root), str(out)]
    peak = 0.0
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, start_new_session=True, env=environment
    ) as process:
        while process.poll() is None:
            peak = max(peak, session_memory(process.pid))
            time.sleep(0.5)
    if process.returncode:
        raise UserError(f"{' '.join(command)} ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measurement(time.perf_counter() - started, cpu, peak)


def session_memory(session: int) -> float:
    """Return the memory of the processes of a session in GiB, with shared memory counted once."""
    kibibytes = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has just ended
            if os.getsid(int(process.name)) == session:
                lines = (process / "smaps_rollup").read_text().splitlines()
                kibibytes += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kibibytes / 2**20


def measure_stages(root: Path) -> list[str]:
    """Measure all stages; return the lines of a table."""
    lines = ["| stage | seconds | CPU seconds | peak memory, GiB |", "|---|---:|---:|---:|"]
    with tempfile.TemporaryDirectory(dir=root.parent) as temporary:
        for name, code, folder in STAGES:
            elapsed, cpu, peak = measure(code, root, Path(temporary, folder))
            lines.append(f"| {name} | {elapsed:.1f} | {cpu:.1f} | {peak:.2f} |")
            print(lines[-1], flush=True)
    return lines


def main(argv: Sequence[str]) -> None:
    """Create the tree, measure every stage, and write the table."""
    runs = int(argv[0]) if argv else 1000
    if runs not in SHAPES:
        raise UserError(f"{runs} runs: not one of {', '.join(map(str, SHAPES))}")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(argv[1] if len(argv) > 1 else temporary, "tree")
        if not root.exists():
            Tree(root, SHAPES[runs]).write()
        files = [file for file in root.rglob("*") if file.is_file()]
        gigabytes = sum(file.stat().st_size for file in files) / 2**30
        tree = f"{len(list(run_folders(root))):,} run folders, {len(files):,} files, {gigabytes:.1f} GiB"
        load = f"{os.getloadavg()[0]:.1f}"
        lines = measure_stages(root)
        load += f" before, {os.getloadavg()[0]:.1f} after"
    head = [
        f"# The report of {runs:,} runs",
        "`make bench-report` measured this table; benchmarks/report.py describes how, and benchmarks/run_tree.py what the run "
        "folders contain.",
        f"Machine: {machine()}, {os.cpu_count()} cores; load average {load}. {tree}.",
    ]
    text = "\n\n".join([*head, "\n".join(lines)]) + "\n"
    (Path(__file__).parent / "report.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
