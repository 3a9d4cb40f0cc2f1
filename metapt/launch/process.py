"""The process of a job on this machine: start, signals, and the error that a failed one leaves in the run folder."""

from __future__ import annotations

import ctypes
import getpass
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Protocol

from metapt.errors import EXIT_FAILED, EXIT_INTERRUPTED
from metapt.files import write_atomically
from metapt.launch.grid_dir import GridDir
from metapt.launch.jobs import Job
from metapt.launch.run_status import ERROR_BYTES, tail
from metapt.node_failures import device_error, node_failure, record

GRACE_SECONDS = 300  # time for a stopped process to save and exit before it is killed
ENVIRONMENT = {
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # GPU memory does not fragment
    "OMP_WAIT_POLICY": "passive",  # threads that spin while they wait slow down the other jobs of the machine
    # keep large blocks in the heap: returning them to the system at every step costs up to half of the run time
    "GLIBC_TUNABLES": ":".join(
        [
            "glibc.malloc.mmap_threshold=34359738368",
            "glibc.malloc.trim_threshold=34359738368",
            "glibc.malloc.mmap_max=0",
        ]
    ),
}
"""What a job sets unless the user has; slurm/pretrain.sh and finetune.sh set the same."""


def process_environment(environment: Mapping[str, str], threads: int) -> dict[str, str]:
    """The variables of a job's process, of which the user's own ones stay as they are.

    Compiled code is cached on the node, where a job that is requeued finds it again: not in a folder of the job alone.
    """
    folder = environment.get("TMPDIR") or "/tmp"
    job = environment.get("SLURM_JOB_ID")
    cache = Path("/tmp" if job and job in folder else folder) / f"metapt-{getpass.getuser()}"
    caches = {"TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor", "TRITON_CACHE_DIR": f"{cache}/triton"}
    given = {name: value for name, value in environment.items() if value or name not in ENVIRONMENT | caches}
    defaults = ENVIRONMENT | caches
    if environment.get("PYTORCH_CUDA_ALLOC_CONF"):  # the older name of PYTORCH_ALLOC_CONF
        del defaults["PYTORCH_ALLOC_CONF"]
    return {**defaults, **given, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(threads)}


PR_SET_PDEATHSIG = 1
LIBC = (
    ctypes.CDLL(None) if sys.platform == "linux" else None
)  # loaded here: between fork and exec it might deadlock


class Running(Protocol):
    """A process that was started, as subprocess.Popen has it."""

    def poll(self) -> int | None: ...
    def send_signal(self, sig: int, /) -> None: ...
    def kill(self) -> None: ...


StartProcess = Callable[[Job, Path, Path], Running | None]
"""Starts the program of a job with its output and error log, or leaves that to the caller."""


class JobProcess:
    """The process of one task of a job, in a session of its own, so that Ctrl-C in the terminal does not reach it.

    If this process is killed, its child saves and exits.

    Exit code 0 counts as success only if the run is done. After any other code than 75 (interrupted), the end of the
    process's stderr is written to error.txt in the run folder. A process that a device error ended was interrupted. For a job that is not a run (prepare, report), this
    class holds the lock of its folder and writes result.json.

    Args:
        start: what starts the program, if anything else than a new process.
    """

    def __init__(
        self,
        grid_dir: GridDir,
        job: Job,
        threads: int,
        rank: int = 0,
        start: StartProcess = lambda *_: None,
    ):
        self.job = job
        self.warned = self.stopped = False
        self._run = grid_dir.run(job)
        self._rank = rank
        self._inputs = {} if job.is_run else grid_dir.result_checksums(job.needs)
        self._settings = grid_dir.read_plan().report_settings if job.kind == "report" else {}
        self._error_log = grid_dir.log_file(job, "err", rank)
        self._started = time.monotonic()
        self._deadline = float("inf")
        self._code: int | None = None
        with ExitStack() as locks:
            if not job.is_run:
                locks.enter_context(self._run.locked())
                self._run.result_file.unlink(missing_ok=True)
            if rank == 0:
                self._run.error_file.unlink(missing_ok=True)
            self._process = self._start(grid_dir.log_file(job, "out", rank), threads, start)
            self._locks = locks.pop_all()

    def _start(self, output_log: Path, threads: int, start: StartProcess) -> Running:
        output_log.parent.mkdir(parents=True, exist_ok=True)
        environment = process_environment(os.environ, threads)
        with output_log.open("ab") as output, self._error_log.open("ab") as errors:
            self._log_start = errors.tell()
            if started := start(self.job, output_log, self._error_log):
                return started
            return subprocess.Popen(
                self.job.command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
                preexec_fn=partial(prepare_child, os.getpid()),
            )

    def poll(self) -> int | None:
        """None while the process runs, then its exit code."""
        if self._code is None:
            code = self._process.poll()
            if code is not None:
                self._code = self._finish(code)
            elif time.monotonic() > self._deadline:
                self._process.kill()
        return self._code

    def wait(self) -> int:
        """Waits for the exit code. It polls, so that signal handlers may call the methods below meanwhile."""
        try:
            while (code := self.poll()) is None:
                time.sleep(0.1)
            return code
        finally:
            if self._code is None:
                self._process.kill()

    def warn(self) -> None:
        """Signals that the time limit is near: the process should save and exit with 75, and is to be started again."""
        self.warned = True
        self._process.send_signal(signal.SIGUSR2)

    def stop(self) -> None:
        """Asks the process to save and exit; after GRACE_SECONDS it is killed."""
        if not self.stopped:
            self.stopped = True
            self._deadline = time.monotonic() + GRACE_SECONDS
            self._process.send_signal(signal.SIGTERM)

    def _finish(self, code: int) -> int:
        """Records how the process ended. Returns the exit code of the job."""
        with self._locks:
            if code == 0 and self._rank == 0:
                if not self.job.is_run:
                    seconds = round(time.monotonic() - self._started, 3)
                    result = {"kind": self.job.kind, "inputs": self._inputs, "settings": self._settings}
                    self._run.finish({**result, "seconds_total": seconds})
                elif not self._run.is_done:
                    code = EXIT_FAILED
            if code not in (0, EXIT_INTERRUPTED) and not self.stopped:
                text = tail(self._error_log, ERROR_BYTES, self._log_start).strip()
                if line := device_error(
                    text
                ):  # from a library that aborts the process, which then leaves no record itself
                    record(self._run, node_failure(line))
                    return EXIT_INTERRUPTED
                self._write_error(code, text)
        return code

    def _write_error(self, code: int, text: str) -> None:
        if code < 0:
            name = signal.Signals(-code).name
            text += f"\nkilled by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
        elif not text:
            text = f"exit code {code} with no output on stderr, and no {self._run.result_file}"
        write_atomically(self._run.error_file, text.strip() + "\n")


def prepare_child(parent: int) -> None:
    """Runs in the child before its program starts.

    The child is asked to save and exit when its parent is killed: otherwise it would work on, and lock its run against
    every later submission. (PR_SET_PDEATHSIG of Linux: man 2 prctl.)
    """
    # Slurm signals every process of a step; until the program installs its handler, USR2 would kill it
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it was killed before
            os._exit(EXIT_FAILED)


def default_threads(max_parallel: int) -> int:
    """Threads per job when `max_parallel` jobs run at once on this machine."""
    cores = len(os.sched_getaffinity(0))
    return max(1, cores // max_parallel)
