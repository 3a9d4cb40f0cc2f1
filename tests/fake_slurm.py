"""Fakes of Slurm, the clock and a training program in one process: a job's life through time limits, preemption, node
failures and requeues, without any waiting. Only submitit's start of a job and metapt.launch are real.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import submitit.core.job_environment
import submitit.slurm.slurm
from launch_fakes import save_checkpoint
from submitit.core.submission import process_job
from submitit.core.utils import DelayedSubmission

from metapt import leases
from metapt.errors import EXIT_INTERRUPTED
from metapt.launch import process, slurm_task
from metapt.launch.grid_dir import GridDir
from metapt.launch.jobs import Job
from metapt.launch.slurm_task import UNLIMITED_TIMEOUTS, SlurmTask
from metapt.runs import Run

JOB = Job("pretrain/a", "pretrain", program=("-c", "pass"))
SLURM_ID = "77"
LIMIT, WARNING, KILL_WAIT = 720.0, 120.0, 30.0  # seconds


class Killed(BaseException):
    """The task received SIGKILL."""


class Clock:
    """Time that passes only in `sleep`, and events at given times."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, Callable[[], object]]] = []

    def at(self, seconds: float, event: Callable[[], object]) -> None:
        self._events.append((seconds, event))
        self._events.sort(key=lambda entry: entry[0])

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, seconds: float) -> None:
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, event = self._events.pop(0)
            event()
        self.now = end


@dataclass
class Program:
    """Like metapt.pretrain: updates of a fixed length, a checkpoint at a signal, result.json at the end."""

    run: Run
    clock: Clock
    is_lead: bool = True
    updates: int = 8
    update_seconds: float = 60.0
    saving_seconds: float = 5.0
    starting_seconds: float = 0.0  # until it handles signals: TERM kills it, USR2 is ignored (process.py)
    starts: list[float] = field(default_factory=list)
    signalled: float | None = None  # when the first signal came
    killed: bool = False
    terminated: bool = False

    def start(self, *args: object, **kwargs: object) -> Program:
        """Replaces subprocess.Popen."""
        self.starts.append(self.clock.now)
        self.signalled, self.killed, self.terminated = None, False, False
        self.run.start({"train": {"max_steps": self.updates}}, {})
        return self

    @property
    def saved(self) -> int:
        return max((step for step, _ in self.run.checkpoints()), default=0)

    def send_signal(self, number: int) -> None:
        if self.clock.now < self.starts[-1] + self.starting_seconds:
            self.terminated |= number == signal.SIGTERM
        elif self.signalled is None:
            self.signalled = self.clock.now

    def kill(self) -> None:
        self.killed = True

    def poll(self) -> int | None:
        if self.killed:
            return -signal.SIGKILL
        if self.terminated:
            return -signal.SIGTERM
        until = self.clock.now if self.signalled is None else self.signalled
        done = self.saved + int((until - self.starts[-1]) / self.update_seconds)
        if done >= self.updates:
            if self.is_lead:
                save_checkpoint(self.run, self.updates)
                self.run.finish({"kind": "pretrain", "steps": self.updates})
            return 0
        if self.signalled is None or self.clock.now < self.signalled + self.saving_seconds:
            return None
        if self.is_lead and done > self.saved:
            self.run.checkpoint(done).mkdir(parents=True)
        return EXIT_INTERRUPTED


