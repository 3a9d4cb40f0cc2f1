"""What Slurm knows of a grid. ROOT/jobs.jsonl records the Slurm job id of each job, and squeue shows which of them are
pending or running. sacct, which many clusters lack, is not used.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from metapt.errors import OperationalError
from metapt.files import read_jsonl
from metapt.launch.grid_dir import GridDir
from metapt.launch.job_state import JobState, queue_state
from metapt.launch.jobs import Job

COMMAND_SECONDS = 60  # the longest wait for a command of Slurm


@dataclass(frozen=True)
class QueueEntry:
    """A job in the output of squeue."""

    slurm_id: str
    state: str  # PENDING, RUNNING, COMPLETING, ...
    reason: str  # why it is pending: Dependency, Priority, Resources, ...

    @property
    def job_state(self) -> JobState:
        """Queued, blocked, running or ending."""
        return queue_state(self.state, self.reason)

    @property
    def is_ending(self) -> bool:
        return self.job_state is JobState.ENDING

    @property
    def is_pending(self) -> bool:
        """Whether it has not started, and may never start."""
        return self.job_state in (JobState.QUEUED, JobState.BLOCKED)


def queue_entries(grid_dir: GridDir) -> dict[str, QueueEntry]:
    """The jobs of a grid that are in Slurm's queue (pending, running or completing), by job id.

    Raises:
        OperationalError: jobs have been submitted, and squeue does not answer.
    """
    slurm_ids = submitted_ids(grid_dir)
    found = {entry.slurm_id: entry for entry, _ in _squeue(grid_dir)} if slurm_ids else {}
    return {job_id: found[slurm_id] for job_id, slurm_id in slurm_ids.items() if slurm_id in found}


def submitted_ids(grid_dir: GridDir) -> dict[str, str]:
    """The Slurm job id under which each job was last submitted, by job id."""
    return {line["job"]: line["slurm_id"] for line in read_jsonl(grid_dir.submitted_file)}


def record_submissions(grid_dir: GridDir, submitted: Sequence[tuple[Job, str]]) -> None:
    """Appends (job, Slurm job id) pairs to jobs.jsonl."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    records = ({"job": job.id, "slurm_id": slurm_id, "submitted": now} for job, slurm_id in submitted)
    with grid_dir.submitted_file.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))


def job_comment(grid_dir: GridDir) -> str:
    """The comment that every job of a grid has in Slurm."""
    return f"metapt {grid_dir.path.absolute()}"


def unrecorded_ids(grid_dir: GridDir) -> set[str]:
    """Jobs of this grid in the queue that jobs.jsonl does not have, by Slurm job id. Only the lock's holder may ask.

    A killed submitter leaves such jobs, and so does an sbatch that reports an error although the controller has
    accepted the job, as it does when the controller answers late.
    """
    recorded = {line["slurm_id"] for line in read_jsonl(grid_dir.submitted_file)}
    comment = job_comment(grid_dir)
    return {entry.slurm_id for entry, found in _squeue(grid_dir) if found == comment} - recorded


def cancel(slurm_ids: Collection[str]) -> None:
    """Cancels jobs. Pending ones leave the queue; running ones are stopped, and save.

    Raises:
        OperationalError: scancel fails; the message has the Slurm job ids.
    """
    if not slurm_ids:
        return
    command = ["scancel", *sorted(slurm_ids)]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=COMMAND_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise OperationalError(f"failed: {' '.join(command)}: {_error_text(error)}") from None


def _squeue(grid_dir: GridDir) -> list[tuple[QueueEntry, str]]:
    """All jobs of this user, each with its comment."""
    command = ["squeue", f"--user={os.getuid()}", "--noheader", "--array", "--format=%i|%T|%r|%k"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=COMMAND_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise OperationalError(
            f"{grid_dir.submitted_file}: squeue gives no information on these jobs: {_error_text(error)}"
        ) from None
    found = []
    for line in done.stdout.splitlines():
        if line.count("|") >= 2:
            slurm_id, state, reason, *comment = line.strip().split("|", 3)
            found.append((QueueEntry(slurm_id, state, reason), "".join(comment)))
    return found


def _error_text(error: Exception) -> str:
    return (getattr(error, "stderr", None) or str(error)).strip()
