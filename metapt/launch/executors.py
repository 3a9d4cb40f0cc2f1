"""Execution of a plan on this machine: jobs start in dependency order, a limited number at once.

Two launchers start a job: `InlineLauncher` as a child of this process (fine-tuning runs as forks of children that have imported what
they need, metapt/launch/warm_process.py), and `LocalLauncher` through submitit's local executor, which adds the time limit and the restart after it. The run folders tell how a job ended.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

from metapt.config import ClusterConfig
from metapt.errors import Interrupted, UserError
from metapt.files import write_atomically
from metapt.launch.grid_dir import GridDir
from metapt.launch.interrupts import StopCount, counted_stops, ignored_ctrl_c
from metapt.launch.job_sources import JobSources
from metapt.launch.job_state import STOPPED, JobState, job_state
from metapt.launch.jobs import Job
from metapt.launch.process import JobProcess, default_threads, process_environment
from metapt.launch.resources import minutes_of
from metapt.launch.run_status import run_status
from metapt.launch.slurm_task import UNLIMITED_TIMEOUTS, SlurmTask
from metapt.launch.warm_process import ForkedProcess, WarmProcess

POLL_SECONDS = 0.2


class Handle(Protocol):
    """A job that was started."""

    def is_over(self) -> bool: ...

    def stop(self) -> None:
        """Asks the job to save and exit; may be called again."""


class Launcher(Protocol):
    def has_room(self, job: Job) -> bool:
        """Whether the job can start beside those that run."""

    def start(self, job: Job) -> Handle: ...

    def close(self) -> None:
        """Ends what the launcher has started beside jobs."""


class ProgressView(Protocol):
    """Shows the progress. It is called every `POLL_SECONDS` with the state of every job of the plan."""

    def update(self, states: Mapping[str, JobState]) -> None: ...


class _InlineHandle:
    def __init__(self, process: JobProcess):
        self._process = process

    def is_over(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        self._process.stop()


class InlineLauncher:
    """Starts jobs as children of this process."""

    def __init__(self, grid_dir: GridDir, code: JobSources, threads: int):
        self._grid_dir, self._code, self._threads = grid_dir, code, threads
        self._warm: list[WarmProcess] = []  # at most one for each job that runs at once

    def has_room(self, job: Job) -> bool:
        return True

    def start(self, job: Job) -> Handle:
        with self._code.of(job).active():
            return _InlineHandle(JobProcess(self._grid_dir, job, self._threads, start=self._start_warm))

    def _start_warm(self, job: Job, output_log: Path, error_log: Path) -> ForkedProcess | None:
        """Starts a fine-tuning run on CPUs in an idle warm process, if it runs the present source."""
        flag, *module = job.program
        is_fit = job.kind == "finetune" and not job.gpus_per_node and flag == "-m"
        if not is_fit or self._code.of(job) is not self._code.present:
            return None
        warm = next((warm for warm in self._warm if warm.is_idle), None)
        if warm is None:
            warm = WarmProcess(process_environment(os.environ, self._threads))
            self._warm.append(warm)
        return warm.start(module[0], job.argv, output_log, error_log)

    def close(self) -> None:
        for warm in self._warm:
            warm.close()


class _LocalHandle:
    def __init__(self, job: Any):
        self._job = job

    def is_over(self) -> bool:
        return self._job.done()

    def stop(self) -> None:
        if not self.is_over():
            # to submitit's controller, which forwards it to the task (metapt.launch.slurm_task)
            os.kill(int(self._job.job_id), signal.SIGTERM)


class LocalLauncher:
    """Starts jobs through submitit's local executor, each with GPUs of its own.

    Args:
        gpus: those that jobs may use, as CUDA_VISIBLE_DEVICES has them.
    """

    def __init__(
        self, grid_dir: GridDir, code: JobSources, cluster: ClusterConfig, threads: int, gpus: Collection[int]
    ):
        import submitit

        self._grid_dir, self._code, self._threads = grid_dir, code, threads
        self._executor = submitit.LocalExecutor(grid_dir.submitit_dir, max_num_timeout=UNLIMITED_TIMEOUTS)
        self._cluster = cluster
        self._max_requeues = cluster.max_requeues_without_progress
        self._gpus = list(gpus)
        self._in_use: list[tuple[Handle, list[int]]] = []

    def has_room(self, job: Job) -> bool:
        return len(self._free_gpus()) >= job.gpus_per_node

    def _free_gpus(self) -> list[int]:
        self._in_use = [(handle, gpus) for handle, gpus in self._in_use if not handle.is_over()]
        taken = {gpu for _, gpus in self._in_use for gpu in gpus}
        return [gpu for gpu in self._gpus if gpu not in taken]

    def start(self, job: Job) -> Handle:
        gpus = self._free_gpus()[: job.gpus_per_node]
        self._executor.update_parameters(
            timeout_min=minutes_of(job, self._cluster),
            signal_delay_s=self._cluster.signal_delay_s,
            tasks_per_node=job.tasks_per_node,
            gpus_per_node=job.gpus_per_node,
            visible_gpus=tuple(gpus),
        )
        task = SlurmTask(self._grid_dir.path, job, self._threads, self._max_requeues)
        with ignored_ctrl_c(), self._code.of(job).active():
            handle = _LocalHandle(self._executor.submit(task))
        self._in_use.append((handle, gpus))
        return handle

    def close(self) -> None:
        pass


def launcher(grid_dir: GridDir, code: JobSources, cluster: ClusterConfig) -> Launcher:
    """The launcher for `cluster=inline` or `cluster=local`.

    Raises:
        UserError: jobs with cluster=local need more GPUs than there are.
    """
    threads = cluster.threads or default_threads(cluster.max_parallel)
    if cluster.name == "inline":
        return InlineLauncher(grid_dir, code, threads)
    gpus = _visible_gpus() if cluster.gpus_per_node else []
    if cluster.gpus_per_node > len(gpus):
        raise UserError(
            f"cluster.gpus_per_node={cluster.gpus_per_node}: jobs can use {len(gpus)} GPU(s) of this machine. With "
            "cluster=local CUDA_VISIBLE_DEVICES has to list numbers, if it is set"
        )
    return LocalLauncher(grid_dir, code, cluster, threads, gpus)


def _visible_gpus() -> list[int]:
    """The GPUs that the user lets jobs use, as CUDA_VISIBLE_DEVICES has them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [int(item) for item in takewhile(str.isdecimal, map(str.strip, named.split(",")))]
    import torch  # here: it is slow, and most grids on one machine run on CPUs

    return list(range(torch.cuda.device_count()))


