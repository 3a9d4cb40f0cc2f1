"""The state of every job of a grid: from the run folders, and of what was handed to Slurm from squeue as well.

Made for a login node and hundreds of runs: squeue is asked once, of each run only the ends of files are read, and
nothing is imported that trains. sacct is not asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metapt.errors import OperationalError
from metapt.launch import slurm_queue
from metapt.launch.grid_dir import Root
from metapt.launch.jobs import Job
from metapt.launch.run_status import RunStatus, run_status


@dataclass(frozen=True)
class JobStatus:
    """One job. `state` is that of its folder (RunStatus), or one of: queued (it waits in Slurm's queue), blocked (a job
    that it needs is failed, lost or blocked, or was interrupted and is not queued again), lost (Slurm had it, has it no longer, and it never began)."""

    job: Job
    state: str
    run: RunStatus
    log: Path  # of its standard error, which is there once it has begun
    entry: slurm_queue.Entry | None = None  # in Slurm's queue

    def to_dict(self) -> dict[str, Any]:
        run = {name: value for name, value in asdict(self.run).items() if name not in ("state", "error")}
        error = self.run.last_error_line if self.state == "failed" else None
        place = asdict(self.entry) if self.entry else None
        names = {"job": self.job.id, "kind": self.job.kind, "state": self.state}
        return {**names, **run, "error": error, "log": str(self.log), "slurm": place}


@dataclass(frozen=True)
class Overview:
    """All jobs of the present plan, in its order.

    `others` are the runs below the root that it does not have, superseded ones for example, and what of earlier plans is
    still in Slurm's queue: by job id, with the number there or "".
    """

    root: Path
    jobs: tuple[JobStatus, ...]
    logs: str  # pattern of the logs' names
    others: Mapping[str, str]
    queue_error: str = ""  # why squeue does not say anything

    @property
    def is_finished(self) -> bool:
        return all(status.state == "done" for status in self.jobs)

    def to_json(self) -> str:
        """One line: {root, jobs: [...], others: {id: number}, queue_error}."""
        jobs = [status.to_dict() for status in self.jobs]
        told = {"root": str(self.root), "jobs": jobs, "others": dict(self.others)}
        return json.dumps({**told, "queue_error": self.queue_error or None})


def overview(root: Root) -> Overview:
    """Looks at every job of ROOT/plan.json.

    Raises:
        UserError: the folder holds no plan.
    """
    plan, queue_error = root.read_plan(), ""
    numbers = slurm_queue.recorded(root)
    entries: Mapping[str, slurm_queue.Entry] = {}
    try:
        entries = slurm_queue.entries(root)  # before the folders: what ends in between is seen as done
    except OperationalError as error:
        queue_error = str(error)
    may_be_lost = not queue_error and not root.is_claimed
    found: dict[str, JobStatus] = {}
    for job in plan.jobs:
        number = numbers.get(job.id) if may_be_lost else None
        found[job.id] = _look(job, root, entries.get(job.id), number, found)
    others = dict.fromkeys(root.other_runs(plan), "")
    others |= {name: entry.number for name, entry in entries.items() if name not in found}
    return Overview(root.path, tuple(found.values()), f"{root.path}/logs/JOB.err", others, queue_error)


def _look(
    job: Job, root: Root, entry: slurm_queue.Entry | None, number: str | None, before: Mapping[str, JobStatus]
) -> JobStatus:
    """The status of one job.

    Args:
        entry: in the queue.
        number: under which it was handed to Slurm, if it is not to be waited for any longer.
        before: the jobs that it may need.
    """
    run, log = run_status(root.path / job.run_dir), root.log_file(job, "err")
    state = run.state
    if state != "done" and entry and entry.state != "COMPLETING":
        state = "queued" if entry.waits else "running"
        if entry.is_hopeless:
            state = "blocked"
    elif state == "waiting" and not entry:
        needed = {before[name].state for name in job.needs}
        is_settled = {"failed", "lost", "blocked", *(["interrupted"] if number else [])}
        if needed & is_settled and not job.runs_after_failures:
            state = "blocked"
        elif number and needed <= {"done"}:
            state, log = "lost", root.submitit_dir / f"{number}_0_log.err"
    return JobStatus(job, state, run, log, entry)
