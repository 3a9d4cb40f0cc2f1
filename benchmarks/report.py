"""The report of ten thousand run folders: `python benchmarks/report.py [FOLDER]` writes benchmarks/report.md.

The tree of benchmarks/run_tree.py is made in FOLDER (absent: a temporary one), unless it is there. Each stage runs in a process of
its own and tells CPU seconds (its own and those of the processes it starts), which on a machine with other work are a
better measure than the time that passed, and the peaks of the resident sets. Beside them stands what the plainest
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
from pathlib import Path
from typing import Any

from run_tree import Shape, Tree

from analysis import drawing
from analysis.collect import collect, run_folders
from analysis.report import write
from analysis.sections import build
from metapt.errors import run_command

SHARE = 20  # of the folders one is read plainly
CHANGED = 100


def cpu_seconds() -> float:
    """Of this process and of those it has waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def peaks() -> tuple[float, float]:
    """Peak of this process and of the largest that it has started, GiB."""
    sides = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    own, child = (resource.getrusage(who).ru_maxrss / 2**20 for who in sides)
    return own, child


def plainly(root: Path, out: Path) -> dict[str, float]:
    for folder in list(run_folders(root))[::SHARE]:
        for file in [*folder.glob("predictions/*.jsonl"), *folder.glob("metrics.jsonl")]:
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    json.loads(line)
                except ValueError:  # cut off
                    continue
    return {"cpu": SHARE * cpu_seconds()}


def reading(root: Path, out: Path) -> dict[str, float]:
    started = time.perf_counter()
    found = collect([root], out)
    counts = {"tuned": len(found.finetuning), "pretrained": len(found.pretraining), "left out": len(found.left_out)}  # fmt: skip
    return {"cpu": cpu_seconds(), "seconds": time.perf_counter() - started, **counts}


def changed(root: Path, out: Path) -> dict[str, float]:
    """The same after some result files were written again."""
    for file in sorted(root.glob("finetune/*/result.json"))[:: max(1, 9000 // CHANGED)][:CHANGED]:
        file.write_bytes(file.read_bytes())
    return reading(root, out)


def reporting(root: Path, out: Path) -> dict[str, float]:
    """Everything, of what has been read before; what svg and pdf take is told apart."""
    rendering = 0.0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal rendering
            started = time.process_time()
            try:
                return function(*arguments)
            finally:
                rendering += time.process_time() - started

        return call

    drawing.svg, drawing.pdf = timed(drawing.svg), timed(drawing.pdf)
    started = time.perf_counter()
    collection = collect([root], out)
    read = cpu_seconds()
    report = build(collection)
    built = cpu_seconds()
    write(report, out)
    written = cpu_seconds()
    page = (out / "index.html").stat().st_size / 2**20
    times = {"read": read, "analysed": built - read - rendering, "rendered": rendering, "written": written - built}  # fmt: skip
    return {"cpu": written, "seconds": time.perf_counter() - started, **times, "figures": len(report.figures), "page MiB": page}  # fmt: skip


STAGES: dict[str, Callable[[Path, Path], dict[str, float]]] = {
    "plain json.loads": plainly,
    "first reading": reading,
    "second reading": reading,
    f"reading after {CHANGED} runs have changed": changed,
    "the report, of what was read": reporting,
}


def measured(stage: str, root: Path, out: Path) -> dict[str, float]:
    """What a stage tells, of a fresh process."""
    command = [sys.executable, __file__, stage, str(root), str(out)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(root: Path) -> list[str]:
    """What is in the tree, and a line for each stage."""
    files = [file for file in root.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files) / 2**30
    lines = [f"{len(list(run_folders(root))):,} folders, {len(files):,} files, {size:.1f} GiB.", ""]
    lines += ["| stage | CPU seconds | share of plain json.loads | seconds | peak, GiB | of a process it starts | what else |"]  # fmt: skip
    lines += ["|---|---:|---:|---:|---:|---:|---|"]
    with tempfile.TemporaryDirectory(dir=root.parent) as out:
        plain = 0.0
        for stage in STAGES:
            found = measured(stage, root, Path(out))
            cpu, seconds = found.pop("cpu"), found.pop("seconds", None)
            own, child = found.pop("peak"), found.pop("child")
            plain = plain or cpu
            rest = ", ".join(f"{name} {value:,.1f}".removesuffix(".0") for name, value in found.items())
            passed = "" if seconds is None else f"{seconds:.1f}"
            lines.append(f"| {stage} | {cpu:.1f} | {cpu / plain:.2g} | {passed} | {own:.2f} | {child:.2f} | {rest} |")  # fmt: skip
            print(lines[-1], flush=True)
    return lines


def main(argv: Sequence[str]) -> None:
    """Makes the tree, measures every stage, and writes the table."""
    if len(argv) == 3:
        found = STAGES[argv[0]](Path(argv[1]), Path(argv[2]))
        own, child = peaks()
        print(json.dumps({**found, "peak": own, "child": child}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(argv[0] if argv else temporary, "tree")
        if not root.exists():
            Tree(root, Shape()).write()
        lines = table(root)
    from machine import machine

    head = (
        "# The report of ten thousand runs\n\n`make bench-report` measured this; benchmarks/report.py says how, benchmarks/run_tree.py what is in the tree.\n\n"
        f"Machine: {machine()}, {os.cpu_count()} cores. "
    )
    (Path(__file__).parent / "report.md").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
