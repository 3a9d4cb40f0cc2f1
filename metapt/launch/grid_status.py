"""The state of every job of a grid, from the run folders, and for submitted jobs from Slurm's queue.

It is cheap enough for a login node and hundreds of runs: squeue is called once, only the ends of files are read, and no
training code is imported. sacct is not used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metapt.errors import OperationalError
from metapt.launch import slurm_queue
from metapt.launch.grid_dir import GridDir
from metapt.launch.job_state import JobState, job_state
from metapt.launch.jobs import Job, Plan
from metapt.launch.run_status import RunStatus, run_status
from metapt.launch.slurm_queue import QueueEntry


@dataclass(frozen=True)
class JobStatus:
    """The status of one job: its state, what its folder says, and its entry in Slurm's queue."""

    job: Job
    state: JobState
    run: RunStatus
    log: Path  # of its standard error; exists once it has started
    entry: QueueEntry | None = None

    @property
    def is_in_queue(self) -> bool:
        """Whether Slurm will start the job or is running it."""
        return self.entry is not None and self.state in (JobState.QUEUED, JobState.RUNNING)

    def to_dict(self) -> dict[str, Any]:
        progress = {name: value for name, value in asdict(self.run).items() if name not in ("state", "error")}
        return {
            "job": self.job.id,
            "kind": self.job.kind,
            "state": self.state,
            **progress,
            "error": self.run.last_error_line if self.state is JobState.FAILED else None,
            "log": str(self.log),
            "slurm": asdict(self.entry) if self.entry else None,
        }


@dataclass(frozen=True)
class GridStatus:
    """The status of all jobs of the present plan, in its order.

    `others` are runs in the grid folder that the plan does not have, such as superseded ones, and jobs of earlier plans
    that are still in Slurm's queue: job id to Slurm job id, or to "" if it is not in the queue.
    """

    root: Path
    jobs: tuple[JobStatus, ...]
    logs: str  # pattern of the logs' names
    others: Mapping[str, str]
    queue_error: str = ""  # why squeue gave no information

    @property
    def is_finished(self) -> bool:
        return all(status.state is JobState.DONE for status in self.jobs)

    def to_json(self) -> str:
        """One line: {root, jobs: [...], others: {job id: Slurm job id}, queue_error}."""
        return json.dumps(
            {
                "root": str(self.root),
                "jobs": [status.to_dict() for status in self.jobs],
                "others": dict(self.others),
                "queue_error": self.queue_error or None,
            }
        )


def grid_status(grid_dir: GridDir) -> GridStatus:
    """The status of every job in the plan of a grid folder.

    Raises:
        UserError: the folder holds no plan.
    """
    plan, queue_error = grid_dir.read_plan(), ""
    entries: Mapping[str, QueueEntry] = {}
    try:
        entries = slurm_queue.queue_entries(
            grid_dir
        )  # before the folders: a job that ends meanwhile is then done
    except OperationalError as error:
        queue_error = str(error)
    may_start_jobs = grid_dir.is_locked or bool(queue_error)  # if the queue is not known, Slurm may
    statuses = job_statuses(plan, grid_dir, entries, is_submitter_active=may_start_jobs)
    others = dict.fromkeys(grid_dir.other_runs(plan), "")
    others |= {job_id: entry.slurm_id for job_id, entry in entries.items() if job_id not in statuses}
    logs = f"{grid_dir.path}/logs/JOB.err"
    return GridStatus(grid_dir.path, tuple(statuses.values()), logs, others, queue_error)


def job_statuses(
    plan: Plan, grid_dir: GridDir, entries: Mapping[str, QueueEntry], *, is_submitter_active: bool
) -> dict[str, JobStatus]:
    """The status of every job of a plan, by job id.

    Args:
        entries: the jobs in Slurm's queue, by job id.
        is_submitter_active: whether another process may still start jobs.
    """
    submitted = slurm_queue.submitted_ids(grid_dir)
    found: dict[str, JobStatus] = {}
    for job in plan.jobs:  # each comes after the jobs that it needs
        run, entry = run_status(grid_dir.run(job).path), entries.get(job.id)
        state = job_state(
            run.state,
            (entry.state, entry.reason) if entry else None,
            needed=[found[name].state for name in job.needs],
            is_run=job.is_run,
            runs_after_failures=job.runs_after_failures,
            was_submitted=job.id in submitted,
            is_submitter_active=is_submitter_active,
        )
        log = grid_dir.log_file(job, "err")
        if state is JobState.LOST:
            log = grid_dir.submitit_dir / f"{submitted[job.id]}_0_log.err"
        found[job.id] = JobStatus(job, state, run, log, entry)
    return found