class Schedule:
    """The state of every job of a plan while it runs on this machine.

    Args:
        todo: the jobs to run.
        others: the states of the other jobs of the plan, which do not change.
    """

    def __init__(
        self,
        todo: Collection[Job],
        others: Mapping[str, JobState],
        grid_dir: GridDir,
        launcher: Launcher,
        max_parallel: int,
    ):
        self.states = {**others, **{job.id: JobState.WAITING for job in todo}}
        self._todo = list(todo)
        self._grid_dir = grid_dir
        self._launcher = launcher
        self._max_parallel = max_parallel
        self._handles: dict[str, Handle] = {}

    def run(self, view: ProgressView) -> None:
        """Runs every job that can run.

        Raises:
            Interrupted: Ctrl-C or TERM; the jobs were asked to save, and have ended.
        """
        with counted_stops() as stops:
            while self.advance():
                view.update(self.states)
                if stops.value:
                    self._stop(stops)
                    raise Interrupted("stopped; the same command resumes")
                time.sleep(POLL_SECONDS)
        view.update(self.states)

    def advance(self) -> bool:
        """Records the jobs that have ended and starts those that can start. Returns whether any is left to wait for."""
        for job in self._todo:
            handle = self._handles.get(job.id)
            if handle and handle.is_over():
                del self._handles[job.id]
                self.states[job.id] = self._outcome(job)
        for job in self._todo:
            if len(self._handles) == self._max_parallel:
                break  # thousands of waiting jobs take 2 % of a core to look at
            if self.states[job.id] is JobState.WAITING:
                self._start_if_ready(job)
        return not {JobState.RUNNING, JobState.WAITING}.isdisjoint(self.states.values())

    def _start_if_ready(self, job: Job) -> None:
        needed = [self.states[name] for name in job.needs]
        state = job_state(JobState.WAITING, needed=needed, runs_after_failures=job.runs_after_failures)
        usable = (*STOPPED, JobState.UNKNOWN) if job.runs_after_failures else (JobState.DONE,)
        has_room = len(self._handles) < self._max_parallel and self._launcher.has_room(job)
        if state is JobState.BLOCKED:
            self.states[job.id] = state
        elif has_room and set(usable).issuperset(needed) and not self._is_held(job):
            self._handles[job.id] = self._launcher.start(job)
            self.states[job.id] = JobState.RUNNING

    def _is_held(self, job: Job) -> bool:
        """Whether a process left by a killed submitter still runs the job. If it has finished the run, that counts."""
        state = self._folder_state(job)
        if state is JobState.DONE and job.is_run:
            self.states[job.id] = state
            return True
        return state is JobState.RUNNING

    def _outcome(self, job: Job) -> JobState:
        """The state of a job whose process has ended."""
        state = self._folder_state(job)
        if state in (JobState.DONE, JobState.FAILED, JobState.INTERRUPTED):
            return state
        if state is JobState.WAITING and job.is_run:
            message = f"ended with no output on stderr; see {self._grid_dir.submitit_dir}\n"
            write_atomically(self._grid_dir.run(job).error_file, message)
            return JobState.FAILED
        return JobState.INTERRUPTED

    def _folder_state(self, job: Job) -> JobState:
        return run_status(self._grid_dir.run(job).path).state

    def _stop(self, stops: StopCount) -> None:
        """Asks the running jobs to save, and waits for them. After a second Ctrl-C they finish by themselves."""
        names, before = ", ".join(self._handles), stops.value
        if names:
            print(f"\nstopping {names}; saving may take a while, Ctrl-C again to stop waiting", flush=True)
        for handle in self._handles.values():
            handle.stop()
        while stops.value == before and not all(handle.is_over() for handle in self._handles.values()):
            time.sleep(POLL_SECONDS)
