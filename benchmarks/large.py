"""Pretraining the 570 M model on one CPU: `python benchmarks/large.py` writes docs/results/large.md.

METAPT_TEXT_DIR and METAPT_TOKENIZER are the text and the tokenizer. For each scope, a run of three updates under ZeRO 2 in
bf16 (a next-token update, then an episode) receives TERM during the second, a new process resumes it, and the exported
model is loaded with transformers. The peak memory (VmHWM) of each process is measured; a process is killed if the machine
runs out of memory. Results are kept in the run folder, and only missing ones are measured at the next start.
`python benchmarks/large.py tiny` tries the script at another size and only prints.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from memory import status_bytes

from metapt.config import commandline
from metapt.errors import EXIT_INTERRUPTED, OperationalError, run_command
from metapt.estimate.memory import KINDS, Ranks, peak
from metapt.runs import MODEL_DIR, Run

GIB = 2**30
MIN_AVAILABLE = 1.5 * GIB
"""Available memory below which a process is killed."""
MAX_SEEDS = 100
DATA = {"text_dir": "METAPT_TEXT_DIR", "tokenizer": "METAPT_TOKENIZER"}
"""Environment variables by data key."""
LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
tokens = AutoTokenizer.from_pretrained(sys.argv[1])("One morning in the village", return_tensors="pt").input_ids
print(sum(value.numel() for value in model.parameters()), float(model(input_ids=tokens, labels=tokens).loss))
"""


def arguments(size: str, scope: str, folder: Path) -> list[str]:
    """The command line of a run."""
    return [
        f"model={size}",
        "objective=maml_paper",
        "ds=zero2",
        "data=text",
        "data.max_tokens=2000000",
        *(commandline.quote_override(f"data.{key}", os.environ[name]) for key, name in DATA.items()),
        "train.seq_len=128",
        "train.precision=bf16",
        "train.micro_batch=1",
        "train.micro_batches_per_update=2",
        "train.max_steps=3",
        "train.warmup_steps=1",
        "train.eval_sequences=1",
        "train.checkpoint_every=3",
        f"meta.scope={scope}",
        "meta.window=128",
        "meta.n_way=4",
        "meta.k_shot=1",
        "meta.q_query=1",
        "meta.tasks_per_step=1",
        "train.keep_checkpoints=1",
        "train.dynamics_every=0",
        f"train.seed={seed()}",
        commandline.quote_override("data.cache_dir", folder / "corpus"),
        commandline.quote_override("run_dir", folder / scope),
    ]


def seed() -> int:
    """The first seed with which the first update is next-token prediction and the second an episode."""
    from metapt.config import commandline
    from metapt.meta.update_plan import plan_update

    for candidate in range(MAX_SEEDS):
        config = commandline.load("pretrain", ["objective=maml_paper", f"train.seed={candidate}"])
        if [plan_update(config, step).kind for step in (0, 1)] == ["lm", "episode"]:
            return candidate
    raise ValueError(f"no seed below {MAX_SEEDS} begins with such updates")


def run_watched(command: list[str], log: Path, stop_when: Path | None = None) -> tuple[int, float]:
    """Run a command; return its exit code and its peak memory in GiB.

    Args:
        stop_when: a metrics file; TERM is sent as soon as it has the line of an update.
    Raises:
        OperationalError: less than MIN_AVAILABLE memory was left; the process was killed.
    """
    peak_bytes, sends_term = 0, stop_when is not None
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
        while process.poll() is None:
            with suppress(OSError, StopIteration):  # if it has just ended
                peak_bytes = max(peak_bytes, status_bytes("VmHWM", process.pid))
            if available() < MIN_AVAILABLE:
                process.kill()
                process.wait()
                raise OperationalError(
                    f"killed with {available() / GIB:.1f} GiB of memory available: {' '.join(command)}"
                )
            if sends_term and stop_when is not None and has_update(stop_when):
                process.send_signal(signal.SIGTERM)
                sends_term = False
            time.sleep(0.2)
    return process.returncode, peak_bytes / GIB


