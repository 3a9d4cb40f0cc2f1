"""The report of ten thousand run folders: `python benchmarks/report.py [FOLDER]` writes benchmarks/report.md.

The tree of benchmarks/run_tree.py is made in FOLDER (absent: a temporary one), unless it is there. Each stage runs in a process of
its own, whose CPU seconds are told (with those of the processes it starts), which on a machine with other work are a
better measure than the time that passed, and the peak of the memory of all of them together (proportional set size,
asked for every half second). The last stage is the whole report from nothing. Beside them stands what the plainest
reading costs: json.loads of every line that the report reads, in one process, on every twentieth folder and times twenty.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from run_tree import Shape, Tree

from analysis.build import build
from analysis.figures import rendering
from analysis.load.collect import run_folders
from analysis.report import read, write
from metapt.errors import UserError, run_command

SHARE = 20  # of the folders one is read plainly
CHANGED = 100


def cpu_seconds() -> float:
    """Of this process and of those it has waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def memory(session: int) -> float:
    """What the processes of a session hold at this moment, memory that they share counted once; GiB."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # one that has just ended
            if os.getsid(int(process.name)) == session:
                lines = (process / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 2**20


def plainly(root: Path, out: Path) -> dict[str, float]:
    for folder in list(run_folders(root))[::SHARE]:
        for file in [*folder.glob("predictions/*.jsonl"), *folder.glob("metrics.jsonl")]:
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    json.loads(line)
                except ValueError:  # cut off
                    continue
    return {"times": SHARE}


def reading(root: Path, out: Path) -> dict[str, float]:
    started = time.perf_counter()
    found = read([root], out)
    counts = {"tuned": len(found.finetuning), "pretrained": len(found.pretraining), "left out": len(found.left_out)}  # fmt: skip
    return {"seconds": time.perf_counter() - started, **counts}


def changed(root: Path, out: Path) -> dict[str, float]:
    """The same after some result files were written again."""
    for file in sorted(root.glob("finetune/*/result.json"))[:: max(1, 9000 // CHANGED)][:CHANGED]:
        file.write_bytes(file.read_bytes())
    return reading(root, out)


def reporting(root: Path, out: Path) -> dict[str, float]:
    """Everything, of what has been read before; CPU seconds of single parts are those of this process alone."""
    started, ends = time.perf_counter(), [cpu_seconds()]
    rendering.begin()
    collection = read([root], out)
    ends.append(cpu_seconds())
    report = build(collection)
    ends.append(cpu_seconds())
    write(report, out)
    ends.append(cpu_seconds())
    page = (out / "index.html").stat().st_size / 2**20
    parts = dict(zip(("read", "analysed", "written"), np.diff(ends).tolist(), strict=True))
    return {"seconds": time.perf_counter() - started, **parts, "figures": len(report.figures), "page MiB": page}  # fmt: skip


def from_nothing(root: Path, out: Path) -> dict[str, float]:
    return reporting(root, out / "again")


STAGES: dict[str, Callable[[Path, Path], dict[str, float]]] = {
    "plain json.loads": plainly,
    "first reading": reading,
    "second reading": reading,
    f"reading after {CHANGED} runs have changed": changed,
    "the report, of what was read": reporting,
    "the report, from nothing": from_nothing,
}


def measured(stage: str, root: Path, out: Path) -> dict[str, float]:
    """What a stage tells, of a fresh process; CPU seconds of all its processes, and their peak together."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, __file__, stage, str(root), str(out)]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}  # as analysis/report.py sets it
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment) as running:  # fmt: skip
        peak = 0.0
        while running.poll() is None:
            peak = max(peak, memory(running.pid))
            time.sleep(0.5)
        assert running.stdout is not None
        told = running.stdout.read().splitlines()
    if running.returncode:
        raise UserError(f"{stage}: ended with {running.returncode}")
    found = json.loads(told[-1])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu": found.pop("times", 1) * spent, "peak": peak, **found}


def table(root: Path) -> list[str]:
    """What is in the tree, and a line for each stage."""
    files = [file for file in root.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files) / 2**30
    lines = [f"{len(list(run_folders(root))):,} folders, {len(files):,} files, {size:.1f} GiB.", ""]
    lines += ["| stage | CPU seconds | share of plain json.loads | seconds | peak, GiB | what else |"]  # fmt: skip
    lines += ["|---|---:|---:|---:|---:|---|"]
    with tempfile.TemporaryDirectory(dir=root.parent) as out:
        plain = 0.0
        for stage in STAGES:
            found = measured(stage, root, Path(out))
            cpu, seconds = found.pop("cpu"), found.pop("seconds", None)
            peak = found.pop("peak")
            plain = plain or cpu
            rest = ", ".join(f"{name} {value:,.1f}".removesuffix(".0") for name, value in found.items())
            passed = "" if seconds is None else f"{seconds:.1f}"
            lines.append(f"| {stage} | {cpu:.1f} | {cpu / plain:.2g} | {passed} | {peak:.2f} | {rest} |")  # fmt: skip
            print(lines[-1], flush=True)
    return lines


def main(argv: Sequence[str]) -> None:
    """Makes the tree, measures every stage, and writes the table."""
    if len(argv) == 3:
        print(json.dumps(STAGES[argv[0]](Path(argv[1]), Path(argv[2]))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(argv[0] if argv else temporary, "tree")
        if not root.exists():
            Tree(root, Shape()).write()
        load = f"{os.getloadavg()[0]:.1f} before"
        lines = table(root)
        load += f", {os.getloadavg()[0]:.1f} after"
    from machine import machine

    head = (
        "# The report of ten thousand runs\n\n`make bench-report` measured this; benchmarks/report.py says how, benchmarks/run_tree.py what is in the tree.\n\n"
        f"Machine: {machine()}, {os.cpu_count()} cores; load {load}. "
    )
    (Path(__file__).parent / "report.md").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
