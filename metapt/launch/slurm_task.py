"""What submitit runs, on Slurm once per task and locally: a job's process, and the answer to signals.

Training runs in a child, for two reasons. submitit calls `checkpoint()` from a signal handler and on rank 0 only,
where a collective save would hang; and the suite's programs answer a signal by a flag, save on all ranks at a step
boundary and exit with 75. So here a signal is only passed on. When the child has then ended with 75 and the job is
to go on, rank 0 hands over to submitit's own handler, which queues the job again; the same command then goes on from
the checkpoint, since the run folder decides.

A process that is told to end while it still starts dies of TERM, with nothing lost; that counts as interrupted too.

The job is to go on after USR2 (time limit or preemption). TERM is ambiguous: by scancel it means the end; by a site
that does not send USR2 at preemption (Slurm's default) it means what USR2 would; and at the time limit it comes in any
case. So Slurm is asked. After `scontrol requeue` and a failed node Slurm queues the job again by itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import submitit
from submitit.helpers import TorchDistributedEnvironment

from metapt.errors import EXIT_INTERRUPTED
from metapt.files import write_atomically
from metapt.launch.code_snapshot import require_own_code
from metapt.launch.grid_dir import Root
from metapt.launch.jobs import Job
from metapt.launch.process import GRACE_SECONDS, Child
from metapt.launch.requeues import refuse_fruitless_requeues
from metapt.launch.run_status import is_held
from metapt.runs import Run

REQUEUE_SECONDS = 90  # what the other ranks give rank 0 for queueing the job again
ANY_NUMBER_OF_TIMEOUTS = 1_000_000  # for submitit, which does not know what progress is


class JobFailed(Exception):
    """The job's process has ended otherwise than with 0."""


@dataclass(frozen=True)
class Task:
    """One task of a job. Raises JobFailed unless it is done, so that jobs that need this one are not started."""

    root: Path
    job: Job
    threads: int
    max_requeues: int  # in a row, without a new checkpoint
    patience_s: int = 0  # for inputs to be visible on this node
    restarts: int = 0  # by submitit; Slurm has its own count of all

    def __call__(self) -> None:
        environment = submitit.JobEnvironment()
        rank, root = environment.global_rank, Root(self.root)
        start = self.restarts
        if environment.cluster == "slurm":
            start = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        run = root.run(self.job)
        refuse_fruitless_requeues(run, environment.job_id, start, self.max_requeues, leads=rank == 0)
        if start and rank == 0:
            _wait_until_free(run.lock_file)
        if environment.num_tasks > 1:
            # every process sees all GPUs of its node and takes the one of its LOCAL_RANK
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        with _told(run, leads=rank == 0):
            require_own_code()
            root.wait_for_inputs(self.job, self.patience_s)
        queue_again: Any = signal.getsignal(signal.SIGUSR2)  # submitit's
        child = Child(root, self.job, self.threads, rank)
        signal.signal(signal.SIGUSR2, lambda *_: child.warn())
        signal.signal(signal.SIGTERM, lambda *_: child.stop())
        code = child.wait()
        if code in (EXIT_INTERRUPTED, -signal.SIGTERM) and _goes_on(child, environment):
            queue_again(signal.SIGUSR2)  # does not return on rank 0
            time.sleep(REQUEUE_SECONDS)
        if code:
            raise JobFailed(f"{self.job.id}: exit code {code} on rank {rank}")

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit queues again: the same task; everything else that changes is in the run folder."""
        return submitit.helpers.DelayedSubmission(replace(self, restarts=self.restarts + 1))


@contextmanager
def _told(run: Run, leads: bool) -> Iterator[None]:
    """What goes wrong within it stands in the run's error.txt: before there is a process, nobody else writes that."""
    try:
        yield
    except Exception as error:
        if leads:
            write_atomically(run.error_file, f"{type(error).__name__}: {error}\n")
        raise


def _goes_on(child: Child, environment: submitit.JobEnvironment) -> bool:
    """Whether a job whose process was interrupted is to be queued again."""
    if not child.stopped:
        return child.warned
    if environment.cluster != "slurm":
        return False
    command = ["squeue", "--noheader", f"--jobs={environment.job_id}", "--format=%T|%r"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    state, _, reason = answer.strip().partition("|")
    return state == "RUNNING" or reason == "TimeLimit"  # preempted, or saved after the limit


def _wait_until_free(lock_file: Path) -> None:
    """Gives the process of the last start, which a node that Slurm gave up may still have, time to end."""
    deadline = time.monotonic() + GRACE_SECONDS
    while is_held(lock_file) and time.monotonic() < deadline:
        time.sleep(1)