class Slurm:
    """A job of one task (or one task of a job of two) under a time limit.

    An event is (seconds after the start, name of a method below). Each start of the job has its own list of events.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, max_requeues: int = 3, rank: int = 0):
        self.clock, self.rank = Clock(), rank
        self.program = Program(GridDir(root).run(JOB), self.clock, is_lead=rank == 0)
        self.state, self.reason = "PENDING", "None"
        self.restarts = 0
        self.requeue_requests = 0  # by the job itself
        self._again = False
        self._folder, self._patch = root / "logs/submitit", monkeypatch
        self._install()
        job = DelayedSubmission(SlurmTask(root, JOB, 1, max_requeues))
        job.set_timeout(round(LIMIT / 60), UNLIMITED_TIMEOUTS)
        self._folder.mkdir(parents=True)
        job.dump(self._folder / f"{SLURM_ID}_submitted.pkl")

    def _install(self) -> None:
        for module in (process, slurm_task, leases, submitit.core.job_environment):
            self._patch.setattr(module, "time", self.clock)
        start = SimpleNamespace(Popen=self.program.start, DEVNULL=subprocess.DEVNULL)
        self._patch.setattr(process, "subprocess", start)
        self._patch.setattr(slurm_task, "call", self._squeue)
        self._patch.setattr(submitit.slurm.slurm, "subprocess", SimpleNamespace(check_call=self._scontrol))
        variables = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": SLURM_ID, "SLURM_PROCID": str(self.rank)}
        variables |= {"SLURM_NTASKS": str(self.rank + 1), "SLURM_JOB_NUM_NODES": "1"}
        variables |= {"SLURM_JOB_NODELIST": "node1", "SLURM_LOCALID": str(self.rank), "SLURM_NODEID": "0"}
        for name, value in variables.items():
            self._patch.setenv(name, value)
        for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
            self._patch.delenv(name, raising=False)

    # ---- Slurm's commands ----------------------------------------------------------------------------------
    def _squeue(self, command: Sequence[str]) -> str:
        assert f"--jobs={SLURM_ID}" in command
        return f"{self.state}|{self.reason}\n"

    def _scontrol(self, command: Sequence[str], **kwargs: object) -> None:
        assert command == ["scontrol", "requeue", SLURM_ID]
        self.requeue_requests += 1
        self._again = True

    # ---- events --------------------------------------------------------------------------------------------
    def warn(self) -> None:
        signal.raise_signal(signal.SIGUSR2)

    def term(self) -> None:
        """Preemption with a grace time, at a site that does not send the user's signal."""
        signal.raise_signal(signal.SIGTERM)

    def _end(self, state: str, reason: str = "None") -> None:
        """Ends the job: TERM, and KILL later."""
        self.state, self.reason = state, reason
        self._later(KILL_WAIT, "kill")
        signal.raise_signal(signal.SIGTERM)

    def time_out(self) -> None:
        self._end("COMPLETING", "TimeLimit")

    def cancel(self) -> None:
        self._end("COMPLETING")

    def requeue(self) -> None:
        """By an administrator, or at the end of the grace time."""
        self._again = True
        self._end("COMPLETING")

    def fail_node(self) -> None:
        self._again = True
        self.kill()

    def kill(self) -> None:
        raise Killed

    def _later(self, seconds: float, event: str) -> None:
        """Plans an event, which is dropped if this start of the job has ended by then."""
        start = self.restarts
        self.clock.at(self.clock.now + seconds, lambda: start == self.restarts and getattr(self, event)())

    # ---- life of the job -----------------------------------------------------------------------------------
    def live(self, *events: Sequence[tuple[float, str]]) -> Slurm:
        """Runs the job until it ends without a requeue."""
        handlers = {
            number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2)
        }
        try:
            self._start(events[0] if events else ())
            while self._again:
                self.restarts += 1
                self.clock.now += 10
                self._start(events[self.restarts] if self.restarts < len(events) else ())
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return self

    def _start(self, events: Sequence[tuple[float, str]]) -> None:
        self._again, self.state, self.reason = False, "RUNNING", "None"
        if self.restarts:
            self._patch.setenv("SLURM_RESTART_COUNT", str(self.restarts))
        else:
            self._patch.delenv("SLURM_RESTART_COUNT", raising=False)
        for seconds, event in (*events, (LIMIT - WARNING, "warn"), (LIMIT, "time_out")):
            self._later(seconds, event)
        try:
            process_job(self._folder)
        except (Exception, SystemExit, Killed):
            self.program.kill()
