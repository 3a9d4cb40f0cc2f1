"""A limit on how often Slurm starts a job again that gets nowhere.

A job that is queued again goes on from its newest checkpoint. One that is stopped before it has written a new one,
time after time, would go round for ever: after some requeues in a row without a new checkpoint it is given up.
Slurm counts the requeues of a job, for whatever reason: time limit, preemption, `scontrol requeue`, a failed node.

RUN/requeues.json: {"job": its number, "start": n, "step": s}: at start n of the job (0: the first) the newest
checkpoint was found to be that of step s (-1: none), and it was the same at every start since. The first note says start 0, also
when the job was stopped before it could write one.

`python -m metapt.launch.requeues metapt.COMMAND key=value ...` is for the batch scripts, at each start of their job: it
says which source the job runs, and ends with 1 if the job is to be given up.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from metapt.config import ClusterConfig
from metapt.errors import OperationalError, run_command
from metapt.files import write_atomically, write_json
from metapt.launch.code_snapshot import code
from metapt.runs import Run


def refuse_fruitless_requeues(run: Run, job: str, start: int, most: int, leads: bool = True) -> None:
    """Notes a start of a job, and gives the job up if too many have brought nothing.

    All ranks come to the same end, whether they look before or after the leading one has written.
    Args:
        job: its number, the same after a requeue.
        start: how often it was queued again before this start.
        most: so many requeues in a row may pass without a new checkpoint.
        leads: whether this is the one rank that writes.
    Raises:
        OperationalError: it is given up; error.txt of the run says so.
    """
    checkpoints = run.checkpoints()
    step = checkpoints[-1][0] if checkpoints else -1
    noted = _noted(run, job)
    # without a note none of its earlier starts got as far as here, so none has trained
    since, before = noted or (0, step)
    if step > before:
        since = start
    in_vain = start - since
    if in_vain > most:
        there = "there is none" if step < 0 else f"the newest is of step {step}"
        told = f"queued again {in_vain} times in a row without a new checkpoint ({there}); given up"
        if leads:
            write_atomically(run.error_file, f"{told}\n")
        raise OperationalError(f"{run.path}: {told}")
    if leads and (noted is None or step > before):
        write_json(run.requeues_file, {"job": job, "start": since, "step": step})


def _noted(run: Run, job: str) -> tuple[int, int] | None:
    """The start and the step that an earlier start of this job, or the leading rank at this one, has noted."""
    try:
        noted = json.loads(run.requeues_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return (noted["start"], noted["step"]) if noted["job"] == job else None


def main(argv: Sequence[str]) -> None:
    """Looks at the run of a command line, in a job of Slurm. Raises as `refuse_fruitless_requeues`."""
    from metapt.config import commandline

    print(code(Path(), is_copied=False), flush=True)
    run = Run(commandline.load(argv[0].removeprefix("metapt."), argv[1:]).run_dir)
    job, start = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    refuse_fruitless_requeues(run, job, start, ClusterConfig.max_requeues_without_progress)


if __name__ == "__main__":
    run_command(main)
