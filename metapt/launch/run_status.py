"""The state and progress of a run, from the files in its folder alone."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metapt.files import parsed_object
from metapt.launch.job_state import JobState
from metapt.leases import is_held
from metapt.runs import Run

TAIL_BYTES = 16 * 1024
ERROR_BYTES = 4 * 1024


@dataclass(frozen=True)
class RunStatus:
    """What the files of a run folder say.

    `state` is waiting (nothing there), running (a process holds the lock), interrupted (started, and no process holds
    the lock, also if the result does not count), failed (error.txt) or done (result.json). `step` counts updates up to `max_steps`, or epochs if `unit` is
    epoch. `loss` is the last training loss; of a finished pretraining run, the evaluation loss (nats per token). `dev_f1` is
    that of the last epoch, of a finished run that of the best; `test_f1` has the F1 on every test set.
    """

    state: JobState
    step: int | None = None
    max_steps: int | None = None
    unit: str = "step"
    loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    dev_f1: float | None = None
    test_f1: Mapping[str, float] | None = None
    error: str | None = None  # the text of error.txt
    mixture: str | None = None  # sources and types of GPU, if more than one trained the run
    result_problem: str | None = None  # why the result of an interrupted run does not count

    @property
    def last_error_line(self) -> str:
        lines = (self.error or "").strip().splitlines()
        return lines[-1].strip() if lines else ""


def run_status(run_dir: str | Path) -> RunStatus:
    """The status of the run in a folder, which need not exist. Reads only the ends of files and takes no lock."""
    run = Run(run_dir)
    found = _status(run)
    mixture = run.mixture() if run.starts_file.exists() else None
    return replace(found, mixture=mixture) if mixture else found


def _status(run: Run) -> RunStatus:
    has_result = run.result_file.exists()
    problem = run.result_problem() if has_result else None
    if has_result and problem is None:
        return _finished_status(run)
    if is_held(run.lock_file):
        return _progress(run, JobState.RUNNING)
    error = tail(run.error_file, ERROR_BYTES)
    if error:
        return RunStatus(JobState.FAILED, error=error)
    if run.config_file.exists() or problem:
        return replace(_progress(run, JobState.INTERRUPTED), result_problem=problem)
    return RunStatus(JobState.WAITING)


def tail(path: Path, size: int, start: int = 0) -> str:
    """The last `size` bytes of a text file, but nothing before byte `start`; empty if there is no such file."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start, end - size))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def _finished_status(run: Run) -> RunStatus:
    """The status of a finished run, or of a finished job that is no run."""
    result = run.result()
    if result.get("kind") in ("finetune", "baseline"):
        epochs, test_f1 = (
            result.get("epochs"),
            {name: scores["f1"] for name, scores in result.get("sets", {}).items()},
        )
        return RunStatus(
            JobState.DONE, epochs, epochs, "epoch", dev_f1=result.get("dev_f1"), test_f1=test_f1 or None
        )
    seconds, tokens = result.get("seconds_total"), result.get("tokens_total")
    rate = tokens / seconds if tokens and seconds else None
    steps = result.get("steps")
    return RunStatus(JobState.DONE, steps, steps, "step", result.get("eval_loss_nats"), rate)


def _progress(run: Run, state: JobState) -> RunStatus:
    length = run.max_length()
    if length is None:
        return RunStatus(state)
    lines = _last_metrics(run.metrics_file)
    if length[1] == "epoch":
        return _finetuning_progress(state, lines, max_epochs=length[0])
    if any(line["kind"] == "train" for line in lines):
        return _fixed_tuning_progress(state, lines[-1], max_steps=length[0])
    return _pretraining_progress(state, lines, max_steps=length[0])


def _last_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines among the last bytes of metrics.jsonl, without damaged ones."""
    lines = tail(path, TAIL_BYTES).splitlines(keepends=True)
    if lines and path.stat().st_size > TAIL_BYTES:
        del lines[0]  # its beginning may be missing
    complete = [line for line in lines if line.endswith("\n")]
    try:
        found = json.loads(f"[{','.join(complete)}]")  # faster than parsing line by line
    except ValueError:
        found = [parsed_object(line.encode()) for line in complete]
    return [line for line in found if isinstance(line, dict)]


def _pretraining_progress(state: JobState, lines: list[dict[str, Any]], max_steps: int) -> RunStatus:
    updates = [line for line in lines if line["kind"] in ("lm", "episode", "mixed", "skipped")]
    if not updates:
        return RunStatus(state, 0, max_steps)
    step = updates[-1]["step"]
    losses = [line["lm_loss_nats"] for line in updates if "lm_loss_nats" in line]
    seconds = sum(line["seconds"] for line in updates)
    # averages over both kinds of update in the tail, because their lengths differ a lot
    rate = sum(line["tokens_per_second"] * line["seconds"] for line in updates) / seconds if seconds else None
    left = (max_steps - step) * seconds / len(updates)
    return RunStatus(state, step, max_steps, "step", losses[-1] if losses else None, rate, left)


def _fixed_tuning_progress(state: JobState, last: dict[str, Any], max_steps: int) -> RunStatus:
    """Progress of fine-tuning with a fixed number of updates."""
    step, seconds = last["step"], last["seconds_total"]
    return RunStatus(
        state, step, max_steps, "step", last["loss_nats"], None, (max_steps - step) * seconds / step
    )


def _finetuning_progress(state: JobState, lines: list[dict[str, Any]], max_epochs: int) -> RunStatus:
    """Progress in epochs, because early stopping makes the number of steps unknown; the time left is an upper bound."""
    steps = [line for line in lines if line["kind"] == "train"]
    epochs = [line for line in lines if line["kind"] == "dev"]
    if not steps:
        return RunStatus(state, 0, max_epochs, "epoch")
    last = steps[-1]
    done = epochs[-1]["epoch"] if epochs else last["epoch"] - 1
    before = [line["seconds_total"] for line in steps if epochs and line["step"] <= epochs[-1]["step"]]
    # if the last epoch ended before the tail begins, the present epoch is assumed to be half done
    spent, passed = (before[-1], done) if before else (last["seconds_total"], done + 0.5)
    left = (max_epochs - done) * spent / passed if done else None
    dev_f1 = epochs[-1]["f1"] if epochs else None
    return RunStatus(state, done, max_epochs, "epoch", last["loss_nats"], None, left, dev_f1)
