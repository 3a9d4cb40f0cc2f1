"""The state of a job of a grid: one enum, and one function that decides it from what the caller has read.

Nothing here reads a file or asks Slurm, and nothing of metapt is imported.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

NOT_STARTED = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")  # states of squeue


class JobState(StrEnum):
    """The states of a job. A run folder alone can only be waiting, running, interrupted, failed or done."""

    WAITING = "waiting"  # not started; the jobs that it needs are not finished, or a submitter will start it
    QUEUED = "queued"  # pending in Slurm's queue
    RUNNING = "running"
    ENDING = "ending"  # Slurm is ending it, and it has no result yet: its last process may still be saving
    INTERRUPTED = "interrupted"  # started, not finished, and no process runs it
    DONE = "done"
    FAILED = "failed"
    BLOCKED = "blocked"  # a job that it needs has failed, is lost or blocked, or was interrupted
    LOST = "lost"  # it left Slurm's queue before it started
    UNKNOWN = "unknown"  # submitted by another user or on another cluster, whose queue cannot be seen


FINISHED = (JobState.DONE, JobState.FAILED, JobState.BLOCKED, JobState.LOST)
STOPPED = (*FINISHED, JobState.INTERRUPTED)
"""FINISHED: states that a job keeps unless it is submitted again. STOPPED: also interrupted ones, which may be requeued."""


def queue_state(state: str, reason: str) -> JobState:
    """The state of a job according to its entry in Slurm's queue.

    Args:
        state: of squeue: PENDING, RUNNING, COMPLETING, ...
        reason: why a pending job waits. DependencyNeverSatisfied is that of a job that will never start, at a site that
            keeps such jobs in the queue.
    """
    if state in NOT_STARTED:
        return JobState.BLOCKED if reason == "DependencyNeverSatisfied" else JobState.QUEUED
    return JobState.ENDING if state == "COMPLETING" else JobState.RUNNING


def job_state(
    folder: JobState,
    queue: tuple[str, str] | None = None,
    *,
    needed: Collection[JobState] = (),
    is_run: bool = True,
    runs_after_failures: bool = False,
    was_submitted: bool = False,
    is_foreign: bool = False,
    is_submitter_active: bool = False,
) -> JobState:
    """The state of a job.

    Args:
        folder: the state of its run folder.
        queue: state and reason of its entry in Slurm's queue; None if it is not there.
        needed: the states of the jobs that it needs.
        is_run: whether the job is a run. The result of any other job (a corpus, the report) is out of date as soon as
            the job is in the queue again.
        runs_after_failures: whether it needs only one of these jobs to be done, and the others to be finished.
        was_submitted: whether Slurm has had the job: an id is recorded for it.
        is_foreign: whether another user, or this one on another cluster, has submitted it. It may be in a queue that
            squeue does not show.
        is_submitter_active: whether a submitter holds the grid, which may still start the job.
    """
    if queue:
        queued = queue_state(*queue)
        if folder is JobState.DONE and (is_run or queued is JobState.ENDING):
            return JobState.DONE
        return queued
    if is_foreign and folder in (JobState.WAITING, JobState.INTERRUPTED):
        return JobState.UNKNOWN
    if folder is not JobState.WAITING:
        return folder
    stopped = FINISHED if is_submitter_active else STOPPED
    unusable = [state in stopped and state is not JobState.DONE for state in needed]
    if unusable and (all(unusable) if runs_after_failures else any(unusable)):
        return JobState.BLOCKED
    if was_submitted and not is_submitter_active and set(stopped).issuperset(needed):
        return JobState.LOST
    return JobState.WAITING
