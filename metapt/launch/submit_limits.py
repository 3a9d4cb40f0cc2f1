"""Sites that limit how many jobs a user may have submitted (MaxSubmitJobs): a grid is then submitted in parts.

The limit of the user's association is read where sacctmgr answers. Others, such as those of a QOS, are learned from
sbatch's refusal.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from metapt.errors import OperationalError
from metapt.launch.jobs import Job, Plan
from metapt.slurm_commands import call, user_name

REFUSAL = re.compile(r"(Max|Grp)SubmitJob")  # AssocMaxSubmitJobLimit, QOSMaxSubmitJobPerUserLimit, ...


class SubmitLimitReached(OperationalError):
    """sbatch refuses a job because of a limit on submitted jobs."""


@dataclass(frozen=True)
class Room:
    """How many jobs a user may have in the queue, and has; each task of an array counts."""

    limit: int
    in_queue: int

    @property
    def left(self) -> int:
        return max(0, self.limit - self.in_queue)

    def __str__(self) -> str:
        return f"MaxSubmitJobs is {self.limit}, of which {self.in_queue} are in the queue"


def room(account: str | None) -> Room | None:
    """How many more jobs this user may submit; None if there is no limit, or sacctmgr does not answer.

    Args:
        account: of the jobs; None: the smallest limit of all accounts of the user.
    """
    selection = [f"user={user_name()}", *([f"account={account}"] if account else [])]
    command = ["sacctmgr", "--noheader", "--parsable2", "show", "associations", *selection]
    limits = [int(line) for line in _lines([*command, "format=MaxSubmitJobs"]) if line.isdigit()]
    if not limits:
        return None
    queue = ["squeue", f"--user={os.getuid()}", "--noheader", "--array", "--format=%i"]
    return Room(min(limits), len(_lines(queue)))


def _lines(command: Sequence[str]) -> list[str]:
    """The lines that a command prints; none if it fails."""
    try:
        printed = call(command)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in printed.splitlines() if line.strip()]


def parts_of(plan: Plan, todo: Sequence[Job]) -> list[list[Job]]:
    """The jobs in parts that can be submitted one after the other, in the order of the plan.

    A part is closed under dependencies: a run of pretraining with all that need it, and with the preparation of its corpus
    if no earlier part has that. The report belongs to the last part.
    """
    due = {job.id: job for job in todo}
    parts: dict[str, list[Job]] = {}  # by the id of the first run
    part_of: dict[str, str] = {}
    last: list[Job] = []
    for job in plan.jobs:  # each comes after the jobs that it needs
        if job.id not in due:
            continue
        if job.runs_after_failures:
            last.append(due[job.id])
        elif job.is_run:
            needed = [part_of[name] for name in job.needs if name in part_of]
            first = needed[0] if needed else job.id
            part_of[job.id] = first
            prepares = [due.pop(name) for name in job.needs if name in due and not due[name].is_run]
            parts.setdefault(first, []).extend([*prepares, due[job.id]])
    ordered = list(parts.values())
    if last and ordered:
        ordered[-1].extend(last)
    return ordered or [last]
