"""What Slurm has of a grid: which job got which number stands in ROOT/jobs.jsonl, and squeue says whether it is still
queued or running. sacct, which many clusters lack, is not asked.
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
from metapt.launch.grid_dir import Root
from metapt.launch.jobs import Job

NOT_BEGUN = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")  # of squeue's states


@dataclass(frozen=True)
class Entry:
    """What squeue says of a job."""

    number: str
    state: str  # PENDING, RUNNING, COMPLETING, ...
    reason: str  # why it waits: Dependency, Priority, Resources, ...

    @property
    def waits(self) -> bool:
        return self.state in NOT_BEGUN

    @property
    def is_hopeless(self) -> bool:
        """Whether it waits for what will never come, at a site that leaves such jobs in the queue."""
        return self.waits and self.reason == "DependencyNeverSatisfied"


def entries(root: Root) -> dict[str, Entry]:
    """The jobs of a grid that are queued or running now, by job id.

    Raises:
        OperationalError: jobs were handed to Slurm and squeue does not say what became of them.
    """
    numbers = recorded(root)
    present = {entry.number: entry for entry, _ in _squeue(root)} if numbers else {}
    return {name: present[number] for name, number in numbers.items() if number in present}


def recorded(root: Root) -> dict[str, str]:
    """The number under which each job was handed to Slurm last, by job id."""
    return {line["job"]: line["slurm_id"] for line in read_jsonl(root.submitted_file)}


def record(root: Root, submitted: Sequence[tuple[Job, str]]) -> None:
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    lines = [
        json.dumps({"job": job.id, "slurm_id": number, "submitted": now}) + "\n" for job, number in submitted
    ]
    with root.submitted_file.open("a", encoding="utf-8") as file:
        file.write("".join(lines))


def mark(root: Root) -> str:
    """The comment that every job of a grid has in Slurm."""
    return f"metapt {root.path.absolute()}"


def strays(root: Root) -> set[str]:
    """Numbers of this grid in the queue that are not recorded: of a submitter that was killed, or that sbatch took
    although it told an error, as it does when the controller is slow to answer. For the holder of the root.
    """
    known = {line["slurm_id"] for line in read_jsonl(root.submitted_file)}
    marked = {entry.number for entry, comment in _squeue(root) if comment == mark(root)}
    return marked - known


def cancel(numbers: Collection[str]) -> None:
    """Takes jobs from the queue; those that run are stopped, and save.

    Raises:
        OperationalError: scancel fails; the message has the numbers.
    """
    if not numbers:
        return
    command = ["scancel", *sorted(numbers)]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise OperationalError(f"failed: {' '.join(command)}: {_reason(error)}") from None


def _squeue(root: Root) -> list[tuple[Entry, str]]:
    """All jobs of this user, each with its comment."""
    command = ["squeue", f"--user={os.getuid()}", "--noheader", "--array", "--format=%i|%T|%r|%k"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise OperationalError(
            f"{root.submitted_file}: cannot ask squeue about these jobs: {_reason(error)}"
        ) from None
    found = []
    for line in answer.splitlines():
        if line.count("|") >= 2:
            number, state, reason, *comment = line.strip().split("|", 3)
            found.append((Entry(number, state, reason), "".join(comment)))
    return found


def _reason(error: Exception) -> str:
    return (getattr(error, "stderr", None) or str(error)).strip()
