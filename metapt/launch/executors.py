"""Running a plan on this machine: what is to be done, in dependency order, so many jobs at once.

Two launchers start a job: `InlineLauncher` as a child of this process, `LocalLauncher` through submitit's local
executor, which adds the time limit and the restart after it. The folders say how a job ended.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from metapt.config import ClusterConfig
from metapt.errors import Interrupted
from metapt.files import write_atomically
from metapt.launch.code_snapshot import Code
from metapt.launch.grid_dir import Root
from metapt.launch.jobs import Job, Plan
from metapt.launch.process import Child, default_threads
from metapt.launch.run_status import RunStatus, run_status
from metapt.launch.slurm_task import ANY_NUMBER_OF_TIMEOUTS, Task

POLL_SECONDS = 0.2


class Handle(Protocol):
    """A job that was started."""

    def is_over(self) -> bool: ...

    def stop(self) -> None:
        """Asks it to save and end; may be called again."""


class Launcher(Protocol):
    def start(self, job: Job) -> Handle: ...


class View(Protocol):
    """What shows the progress: called every `POLL_SECONDS` with the state of every job of the plan."""

    def update(self, states: Mapping[str, str]) -> None: ...


class _ChildHandle:
    def __init__(self, child: Child):
        self._child = child

    def is_over(self) -> bool:
        return self._child.poll() is not None

    def stop(self) -> None:
        self._child.stop()


class InlineLauncher:
    """Starts jobs as children of this process."""

    def __init__(self, root: Root, code: Code, threads: int):
        self._root, self._code, self._threads = root, code, threads

    def start(self, job: Job) -> Handle:
        with self._code.active():
            return _ChildHandle(Child(self._root, job, self._threads))


class _LocalHandle:
    def __init__(self, job: Any):
        self._job = job

    def is_over(self) -> bool:
        return self._job.done()

    def stop(self) -> None:
        if not self.is_over():
            # to submitit's controller, which passes it on to the task (metapt.launch.slurm_task)
            os.kill(int(self._job.job_id), signal.SIGTERM)


class LocalLauncher:
    """Starts jobs through submitit's local executor."""

    def __init__(self, root: Root, code: Code, cluster: ClusterConfig, threads: int):
        import submitit

        self._root, self._code, self._threads = root, code, threads
        self._executor = submitit.LocalExecutor(root.submitit_dir, max_num_timeout=ANY_NUMBER_OF_TIMEOUTS)
        self._limits = {"timeout_min": cluster.timeout_min, "signal_delay_s": cluster.signal_delay_s}
        self._setup = cluster.setup
        self._max_requeues = cluster.max_requeues_without_progress

    def start(self, job: Job) -> Handle:
        self._executor.update_parameters(
            **self._limits,
            tasks_per_node=job.tasks_per_node,
            gpus_per_node=job.gpus_per_node,
            setup=self._setup,
        )
        task = Task(self._root.path, job, self._threads, self._max_requeues)
        with _ignored_ctrl_c(), self._code.active():
            return _LocalHandle(self._executor.submit(task))


@contextmanager
def _ignored_ctrl_c() -> Iterator[None]:
    """Processes started in the block do not die of Ctrl-C in the terminal: this process decides how they end."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def launcher(root: Root, code: Code, cluster: ClusterConfig) -> Launcher:
    """What starts the jobs for `cluster=inline` and `cluster=local`."""
    threads = cluster.threads or default_threads(parallelism(cluster))
    if cluster.name == "inline":
        return InlineLauncher(root, code, threads)
    return LocalLauncher(root, code, cluster, threads)


def parallelism(cluster: ClusterConfig) -> int:
    """Jobs at once."""
    return 1 if cluster.name == "inline" else cluster.max_parallel


class Schedule:
    """The state of every job of a plan while it is run on this machine.

    States: waiting, running, done, failed, interrupted, and blocked (a job that it needs has failed).
    """

    def __init__(self, plan: Plan, todo: Collection[Job], root: Root, launcher: Launcher, max_parallel: int):
        self.states = {job.id: "done" for job in plan.jobs} | {job.id: "waiting" for job in todo}
        self._todo = list(todo)
        self._root = root
        self._launcher = launcher
        self._max_parallel = max_parallel
        self._handles: dict[str, Handle] = {}

    def run(self, view: View) -> None:
        """Runs every job that can be run.

        Raises:
            Interrupted: Ctrl-C (or TERM); the jobs were asked to save, and have ended.
        """
        try:
            with _term_as_ctrl_c():
                while self.advance():
                    view.update(self.states)
                    time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            self._stop(view)
            raise Interrupted("stopped; the same command goes on where this one ended") from None
        view.update(self.states)

    def advance(self) -> bool:
        """Notes what has ended, starts what can start; whether anything is left to wait for."""
        for job in self._todo:
            handle = self._handles.get(job.id)
            if handle and handle.is_over():
                del self._handles[job.id]
                self.states[job.id] = self._outcome(job)
        for job in self._todo:
            if self.states[job.id] == "waiting":
                self._consider(job)
        return "running" in self.states.values() or "waiting" in self.states.values()

    def _consider(self, job: Job) -> None:
        needed = [self.states[name] for name in job.needs]
        settled = all(state not in ("waiting", "running") for state in needed)
        if job.runs_after_failures:
            ready = settled and "done" in needed
            blocked = settled and "done" not in needed
        else:
            ready = all(state == "done" for state in needed)
            blocked = any(state in ("failed", "blocked", "interrupted") for state in needed)
        if blocked:
            self.states[job.id] = "blocked"
        elif ready and len(self._handles) < self._max_parallel and not self._is_at_work(job):
            self._handles[job.id] = self._launcher.start(job)
            self.states[job.id] = "running"

    def _is_at_work(self, job: Job) -> bool:
        """Whether a process that an earlier, killed submitter left behind holds the run; it may end well."""
        status = self.status(job)
        if status.state == "done" and job.is_run:
            self.states[job.id] = "done"
        return status.state in ("running", "done") and (job.is_run or status.state == "running")

    def _outcome(self, job: Job) -> str:
        run, state = self._root.run(job), self.status(job).state
        if state in ("done", "failed", "interrupted"):
            return state
        if state == "waiting" and job.is_run:
            write_atomically(run.error_file, f"ended without a word; see {self._root.submitit_dir}\n")
            return "failed"
        return "interrupted"

    def status(self, job: Job) -> RunStatus:
        return run_status(self._root.path / job.run_dir)

    def _stop(self, view: View) -> None:
        """Asks the running jobs to save, and waits; a second Ctrl-C leaves them to end by themselves."""
        names = ", ".join(self._handles)
        if names:
            print(f"\nstopping {names}: saving may take a while; Ctrl-C again leaves them to it", flush=True)
        for handle in self._handles.values():
            handle.stop()
        try:
            while not all(handle.is_over() for handle in self._handles.values()):
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            return


@contextmanager
def _term_as_ctrl_c() -> Iterator[None]:
    """TERM, and HUP of a closed terminal unless nohup holds it off, end the block as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    numbers = [
        number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN
    ]
    handlers = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
