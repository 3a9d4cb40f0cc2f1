"""What submitit runs, once per task on Slurm and in the local executor: a job's process, and the reaction to signals.

The program runs in a child process, for two reasons. submitit calls `checkpoint()` from a signal handler and on rank
0 only, where a collective save would hang. And the programs of metapt react to a signal by setting a flag, saving on
all ranks at the next step boundary, and exiting with 75. So this process only forwards the signal. When the program
has exited with 75 and the job is to be resumed, rank 0 calls submitit's own handler, which requeues the job. The same
command then resumes from the newest checkpoint in the run folder.

A program that receives a signal before it has installed its handler dies of TERM; nothing is lost, and this counts as
interrupted too.

A job that ends because a node has failed (metapt.node_failures) is requeued without that node.

A job is requeued after USR2 (time limit or preemption). TERM is ambiguous. After scancel it means the end of the job;
at a site that sends no USR2 at preemption (Slurm's default) it means what USR2 would mean; and it always comes at the
time limit. So squeue is asked. After `scontrol requeue` and after a node failure Slurm requeues the job by itself.
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
from metapt.launch.grid_dir import GridDir
from metapt.launch.jobs import Job
from metapt.launch.process import GRACE_SECONDS, JobProcess
from metapt.launch.requeues import check_requeue_limit, nodes_to_avoid
from metapt.leases import wait_until_free
from metapt.node_failures import MAX_POLL_SECONDS, recorded
from metapt.runs import Run
from metapt.slurm_commands import call, exclude_nodes

RECORD_SECONDS = 3 * MAX_POLL_SECONDS  # time that other ranks have to record the failure of a node
REQUEUE_SECONDS = 90  # time that the other ranks give rank 0 to requeue the job
UNLIMITED_TIMEOUTS = 1_000_000  # for submitit, whose own limit ignores progress


class JobFailed(Exception):
    """The process of a job has exited with another code than 0."""


@dataclass(frozen=True)
class SlurmTask:
    """One task of a job. It raises JobFailed unless the job is done, so that no job that needs this one starts."""

    root: Path  # the grid folder
    job: Job
    threads: int
    max_requeues: int  # in a row, without a new checkpoint
    input_timeout_s: int = 0  # longest wait for inputs to be visible on this node
    restarts: int = 0  # by submitit's local executor; Slurm has its own count

    def __call__(self) -> None:
        environment = submitit.JobEnvironment()
        rank, grid_dir = environment.global_rank, GridDir(self.root)
        start = self.restarts
        if environment.cluster == "slurm":
            start = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        run = grid_dir.run(self.job)
        check_requeue_limit(run, environment.job_id, start, self.max_requeues, is_lead=rank == 0)
        if rank == 0:
            # the previous start may still be saving after its launcher was killed, or run on a node that Slurm took for dead
            wait_until_free(run.lock_file, GRACE_SECONDS)
        if environment.num_tasks > 1:
            # every process sees all GPUs of its node and uses the one of its LOCAL_RANK
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        with _errors_recorded(run, is_lead=rank == 0):
            require_own_code()
            grid_dir.wait_for_inputs(self.job, self.input_timeout_s)
        requeue: Any = signal.getsignal(signal.SIGUSR2)  # submitit's handler
        process = JobProcess(grid_dir, self.job, self.threads, rank)
        signal.signal(signal.SIGUSR2, lambda *_: process.warn())
        signal.signal(signal.SIGTERM, lambda *_: process.stop())
        code = process.wait()
        was_asked = process.warned or process.stopped
        nodes = self._nodes_to_avoid(run, environment, start) if code and not was_asked else None
        if nodes is not None or (
            code in (EXIT_INTERRUPTED, -signal.SIGTERM) and _should_requeue(process, environment)
        ):
            with _excluding(environment, nodes or []):
                requeue(signal.SIGUSR2)  # does not return on rank 0
            time.sleep(REQUEUE_SECONDS)
        if code:
            raise JobFailed(f"{self.job.id}: exit code {code} on rank {rank}")

    def _nodes_to_avoid(self, run: Run, environment: submitit.JobEnvironment, start: int) -> list[str] | None:
        """As `requeues.nodes_to_avoid`, after waiting for what the other ranks record."""
        if environment.cluster != "slurm":
            return None
        slurm_id, is_lead = os.environ["SLURM_JOB_ID"], environment.global_rank == 0
        deadline = time.monotonic() + (RECORD_SECONDS if environment.num_tasks > 1 else 0)
        while True:
            found = [failure for failure in recorded(run, slurm_id) if failure.start == start]
            has_cause = (
                any(failure.queries is None for failure in found) or len(found) == environment.num_tasks
            )
            if has_cause or time.monotonic() >= deadline:
                break
            time.sleep(1)
        nodes = nodes_to_avoid(run, slurm_id, start, is_lead)
        if nodes is not None and is_lead:
            run.error_file.unlink(missing_ok=True)  # of a rank that lost the connection to the failed one
        return nodes

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit requeues: the same task, since all progress is in the run folder."""
        return submitit.helpers.DelayedSubmission(replace(self, restarts=self.restarts + 1))


@contextmanager
def _errors_recorded(run: Run, is_lead: bool) -> Iterator[None]:
    """Writes an exception of the block to error.txt of the run: no JobProcess exists yet that would."""
    try:
        yield
    except Exception as error:
        if is_lead:
            write_atomically(run.error_file, f"{type(error).__name__}: {error}\n")
        raise


@contextmanager
def _excluding(environment: submitit.JobEnvironment, nodes: list[str]) -> Iterator[None]:
    """Keeps the job off nodes after the block has requeued it: Slurm changes this for pending jobs only."""
    try:
        yield
    finally:
        if nodes and environment.global_rank == 0:
            exclude_nodes(environment.job_id, nodes)


def _should_requeue(process: JobProcess, environment: submitit.JobEnvironment) -> bool:
    """Whether a job whose process was interrupted is to be requeued."""
    if not process.stopped:
        return process.warned
    if environment.cluster != "slurm":
        return False
    command = ["squeue", "--noheader", f"--jobs={environment.job_id}", "--format=%T|%r"]
    try:
        answer = call(command)
    except subprocess.CalledProcessError:
        return False
    state, _, reason = answer.strip().partition("|")
    return state == "RUNNING" or reason == "TimeLimit"  # preempted, or saved after the time limit
