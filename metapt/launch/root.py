"""The folder of a grid: its names, its plan and the lock that keeps two submitters apart.

ROOT/
  plan.json                         the jobs, and what each waits for
  jobs.jsonl                        (Slurm) which job was handed over under which number
  logs/KIND/NAME.{out,err}          what the jobs print; `.rank1.out` and so on for further tasks
  logs/submitit/                    what submitit keeps
  .submit.lock , .submit.json       held while a submitter is at work; who that is
  corpus/ , pretrain/ , finetune/ , prepare/ , report/
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from metapt.errors import OperationalError, UserError
from metapt.launch.jobs import Job, Plan
from metapt.launch.status import is_held
from metapt.runs import Run, write_json


class Root:
    """One grid folder. Making the object touches nothing on disk."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.plan_file = self.path / "plan.json"
        self.submitted_file = self.path / "jobs.jsonl"
        self.submitit_dir = self.path / "logs" / "submitit"
        self._lock_file = self.path / ".submit.lock"
        self._holder_file = self.path / ".submit.json"

    def run(self, job: Job) -> Run:
        return Run(self.path / job.run_dir)

    def log_file(self, job: Job, stream: str, rank: int = 0) -> Path:
        """Where a task of a job prints to; `stream` is out or err."""
        return self.path / "logs" / f"{job.run_dir}{f'.rank{rank}' if rank else ''}.{stream}"

    def write_plan(self, plan: Plan) -> None:
        write_json(self.plan_file, plan.to_json())

    def read_plan(self) -> Plan:
        """The plan that was written last.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        try:
            return Plan.from_json(json.loads(self.plan_file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise UserError(
                f"{self.plan_file}: no such file; root= must be the folder of a submitted grid"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.plan_file}: not a plan of metapt.submit ({error})") from None

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Holds the grid for this process. The lock goes with the process, however it dies.

        Raises:
            OperationalError: another submitter holds it; the message says which.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._lock_file, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise OperationalError(f"{self.path}: {self._holder()} is already at work on this grid") from None
        try:
            since = datetime.now().astimezone().isoformat(timespec="seconds")
            write_json(self._holder_file, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
            yield
        finally:
            self._holder_file.unlink(missing_ok=True)
            lock.release()

    @property
    def is_claimed(self) -> bool:
        """Whether a submitter is at work."""
        return is_held(self._lock_file)

    def _holder(self) -> str:
        try:
            who = json.loads(self._holder_file.read_text(encoding="utf-8"))
            return f"process {who['pid']} on {who['host']} (since {who['since']})"
        except (OSError, ValueError, KeyError):
            return "another process"
