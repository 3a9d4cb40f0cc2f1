"""What submitit runs, on Slurm once per task and locally: a job's process, and the answer to signals.

Training runs in a child, for two reasons. submitit calls `checkpoint()` from a signal handler and on rank 0 only,
where a collective save would hang; and the suite's programs answer a signal by a flag, save on all ranks at a step
boundary and exit with 75. So here a signal is only passed on. When the child has then ended with 75 after USR2
(time limit or preemption), rank 0 hands over to submitit's own handler, which queues the job again; the same
command then goes on from the checkpoint, since the run folder decides. After TERM (scancel, Ctrl-C) it is not.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.helpers import TorchDistributedEnvironment

from metapt.errors import EXIT_INTERRUPTED
from metapt.launch.child import Child
from metapt.launch.code import require_own_code
from metapt.launch.jobs import Job
from metapt.launch.root import Root

REQUEUE_SECONDS = 90  # what the other ranks give rank 0 for queueing the job again


class JobFailed(Exception):
    """The job's process has ended otherwise than with 0."""


@dataclass(frozen=True)
class Task:
    """One task of a job. Raises JobFailed unless it is done, so that jobs that need this one are not started."""

    root: Path
    job: Job
    threads: int
    patience_s: int = 0  # for inputs to be visible on this node

    def __call__(self) -> None:
        environment = submitit.JobEnvironment()
        if environment.num_tasks > 1:
            # every process sees all GPUs of its node and takes the one of its LOCAL_RANK
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        require_own_code()
        Root(self.root).wait_for_inputs(self.job, self.patience_s)
        queue_again: Any = signal.getsignal(signal.SIGUSR2)  # submitit's
        child = Child(Root(self.root), self.job, self.threads, environment.global_rank)
        signal.signal(signal.SIGUSR2, lambda *_: child.warn())
        signal.signal(signal.SIGTERM, lambda *_: child.stop())
        code = child.wait()
        if code == EXIT_INTERRUPTED and child.warned:
            queue_again(signal.SIGUSR2)  # does not return on rank 0
            time.sleep(REQUEUE_SECONDS)
        if code:
            raise JobFailed(f"{self.job.id}: exit code {code} on rank {os.environ.get('RANK', 0)}")

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit queues again: the same task; everything that changes is in the run folder."""
        return submitit.helpers.DelayedSubmission(self)
