"""What Slurm knows of a grid. ROOT/jobs.jsonl records the Slurm job id of each job, and squeue shows which of them are
pending or running. sacct, which many clusters lack, is not used.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

from metapt.errors import OperationalError
from metapt.files import parsed_object, write_atomically
from metapt.launch.grid_dir import GridDir
from metapt.launch.job_state import JobState, queue_state
from metapt.launch.jobs import Job
from metapt.runs import Run
from metapt.slurm_commands import SETTING_SECONDS, call, cluster_name, user_name


@dataclass(frozen=True)
class QueueEntry:
    """A job in the output of squeue."""

    slurm_id: str
    state: str  # PENDING, RUNNING, COMPLETING, ...; REQUEUED if Slurm will start it again after its end
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


@dataclass(frozen=True)
class Submission:
    """A line of jobs.jsonl: under which Slurm job id a job was last submitted, by whom, and on which cluster."""

    job: str
    slurm_id: str
    user: str
    cluster: str

    @property
    def by(self) -> str:
        """The user and, if it is known, the cluster."""
        return f"{self.user} on {self.cluster}" if self.cluster else self.user

    def is_on(self, cluster: str) -> bool:
        """Whether this is its cluster, or one of the two is not known (empty)."""
        return self.cluster == cluster or not (self.cluster and cluster)


@dataclass(frozen=True)
class Queue:
    """The jobs of a grid in Slurm's queue (pending, running or completing).

    Attributes:
        entries: the last submission of each job, by job id.
        unrecorded: the Slurm job ids of this user's jobs that jobs.jsonl does not have. A killed submitter leaves such
            jobs, and so does an sbatch that reports an error although the controller has accepted the job, as it does
            when the controller answers late. Without the lock of the grid they may be those of a submission in progress.
    """

    entries: dict[str, QueueEntry]
    unrecorded: frozenset[str]


def read_queue(grid_dir: GridDir) -> Queue:
    """What is in Slurm's queue. Jobs of other users are asked for by their ids, and their results are looked for first.

    Raises:
        OperationalError: jobs have been submitted, and squeue does not answer.
    """
    recorded = _records(grid_dir)
    if not recorded and not shutil.which("squeue"):
        return Queue({}, frozenset())
    try:
        own = _squeue(grid_dir, [f"--user={os.getuid()}"])
    except OperationalError:
        if recorded:
            raise
        return Queue({}, frozenset())  # nothing was submitted, so nothing is missing
    last = {record.job: record for record in recorded}
    user, here = user_name(), this_cluster(recorded)
    others = [
        record.slurm_id.partition("_")[0]
        for record in last.values()
        if record.user != user
        and record.is_on(here)
        and not Run(grid_dir.path / record.job).result_file.exists()
    ]
    listed = [*own, *(_squeue(grid_dir, [f"--jobs={','.join(dict.fromkeys(others))}"]) if others else [])]
    comments = {text for text in {text for _, text in listed} if _names(grid_dir, text)}
    found = {entry.slurm_id: (entry, text) for entry, text in listed}
    entries = {
        name: found[record.slurm_id][0]
        for name, record in last.items()
        if record.slurm_id in found and _is_of(record, here, found[record.slurm_id][1], comments)
    }
    unrecorded = {entry.slurm_id for entry, text in own if text in comments}
    known = {record.slurm_id for record in recorded if record.is_on(here)}
    return Queue(entries, frozenset(unrecorded - known))


def this_cluster(records: Collection[Submission]) -> str:
    """The name of the present cluster; empty if it is not known, or if no record names one to compare it with."""
    return cluster_name() if any(record.cluster for record in records) else ""


def queue_entries(grid_dir: GridDir) -> dict[str, QueueEntry]:
    """The jobs of a grid that are in Slurm's queue, by job id. Raises as `read_queue`."""
    return read_queue(grid_dir).entries


def submissions(grid_dir: GridDir) -> dict[str, Submission]:
    """The last submission of each job, by job id."""
    return {record.job: record for record in _records(grid_dir)}