def available() -> int:
    """Available memory of the machine, in bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def has_update(metrics: Path) -> bool:
    return metrics.exists() and '"lm"' in metrics.read_text(encoding="utf-8")


def measure(size: str, scope: str, folder: Path) -> dict[str, Any]:
    """Pretrain, stop, resume, export and load. Returns peak memory in GiB by process, disk in GiB, and seconds by kind."""
    run, log = Run(folder / scope), folder / f"{scope}.log"
    command = [sys.executable, "-m", "metapt.pretrain", *arguments(size, scope, folder)]
    code, first = run_watched(command, log, stop_when=run.metrics_file)
    if code != EXIT_INTERRUPTED:
        raise OperationalError(f"exit code {code} instead of {EXIT_INTERRUPTED}; see {log}")
    code, resumed = run_watched(command, log)
    if code:
        raise OperationalError(f"exit code {code} after resuming; see {log}")
    step, checkpoint = run.checkpoints()[-1]
    code, loading = run_watched([sys.executable, "-c", LOAD, str(checkpoint / MODEL_DIR)], log)
    if code or step != 3:
        raise OperationalError(f"the export of step {step} does not load; see {log}")
    updates = [line for line in run.metrics() if line["kind"] in KINDS]
    assert [line["step"] for line in updates] == [1, 2, 3]
    disk = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file()) / GIB
    seconds = {line["kind"]: line["seconds"] for line in updates}
    return {"first": first, "resumed": resumed, "loading": loading, "disk": disk, "seconds": seconds}


def report(size: str, results: dict[str, Any], folder: Path) -> str:
    """The page, as Markdown."""
    from machine import machine

    command = " ".join(arguments(size, "SCOPE", Path("FOLDER")))
    for key, placeholder in (("text_dir", "TEXT"), ("tokenizer", "TOKENIZER")):
        command = command.replace(os.environ[DATA[key]], placeholder)
    lines = [
        f"# Pretraining `model={size}` on one CPU: both kinds of update, both scopes",
        "",
        "`python benchmarks/large.py` measured this and describes it. The command of each run:",
        "",
        f"    python -m metapt.pretrain {command}",
        "",
        f"Machine: {machine()}. Other processes ran on it, so the seconds show that pretraining is",
        "possible, not how fast it is. Peaks are those of whole processes (VmHWM) including libraries (about 0.6 GiB);",
        "`metapt estimate` gives those of the updates without libraries.",
        "",
        "| scope | estimate: next-token update, GiB | estimate: episode, GiB | peak of the first process, GiB | of the resumed one, GiB |"
        " of loading the export, GiB | checkpoint, GiB | next-token update, s | episode, s |",
        f"|---|{'---:|' * 8}",
    ]
    for scope, result in results.items():
        config = commandline.load("pretrain", arguments(size, scope, folder))
        cells = [f"{peak(config, kind, Ranks(1, 'cpu'))[1].total / GIB:.1f}" for kind in KINDS]
        cells += [f"{result[name]:.1f}" for name in ("first", "resumed", "loading", "disk")]
        cells += [f"{result['seconds'][kind]:,.0f}" for kind in KINDS]
        lines.append(f"| {scope} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> None:
    size = argv[0] if argv else "large"
    folder = Path("runs") / f"benchmark-{size}"
    folder.mkdir(parents=True, exist_ok=True)
    results_file = folder / "measured.json"
    results = json.loads(results_file.read_text()) if results_file.exists() else {}
    for scope in ("head", "full"):
        if scope not in results:
            results[scope] = measure(size, scope, folder)
            results_file.write_text(json.dumps(results, indent=2))
    text = report(size, results, folder)
    print(text)
    if size == "large":
        (Path(__file__).parents[1] / "docs" / "results" / "large.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
