"""Locks that also work between machines: leases.

A lease is a file that only one process can create (O_EXCL, which every shared file system supports; flock is refused by
some of them and is local to each node on others). It names its owner, and its time of modification is the owner's last
heartbeat. A file left by a dead owner is removed by the next process that wants the lease. An owner is dead

- on the same machine: if its process no longer runs;
- in another Slurm job of the same user and cluster: if squeue no longer lists the job, and its heartbeat is older than
  `SILENCE_SECONDS`, since a process may outlive its job while it saves, or have the id of an earlier one. As long as
  Slurm runs the job, it is alive, even if its heartbeat is late: it may be suspended, or wait for the file system;
- otherwise, or if squeue does not answer: if its heartbeat is older than `EXPIRY_SECONDS`.

An owner that finds its lease in other hands, because it was suspended for longer, ends at once and writes nothing more.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from threading import Event, Thread

from metapt.errors import EXIT_FAILED
from metapt.provenance import now
from metapt.slurm_commands import cluster_name, jobs_in_queue, user_name

HEARTBEAT_SECONDS = 15.0
SILENCE_SECONDS = 3 * HEARTBEAT_SECONDS  # of an owner whose Slurm job has left the queue
EXPIRY_SECONDS = 90.0  # of an owner about which nothing else is known
POLL_SECONDS = 0.2
ANSWER_SECONDS = 10.0  # how old an answer of squeue may be, except for the removal of a lease


@dataclass(frozen=True)
class Owner:
    """The content of a lease: which process holds it.

    Attributes:
        machine: which processes `pid` counts among: the boot of the machine and the PID namespace. Empty if unknown.
        process_start: when the process started, in clock ticks since the boot: PIDs are reused.
        job, cluster: of Slurm; empty outside of a job.
        start: when the lease began.
        token: differs between all leases.
    """

    pid: int
    host: str
    machine: str
    process_start: str
    user: str
    job: str
    cluster: str
    start: str
    token: str

    def __str__(self) -> str:
        job = f" in Slurm job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job} (since {self.start})"


@dataclass(frozen=True)
class Seen:
    """A lease file as it was read: the owner, if the file is complete, and the time of the last heartbeat."""

    owner: Owner | None
    heartbeat: float

    def __str__(self) -> str:
        return str(self.owner or "another process")


class LeaseHeld(Exception):
    """Another process holds the lease. The message names it."""


class Lease:
    """A lease on a path. `acquire` and `release` may be called repeatedly; a process that dies needs no `release`.

    Args:
        path: of the file; its folder must exist.
        is_exclusive: whether the process has to end if it finds that it has lost the lease.
    """

    def __init__(self, path: Path, is_exclusive: bool = True):
        self.path = path
        self._is_exclusive = is_exclusive
        self._owner: Owner | None = None
        self._released = Event()

    def acquire(self, timeout: float | None = 0.0) -> None:
        """Take the lease.

        Args:
            timeout: seconds to wait for another owner; None: as long as it lives.
        Raises:
            LeaseHeld: another process still holds it.
        """
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        owner = _this_process()
        while not _create(self.path, owner):
            seen = look(self.path)
            if seen is None or (_is_dead(seen, time.time(), ANSWER_SECONDS) and _remove(self.path, seen)):
                continue
            if time.monotonic() >= deadline:
                raise LeaseHeld(str(seen))
            time.sleep(POLL_SECONDS)
        self._owner, self._released = owner, Event()
        Thread(target=self._beat, args=(owner, self._released), daemon=True).start()

    def release(self) -> None:
        """Give the lease back. In a forked child, which does not hold it, this has no effect."""
        owner, self._owner = self._owner, None
        if owner is None or owner.pid != os.getpid():
            return
        self._released.set()
        if _is_owned(self.path, owner):
            self.path.unlink(missing_ok=True)

    @contextmanager
    def held(self, timeout: float | None = 0.0) -> Iterator[None]:
        """Hold the lease in the block. Arguments and errors as for `acquire`."""
        self.acquire(timeout)
        try:
            yield
        finally:
            self.release()

    def _beat(self, owner: Owner, released: Event) -> None:
        misses = 0
        while not released.wait(HEARTBEAT_SECONDS):
            try:
                is_owned = _is_owned(self.path, owner)
                if is_owned:
                    os.utime(self.path)
            except OSError:  # the file system does not answer at present
                continue
            misses = 0 if is_owned else misses + 1
            if misses == 2 and not released.is_set():  # twice: a shared file system may show an old state
                if self._is_exclusive:
                    _end_process(self.path)
                return


def look(path: Path) -> Seen | None:
    """The lease file at a path; None if there is none."""
    try:
        with path.open("rb") as file:
            content, heartbeat = file.read(), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    owner = None
    with suppress(ValueError, TypeError):  # written at this moment, or on a disk that was full
        owner = Owner(**json.loads(content))
    return Seen(owner, heartbeat)


def is_held(path: Path) -> bool:
    """Whether a living process holds the lease of a path. This changes nothing."""
    try:
        seen = look(path)
    except OSError:
        return False
    return seen is not None and not _is_dead(seen, time.time(), ANSWER_SECONDS)


def wait_until_free(path: Path, seconds: float) -> None:
    """Wait until nobody holds the lease of a path, but at most `seconds`."""
    deadline = time.monotonic() + seconds
    while is_held(path) and time.monotonic() < deadline:
        time.sleep(1)


def _create(path: Path, owner: Owner) -> bool:
    """Write a lease file, and return whether there was none."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(asdict(owner)) + "\n")
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _remove(path: Path, seen: Seen) -> bool:
    """Remove the file of a dead owner. Returns false if another process is doing that, or the owner lives after all.

    A second file ensures that one process at a time does this. Otherwise a slower one might remove the file of a new owner.
    """
    guard = path.with_name(f"{path.name}.removal")
    try:
        descriptor = os.open(guard, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        with suppress(FileNotFoundError):
            if time.time() - guard.stat().st_mtime > EXPIRY_SECONDS:  # its process was killed
                guard.unlink()
        return False
    try:
        clock = os.fstat(descriptor).st_mtime  # of the file server where it sets the times, as for heartbeats
        present = look(path)
        is_same = present is not None and present.owner == seen.owner
        if present is None or (is_same and _is_dead(present, clock)):
            path.unlink(missing_ok=True)
            return True
        return False
    finally:
        os.close(descriptor)
        guard.unlink(missing_ok=True)


def _is_owned(path: Path, owner: Owner) -> bool:
    seen = look(path)
    return seen is not None and seen.owner == owner


def _is_dead(seen: Seen, clock: float, max_age: float = 0.0) -> bool:
    """Whether the owner of a lease is dead.

    Args:
        clock: the present time, comparable with that of the heartbeat.
        max_age: how many seconds ago squeue may have been asked. A job that has started since would seem to be gone.
    """
    owner, silence = seen.owner, clock - seen.heartbeat
    is_late = silence > EXPIRY_SECONDS
    if owner is None:
        return is_late
    runs = _process_runs(owner)
    if runs is not None:
        return not runs
    if owner.job and owner.job != os.environ.get("SLURM_JOB_ID") and owner.cluster == _cluster():
        jobs = jobs_in_queue(owner.user, max_age)
        state = None if jobs is None else jobs.get(owner.job)
        if state is not None and state != "PENDING":  # pending: requeued, so that start of the job has ended
            return False
        if jobs is not None and state is None and owner.user == user_name():
            return silence > SILENCE_SECONDS
    return is_late


def _this_process() -> Owner:
    job = os.environ.get("SLURM_JOB_ID", "")
    return Owner(
        pid=os.getpid(),
        host=os.environ.get("SLURMD_NODENAME", socket.gethostname()),
        machine=_machine(),
        process_start=_process_start(os.getpid()),
        user=user_name(),
        job=job,
        cluster=_cluster() if job else "",
        start=now(),
        token=secrets.token_hex(8),
    )


def _machine() -> str:
    """Identifies the boot of this machine and this process's PID namespace, on Linux; else empty."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process_runs(owner: Owner) -> bool | None:
    """Whether the process of an owner runs; None if this machine cannot tell."""
    if not owner.machine or owner.machine != _machine():
        return None
    start = _process_start(owner.pid)
    if start:
        return start == owner.process_start
    try:
        os.kill(owner.pid, 0)
    except PermissionError:  # of another user, whose processes /proc may hide
        return None
    except ProcessLookupError:
        pass
    return False  # it has ended, or its parent has not waited for it yet


def _process_start(pid: int) -> str:
    """When a process of this machine started, in clock ticks since the boot; empty if it does not run."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()  # the second field, its name, may contain spaces
    return "" if fields[0] in "ZX" else fields[19]


@cache
def _cluster() -> str:
    """The name of this machine's Slurm cluster; empty without one."""
    return os.environ.get("SLURM_CLUSTER_NAME") or cluster_name()


def _end_process(path: Path) -> None:
    """End this process without any further writing: what the lease protects belongs to another process now."""
    print(
        f"error: {path}: this process has lost its lock to {look(path) or 'nobody'}",
        file=sys.stderr,
        flush=True,
    )
    os._exit(EXIT_FAILED)