def record_submissions(grid_dir: GridDir, submitted: Sequence[tuple[Job, str]]) -> None:
    """Adds (job, Slurm job id) pairs to jobs.jsonl. A full disk leaves the file as it was.

    Raises:
        OperationalError: the file cannot be written.
    """
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    user, cluster = user_name(), cluster_name()
    lines = [
        json.dumps(asdict(Submission(job.id, slurm_id, user, cluster)) | {"submitted": now})
        for job, slurm_id in submitted
    ]
    file = grid_dir.submitted_file
    try:
        write_atomically(file, "".join(f"{line}\n" for line in [*_intact_lines(file), *lines]))
    except OSError as error:
        raise OperationalError(f"{file}: cannot be written ({error.strerror or error})") from None


def _records(grid_dir: GridDir) -> list[Submission]:
    names = [item.name for item in fields(Submission)]
    records = (json.loads(line) for line in _intact_lines(grid_dir.submitted_file))
    return [Submission(**{name: record[name] for name in names}) for record in records]


def _intact_lines(file: Path) -> list[str]:
    """The lines that record a submission. The others, such as one that a full disk has cut off, are named on stderr."""
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    names = {item.name for item in fields(Submission)}
    intact = []
    for number, line in enumerate(lines, start=1):
        if names <= (parsed_object(line) or {}).keys():
            intact.append(line.decode())
        else:
            print(f"{file}:{number}: damaged line, left out: {str(line[:60])[1:]}", file=sys.stderr)
    return intact


def exit_code(slurm_id: str) -> str:
    """` (exit code N)` or ` (signal N)` of a job that has ended, as long as Slurm remembers it (minutes), or nothing."""
    try:
        answer = call(["scontrol", "show", "job", "--oneliner", slurm_id], timeout=SETTING_SECONDS)
    except (OSError, subprocess.SubprocessError):
        answer = ""
    found = re.search(r"\bExitCode=(\d+):(\d+)", answer)
    if not found:
        return ""
    return f" (signal {found[2]})" if found[2] != "0" else f" (exit code {found[1]})"


def job_comment(grid_dir: GridDir) -> str:
    """The comment that every job of a grid has in Slurm."""
    return f"metapt {grid_dir.path.absolute()}"


def _names(grid_dir: GridDir, comment: str) -> bool:
    """Whether the comment of a job names a grid, by any path of its folder."""
    program, _, path = comment.partition(" ")
    return program == "metapt" and Path(path).resolve() == grid_dir.path.resolve()


def _is_of(record: Submission, here: str, comment: str, comments: Collection[str]) -> bool:
    """Whether a job of the present cluster with the recorded id is the recorded job.

    Its comment names the grid (`comments`). Some sites replace comments: then an id is enough on the cluster that was recorded.
    """
    if comment in comments:
        return record.is_on(here)
    return bool(here) and record.cluster == here and not comment.startswith("metapt ")


def cancel(slurm_ids: Collection[str]) -> None:
    """Cancels jobs. Pending ones leave the queue; running ones are stopped, and save.

    Raises:
        OperationalError: scancel fails; the message has the Slurm job ids.
    """
    if not slurm_ids:
        return
    command = ["scancel", *sorted(slurm_ids)]
    try:
        call(command)
    except (OSError, subprocess.SubprocessError) as error:
        raise OperationalError(f"failed: {' '.join(command)}: {_error_text(error)}") from None


def _squeue(grid_dir: GridDir, selection: Sequence[str]) -> list[tuple[QueueEntry, str]]:
    """The jobs that squeue lists for a selection, each with its comment."""
    command = ["squeue", *selection, "--noheader", "--array", "--format=%i|%T %M %S %e|%r|%k"]
    try:
        lines = call(command).splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        if "Invalid job id" in _error_text(error):  # of the only id in --jobs: the job has left the queue
            return []
        raise OperationalError(
            f"{grid_dir.submitted_file}: squeue gives no information on these jobs: {_error_text(error)}"
        ) from None
    found = []
    for line in lines:
        if line.count("|") >= 2:
            slurm_id, state, reason, *comment = line.strip().split("|", 3)
            found.append((QueueEntry(slurm_id, _squeue_state(state), reason), "".join(comment)))
    return found


def _squeue_state(text: str) -> str:
    """The state of a job from squeue's state, time used, start and end.

    While its last process ends, a requeued job is COMPLETING, as a job is that has ended. But as for a pending job, Slurm
    reports no time used, and an expected end instead of a past one.
    """
    state, *times = text.split()
    match state, times:
        case "COMPLETING", ["0:00", start, end] if start != end or end == "N/A":
            return "REQUEUED"
    return state


def _error_text(error: Exception) -> str:
    return (getattr(error, "stderr", None) or str(error)).strip()
