"""The 570 M model for real: `python benchmarks/large.py` writes docs/results/large.md. METAPT_TEXT_DIR and
METAPT_TOKENIZER say where the text and the tokenizer are.

For each scope a run of three updates under ZeRO-2 in bf16 (a next-token update, then an episode): TERM comes during the
second, a new process resumes, and the export is loaded with transformers. Each process' peak (VmHWM) is
watched; if the machine runs out of memory it is killed. What was measured is kept in the folder: started
again, it goes on with what is missing. `python benchmarks/large.py tiny` tries the script at another size and only prints.
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
LEAST_AVAILABLE = 1.5 * GIB
SEED_TRIES = 100
LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
tokens = AutoTokenizer.from_pretrained(sys.argv[1])("One morning in the village", return_tensors="pt").input_ids
print(sum(value.numel() for value in model.parameters()), float(model(input_ids=tokens, labels=tokens).loss))
"""


def words(size: str, scope: str, folder: Path) -> list[str]:
    """The command line of a run."""
    settings = [f"model={size}", "objective=maml", "ds=zero2", "data=text", "data.max_tokens=2000000"]
    settings += [commandline.quote_override(f"data.{key}", os.environ[name]) for key, name in DATA.items()]
    settings += [
        "train.seq_len=128",
        "train.precision=bf16",
        "train.micro_batch=1",
        "train.micro_batches_per_update=2",
    ]
    settings += [
        "train.max_steps=3",
        "train.warmup_steps=1",
        "train.eval_batches=1",
        "train.checkpoint_every=3",
    ]
    settings += [f"meta.scope={scope}", "meta.window=128", "meta.n_way=4", "meta.k_shot=1", "meta.q_query=1"]
    settings += ["meta.tasks_per_step=1", "train.keep_checkpoints=1", "train.dynamics_every=0"]
    return [
        *settings,
        f"train.seed={seed()}",
        commandline.quote_override("data.cache_dir", folder / "corpus"),
        commandline.quote_override("run_dir", folder / scope),
    ]


DATA = {"text_dir": "METAPT_TEXT_DIR", "tokenizer": "METAPT_TOKENIZER"}


def seed() -> int:
    """The first seed whose second update is an episode and whose first is none."""
    from metapt.config import MetaConfig
    from metapt.meta.objectives import is_episode_update

    meta = MetaConfig(objective="maml", rho=0.5)
    draws = ([is_episode_update(meta, tried, step) for step in (0, 1)] for tried in range(SEED_TRIES))
    return next(tried for tried, drawn in enumerate(draws) if drawn == [False, True])


def watched(command: list[str], log: Path, stop_when: Path | None = None) -> tuple[int, float]:
    """Runs a command. Returns its exit code and its peak in GiB.

    Args:
        stop_when: TERM is sent as soon as this metrics file has the line of an update.
    Raises:
        OperationalError: the machine has less than LEAST_AVAILABLE left; the process was killed.
    """
    highest, told = 0, stop_when is None
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
        while process.poll() is None:
            with suppress(OSError, StopIteration):  # it may just have ended
                highest = max(highest, status_bytes("VmHWM", process.pid))
            if available() < LEAST_AVAILABLE:
                process.kill()
                process.wait()
                raise OperationalError(
                    f"{available() / GIB:.1f} GiB left in the machine; {' '.join(command)}"
                )
            if not told and stop_when is not None and has_update(stop_when):
                process.send_signal(signal.SIGTERM)
                told = True
            time.sleep(0.2)
    return process.returncode, highest / GIB


def available() -> int:
    """Bytes that the machine has left."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def has_update(metrics: Path) -> bool:
    return metrics.exists() and '"lm"' in metrics.read_text(encoding="utf-8")


def measure(size: str, scope: str, folder: Path) -> dict[str, Any]:
    """Pretrains, is stopped, resumes, exports, loads; what it took."""
    run, log = Run(folder / scope), folder / f"{scope}.log"
    command = [sys.executable, "-m", "metapt.pretrain", *words(size, scope, folder)]
    code, first = watched(command, log, stop_when=run.metrics_file)
    if code != EXIT_INTERRUPTED:
        raise OperationalError(f"exit code {code} where {EXIT_INTERRUPTED} was due; see {log}")
    code, second = watched(command, log)
    if code:
        raise OperationalError(f"exit code {code} after resuming; see {log}")
    step, checkpoint = run.checkpoints()[-1]
    model = checkpoint / MODEL_DIR
    code, loading = watched([sys.executable, "-c", LOAD, str(model)], log)
    if code or step != 3:
        raise OperationalError(f"the export of step {step} does not load; see {log}")
    updates = [line for line in run.metrics() if line["kind"] in KINDS]
    assert [line["step"] for line in updates] == [1, 2, 3]
    size_on_disk = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file()) / GIB
    seconds = {line["kind"]: line["seconds"] for line in updates}
    return {"first": first, "resumed": second, "loading": loading, "disk": size_on_disk, "seconds": seconds}


def report(size: str, results: dict[str, Any], folder: Path) -> str:
    """What was measured, as Markdown."""
    from machine import machine

    lines = [
        f"# `model={size}` for real: both kinds of update, both scopes, on one CPU",
        "",
        "`python benchmarks/large.py` measured this; the script says what it does. The command of each run:",
        "",
        f"    python -m metapt.pretrain {' '.join(words(size, 'SCOPE', Path('FOLDER')))}".replace(
            os.environ[DATA["text_dir"]], "TEXT"
        ).replace(os.environ[DATA["tokenizer"]], "TOKENIZER"),
        "",
        f"Machine: {machine()}. The seconds are those of a machine that others use as well: they say that it is",
        "possible, not how fast it is. The peaks are of whole processes (VmHWM), libraries included (about 0.6 GiB);",
        "`metapt.plan` tells those of the updates without them.",
        "",
        "| scope | told: next-token, episode, GiB | peak of the first process, GiB | of the resumed one | of loading the export |"
        " checkpoint, GiB | seconds of a next-token update | of an episode |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for scope, found in results.items():
        config = commandline.load("pretrain", words(size, scope, folder))
        told = ", ".join(f"{peak(config, kind, Ranks(1, 'cpu'))[1].total / GIB:.1f}" for kind in KINDS)
        memory = " | ".join(f"{found[name]:.1f}" for name in ("first", "resumed", "loading", "disk"))
        seconds = " | ".join(f"{found['seconds'][kind]:,.0f}" for kind in KINDS)
        lines.append(f"| {scope} | {told} | {memory} | {seconds} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> None:
    size = argv[0] if argv else "large"
    folder = Path("runs") / f"benchmark-{size}"
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "measured.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    for scope in ("head", "full"):
        if scope not in results:
            results[scope] = measure(size, scope, folder)
            kept.write_text(json.dumps(results, indent=2))
    text = report(size, results, folder)
    print(text)
    if size == "large":
        (Path(__file__).parents[1] / "docs" / "results" / "large.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
