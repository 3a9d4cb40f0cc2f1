"""Check on one GPU what only a GPU can show: `python benchmarks/gpu.py [KEY=VALUE ...]` takes at most 8 minutes.

It runs from a checkout, without network and without installing metapt, on Python 3.11 to 3.13 and torch 2.11 or newer.
Every row is a check with a time limit of its own, in a process of its own; the table is written again after each, so that
a hang or a crash loses one row. Rows whose packages or device are missing are skipped, with the reason.

    out=FILE       the table, in Markdown, for docs/gpu.md; by default gpu.md in the current folder
    wheels=FOLDER  wheels of missing packages, which are installed beside the table and nowhere else
    rows=A,B       only rows whose names begin so
    device=cpu     compute on the CPU: shows only that this script works
    reduced=true   the smallest form of the rows
    minutes=8      time limit of all rows
"""

from __future__ import annotations

import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
ROWS_SCRIPT = Path(__file__).with_name("gpu_rows.py")
BASE = {  # distribution by module
    "torch": "torch",
    "transformers": "transformers",
    "tokenizers": "tokenizers",
    "safetensors": "safetensors",
    "omegaconf": "omegaconf",
    "hydra": "hydra-core",
    "yaml": "pyyaml",
    "regex": "regex",
    "scipy": "scipy",
    "rich": "rich",
}
TAGGING = BASE | {"faker": "faker"}
TRAINING = TAGGING | {
    "deepspeed": "deepspeed",
    "accelerate": "accelerate",
    "datasets": "datasets",
    "pyarrow": "pyarrow",
    "threadpoolctl": "threadpoolctl",
}
SHOWN = ("torch", "triton", "transformers", "deepspeed", "accelerate", "numpy")
ROWS = {  # seconds that a row may take; the order is that of the table
    "environment": 40,
    "zero0": 90,
    "zero1": 50,
    "zero2": 50,
    "zero2_offload": 50,
    "zero3": 60,
    "bf16": 50,
    "compiled": 150,
    "resume": 90,
    "memory tiny": 40,
    "memory small": 40,
    "memory medium": 40,
    "memory large": 60,
    "speed tiny": 60,
    "speed small": 60,
    "speed medium": 60,
    "speed large": 90,
    "speed compiled tiny": 120,
    "episode tiny": 60,
    "episode small": 60,
    "tagging": 90,
}
REDUCED = {"environment": 60, "memory nano": 60, "speed nano": 60, "episode nano": 60}


@dataclass(frozen=True)
class Result:
    """A row of the table: outcome is ok, FAILED, or skipped."""

    row: str
    outcome: str
    text: str
    seconds: float


def run_row(name: str, limit: float, settings: dict[str, str], script: Path = ROWS_SCRIPT) -> Result:
    """Run a row in a process of its own, which is killed when its time is over."""
    started = time.monotonic()
    command = [sys.executable, str(script), name, json.dumps(settings)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, cwd=settings["folder"])
    except subprocess.TimeoutExpired:
        return Result(name, "FAILED", f"no answer within {limit:.0f} s", time.monotonic() - started)
    seconds = time.monotonic() - started
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        outcome, text = json.loads(lines[-1])
        return Result(name, outcome, text, seconds)
    problem = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return Result(name, "FAILED", problem[:300], seconds)


def needed(row: str) -> dict[str, str]:
    """The packages that a row needs."""
    if row == "environment":
        return {"torch": "torch"}
    return BASE if row.startswith(("speed", "episode")) else TAGGING if row == "tagging" else TRAINING


def missing(packages: Mapping[str, str]) -> list[str]:
    """The distributions whose modules cannot be imported."""
    return [name for module, name in packages.items() if importlib.util.find_spec(module) is None]


def install(wheels: str, target: Path) -> str:
    """Install missing packages from a folder of wheels into `target`; return what happened."""
    names = missing(TRAINING)
    # Each by itself: one that has no wheel must not keep the others from being installed.
    failed = [name for name in names if not _installed(name, wheels, target)]
    sys.path.insert(0, str(target))
    installed = [name for name in names if name not in failed]
    return f"installed {', '.join(installed) or 'nothing'}; no wheel of {', '.join(failed) or 'nothing'}"


def _installed(name: str, wheels: str, target: Path) -> bool:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--find-links", wheels]
    return subprocess.run([*command, "--target", str(target), name], capture_output=True).returncode == 0


def versions() -> str:
    """Python, system and versions of the packages that matter."""
    found = []
    for name in SHOWN:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} missing")
    return f"Python {platform.python_version()}, {platform.platform()}; {', '.join(found)}"


def table(results: Sequence[Result], header: str) -> str:
    """The results as Markdown."""
    lines = ["# Checks on one GPU", "", header, "", "| check | outcome | | s |", "|---|---|---|---:|"]
    lines += [
        f"| {each.row} | {each.outcome} | {each.text.replace('|', '/')} | {each.seconds:.0f} |"
        for each in results
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> int:
    """Run the rows and write the table after each; return 1 if a row failed."""
    keys = dict(word.split("=", 1) for word in argv)
    unknown = set(keys) - {"out", "wheels", "rows", "device", "reduced", "minutes"}
    if unknown:
        sys.exit(f"{', '.join(sorted(unknown))}: no such key\n{__doc__}")
    out, is_reduced = Path(keys.get("out", "gpu.md")), keys.get("reduced") == "true"
    limits = REDUCED if is_reduced and "rows" not in keys else ROWS
    wanted = tuple(keys.get("rows", "").split(","))
    deadline = time.monotonic() + 60 * float(keys.get("minutes", "8"))
    with tempfile.TemporaryDirectory() as folder:
        packages = Path(folder, "packages")
        note = install(keys["wheels"], packages) if "wheels" in keys else "no folder of wheels"
        settings = {
            "folder": folder,
            "path": f"{REPO}:{REPO / 'benchmarks'}:{packages}",
            "device": keys.get("device", "cuda"),
            "reduced": str(is_reduced),
        }
        results: list[Result] = []
        for name, limit in limits.items():
            if not name.startswith(wanted):
                continue
            left = deadline - time.monotonic()
            if absent := missing(needed(name)):
                result = Result(name, "skipped", f"not installed: {', '.join(absent)}", 0)
            elif left < 5:
                result = Result(name, "skipped", "the time of all rows is over (minutes=)", 0)
            else:
                patience = 1 if settings["device"] == "cuda" else 4
                result = run_row(name, min(patience * limit, left), settings)
            results.append(result)
            print(f"{result.row:22} {result.outcome:8} {result.text} ({result.seconds:.0f} s)", flush=True)
            out.write_text(table(results, f"{versions()}. Wheels: {note}."), encoding="utf-8")
    return int(any(result.outcome == "FAILED" for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
