"""A job's process on this machine: started, warned, stopped, and what it leaves in the run folder when it fails."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

from filelock import FileLock

from metapt.errors import EXIT_FAILED, EXIT_INTERRUPTED
from metapt.files import write_atomically
from metapt.launch.grid_dir import Root
from metapt.launch.jobs import Job
from metapt.launch.run_status import ERROR_BYTES, tail

GRACE_SECONDS = 300  # for a stopped process to save and end, before it is killed
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",  # threads that spin while they wait starve the other jobs of the machine
    # large blocks stay in the heap: returning them to the system at every step costs up to half of the time
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=34359738368:glibc.malloc.trim_threshold=34359738368:glibc.malloc.mmap_max=0",
    "PYTHONUNBUFFERED": "1",
}


class Child:
    """The process of one task of a job. It has a session of its own: the terminal's Ctrl-C does not reach it.

    Exit code 0 counts only if the run is done. Other codes than 75 (interrupted) leave the end of what the process
    printed in error.txt of the run folder. For jobs that are no runs (prepare, report) this class writes
    result.json and holds the folder's lock.
    """

    def __init__(self, root: Root, job: Job, threads: int, rank: int = 0):
        self.job = job
        self.warned = self.stopped = False
        self._run = root.run(job)
        self._rank = rank
        self._inputs = {} if job.is_run else root.results(job.needs)
        self._error_log = root.log_file(job, "err", rank)
        self._started = time.monotonic()
        self._deadline = float("inf")
        self._code: int | None = None
        with ExitStack() as held:
            if not job.is_run:
                self._run.path.mkdir(parents=True, exist_ok=True)
                held.enter_context(
                    FileLock(self._run.lock_file, timeout=1)
                )  # a status look holds it for a moment
                self._run.result_file.unlink(missing_ok=True)
            if rank == 0:
                self._run.error_file.unlink(missing_ok=True)
            self._process = self._start(root.log_file(job, "out", rank), threads)
            self._held = held.pop_all()

    def _start(self, output_log: Path, threads: int) -> subprocess.Popen[bytes]:
        output_log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}
        with output_log.open("ab") as output, self._error_log.open("ab") as errors:
            self._log_start = errors.tell()
            return subprocess.Popen(
                self.job.command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
                # Slurm signals every process of a step; until the program has its handler, the default is death
                preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
            )

    def poll(self) -> int | None:
        """None while it runs, then its exit code."""
        if self._code is None:
            code = self._process.poll()
            if code is not None:
                self._code = self._conclude(code)
            elif time.monotonic() > self._deadline:
                self._process.kill()
        return self._code

    def wait(self) -> int:
        """The exit code, once there is one. Polls, so that signal handlers may call the methods below meanwhile."""
        try:
            while (code := self.poll()) is None:
                time.sleep(0.1)
            return code
        finally:
            if self._code is None:
                self._process.kill()

    def warn(self) -> None:
        """Tells it that its time is nearly over: it should save, exit with 75, and be started again."""
        self.warned = True
        self._process.send_signal(signal.SIGUSR2)

    def stop(self) -> None:
        """Tells it to save and end; after five minutes it is killed."""
        if not self.stopped:
            self.stopped = True
            self._deadline = time.monotonic() + GRACE_SECONDS
            self._process.send_signal(signal.SIGTERM)

    def _conclude(self, code: int) -> int:
        with self._held:
            if code == 0 and self._rank == 0:
                if not self.job.is_run:
                    seconds = round(time.monotonic() - self._started, 3)
                    self._run.finish(
                        {"kind": self.job.kind, "inputs": self._inputs, "seconds_total": seconds}
                    )
                elif not self._run.is_done:
                    code = EXIT_FAILED
            if code not in (0, EXIT_INTERRUPTED) and not self.stopped:
                self._leave_error(code)
        return code

    def _leave_error(self, code: int) -> None:
        text = tail(self._error_log, ERROR_BYTES, self._log_start).strip()
        if code < 0:
            name = signal.Signals(-code).name
            text += f"\nkilled by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
        elif not text:
            text = f"exit code {code} without a word on stderr, and no {self._run.result_file}"
        write_atomically(self._run.error_file, text.strip() + "\n")


def default_threads(max_parallel: int) -> int:
    """Threads for each of so many jobs at once on this machine."""
    cores = len(os.sched_getaffinity(0))
    return max(1, cores // max_parallel)
