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

from metapt import slurm_commands
from metapt.errors import OperationalError
from metapt.launch import slurm_queue
from metapt.launch.grid_dir import GridDir
from metapt.launch.job_state import JobState, job_state
from metapt.launch.jobs import Job, Plan
from metapt.launch.run_status import ERROR_BYTES, RunStatus, run_status, tail
from metapt.launch.slurm_queue import QueueEntry, Submission


@dataclass(frozen=True)
class JobStatus:
    """The status of one job: its state, what its folder says, and its entry in Slurm's queue."""

    job: Job
    state: JobState
    run: RunStatus
    log: Path  # of its standard error; exists once it has started
    entry: QueueEntry | None = None
    submitted_by: str = ""  # of a job in state unknown: the user, and the cluster
    runs_elsewhere: bool = False  # in a process of another user or cluster, or in one without Slurm
    damage: str = ""  # why its folder cannot be read, if a submitter has found it so (metapt.launch.due_jobs)

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
            "submitted_by": self.submitted_by or None,
            "slurm": asdict(self.entry) if self.entry else None,
        }


@dataclass(frozen=True)
class GridStatus:
    """The status of all jobs of the present plan, in its order.

    `others` are runs in the grid folder that the plan does not have, such as superseded ones, and jobs of earlier plans
    that are still in Slurm's queue: job id to Slurm job id, or to "" if it is not in the queue. `unrecorded` are the Slurm
    job ids of jobs that a killed submitter has left in the queue.
    """

    root: Path
    jobs: tuple[JobStatus, ...]
    logs: str  # pattern of the logs' names
    others: Mapping[str, str]
    queue_error: str = ""  # why squeue gave no information
    unrecorded: tuple[str, ...] = ()

    @property
    def is_finished(self) -> bool:
        return all(status.state is JobState.DONE for status in self.jobs)

    def to_json(self) -> str:
        """One line: {root, jobs: [...], others: {job id: Slurm job id}, unrecorded: [Slurm job id], queue_error}."""
        return json.dumps(
            {
                "root": str(self.root),
                "jobs": [status.to_dict() for status in self.jobs],
                "others": dict(self.others),
                "unrecorded": list(self.unrecorded),
                "queue_error": self.queue_error or None,
            }
        )


def grid_status(grid_dir: GridDir) -> GridStatus:
    """The status of every job in the plan of a grid folder.

    Raises:
        UserError: the folder holds no plan.
    """
    plan, queue_error = grid_dir.read_plan(), ""
    queue = slurm_queue.Queue({}, frozenset())
    is_locked = grid_dir.is_locked
    try:
        queue = slurm_queue.read_queue(grid_dir)  # before the folders: a job that ends meanwhile is then done
    except OperationalError as error:
        queue_error = str(error)
    entries = queue.entries
    unrecorded = (
        () if is_locked else tuple(sorted(queue.unrecorded))
    )  # a submitter records its jobs at the end
    may_start_jobs = is_locked or bool(queue_error)  # if the queue is not known, Slurm may
    statuses = job_statuses(plan, grid_dir, entries, is_submitter_active=may_start_jobs)
    others = dict.fromkeys(grid_dir.other_runs(plan), "")
    others |= {job_id: entry.slurm_id for job_id, entry in entries.items() if job_id not in statuses}
    logs = f"{grid_dir.path}/logs/JOB.err"
    return GridStatus(grid_dir.path, tuple(statuses.values()), logs, others, queue_error, unrecorded)


def job_statuses(
    plan: Plan, grid_dir: GridDir, entries: Mapping[str, QueueEntry], *, is_submitter_active: bool
) -> dict[str, JobStatus]:
    """The status of every job of a plan, by job id.

    Args:
        entries: the jobs in Slurm's queue, by job id.
        is_submitter_active: whether another process may still start jobs.
    """
    submitted = slurm_queue.submissions(grid_dir)
    foreign = _submitted_elsewhere(submitted)
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
            is_foreign=job.id in foreign,
            is_submitter_active=is_submitter_active,
        )
        log, by = grid_dir.log_file(job, "err"), foreign.get(job.id, "") if state is JobState.UNKNOWN else ""
        if state is JobState.LOST:
            log = grid_dir.submitit_dir / f"{submitted[job.id].slurm_id}_0_log.err"
            if log.exists():
                state, run = JobState.FAILED, RunStatus(JobState.FAILED, error=_batch_error(log))
        is_own = job.id in submitted and job.id not in foreign
        runs_elsewhere = state is JobState.RUNNING and entry is None and not is_own
        found[job.id] = JobStatus(job, state, run, log, entry, by, runs_elsewhere)
    return found


def _submitted_elsewhere(submitted: Mapping[str, Submission]) -> dict[str, str]:
    """Who submitted the jobs of another user or another cluster, by job id."""
    user = slurm_commands.user_name()
    here = slurm_queue.this_cluster(submitted.values())
    return {
        name: record.by for name, record in submitted.items() if record.user != user or not record.is_on(here)
    }


def _batch_error(log: Path) -> str:
    """Why a job failed before its program started, for example in a line of cluster.setup."""
    slurm_id = log.name.removesuffix("_0_log.err")
    return (
        tail(log, ERROR_BYTES).strip() or f"ended before its program started{slurm_queue.exit_code(slurm_id)}"
    )
