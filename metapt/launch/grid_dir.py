"""The folder of a grid: its files, its plan, and the lock that keeps two submitters apart.

GRID/
  plan.json                         the jobs of the present plan, and the jobs that each one needs
  jobs.jsonl                        (Slurm) the Slurm job id under which each job was submitted, by whom and where
  logs/KIND/NAME.{out,err}          output of the jobs; `.rank1.out` and so on for further tasks
  logs/submitit/                    files of submitit
  code/HASH/                        the source that jobs run (metapt/launch/code_snapshot.py)
  .submit.lock , .submit.json       lock of the submitter while it runs, and which process that is
  corpus/ , features/               token shards and word features, shared by the runs
  hub/ , datasets/                  (Slurm) downloads of the Hugging Face hub, for nodes without internet
  prepare/ , pretrain/ , finetune/ , baseline/ , report/
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from metapt.errors import OperationalError, UserError
from metapt.files import file_sha256, write_atomically, write_json
from metapt.launch.job_state import FINISHED, JobState, job_state
from metapt.launch.jobs import RUN_KINDS, Job, Plan
from metapt.launch.run_status import is_held, run_status
from metapt.runs import Run


class GridDir:
    """The folder of one grid. Creating the object does not touch the disk."""

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
        """Where a task of a job writes its output; `stream` is out or err."""
        return self.path / "logs" / f"{job.run_dir}{f'.rank{rank}' if rank else ''}.{stream}"

    def write_plan(self, plan: Plan) -> None:
        write_json(self.plan_file, plan.to_json())

    @contextmanager
    def submission_of(self, plan: Plan) -> Iterator[None]:
        """Submits a plan in the block, with the plan in plan.json. If the block fails, plan.json is what it was before."""
        before = self.plan_file.read_text(encoding="utf-8") if self.plan_file.exists() else None
        self.write_plan(plan)  # before the block: jobs that start at once read it
        try:
            yield
        except BaseException:
            if before is None:
                self.plan_file.unlink(missing_ok=True)
            else:
                write_atomically(self.plan_file, before)
            raise

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
            raise UserError(f"{self.plan_file}: not a plan that metapt submit wrote ({error})") from None

    def other_runs(self, plan: Plan) -> list[str]:
        """Runs in this folder that are not in the plan: superseded ones, or those of another selection of the grid."""
        planned = {job.run_dir for job in plan.jobs}
        folders = (
            path for kind in RUN_KINDS for path in sorted((self.path / kind).glob("[!.]*")) if path.is_dir()
        )
        found = [str(path.relative_to(self.path)) for path in folders]
        return [name for name in found if name not in planned]

    def result_checksums(self, job_ids: Iterable[str]) -> dict[str, str]:
        """The SHA-256 of result.json of every finished job, by job id. The report records its inputs by them."""
        files = ((name, Run(self.path / name).result_file) for name in job_ids)
        return {name: file_sha256(file) for name, file in files if file.exists()}

    def wait_for_inputs(self, job: Job, seconds: float) -> None:
        """Waits until this machine sees how the jobs that `job` needs have ended, but at most `seconds`.

        On a shared file system the files of another node may appear later than Slurm reports the end of its job.
        """
        plan = self.read_plan() if job.runs_after_failures else None
        end = time.monotonic() + seconds
        while (missing := self._missing_inputs(job, plan)) and time.monotonic() < end:
            time.sleep(min(1.0, seconds))
        if missing and not job.runs_after_failures:
            print(f"not visible here after {seconds} s: {', '.join(missing)}", file=sys.stderr, flush=True)

    def _missing_inputs(self, job: Job, plan: Plan | None) -> list[str]:
        """The jobs that `job` needs of which this machine sees no end; without a plan, no usable result."""
        if plan is None:
            return [name for name in job.needs if not Run(self.path / name).is_done]
        states: dict[str, JobState] = {}
        for planned in plan.jobs:
            states[planned.id] = job_state(
                run_status(self.run(planned).path).state,
                needed=[states[name] for name in planned.needs],
                is_submitter_active=True,
            )
        return [name for name in job.needs if states[name] not in FINISHED]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the grid for this process, against others on this machine and on machines that share the file system.

        On this machine a file lock decides; the system releases it when the process ends, however that happens.
        Between machines such locks may not work. There, a file decides that only one process can create. A file left by
        a killed process of this machine is replaced. Whether a process on another machine still runs cannot be seen.

        Raises:
            OperationalError: another submitter holds the lock; the message names it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._lock_file, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise OperationalError(f"{self.path}: this grid is locked by {self._holder()}") from None
        try:
            self._create_holder_file()
            try:
                yield
            finally:
                self._holder_file.unlink(missing_ok=True)
        finally:
            lock.release()

    def _create_holder_file(self) -> None:
        if self._is_held_elsewhere():
            raise OperationalError(
                f"{self.path}: this grid is locked by {self._holder()}; "
                f"if that process no longer runs, delete {self._holder_file}"
            )
        if self._recorded_holder():  # a killed process of this machine, since this process has the lock
            self._holder_file.unlink()
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        complete = self._holder_file.with_name(f".submit.{socket.gethostname()}.{os.getpid()}.tmp")
        complete.write_text(holder + "\n", encoding="utf-8")
        try:
            os.link(complete, self._holder_file)  # fails if the file exists, on NFS too
        except FileExistsError:
            raise OperationalError(f"{self.path}: this grid is locked by {self._holder()}") from None
        finally:
            complete.unlink()

    @property
    def is_locked(self) -> bool:
        """Whether a submitter is active."""
        return is_held(self._lock_file) or self._is_held_elsewhere()

    def _is_held_elsewhere(self) -> bool:
        """Whether a process of another machine has recorded itself as the submitter."""
        holder = self._recorded_holder()
        return holder is not None and holder.get("host") != socket.gethostname()

    def _holder(self) -> str:
        holder = self._recorded_holder()
        if holder is None:
            return "another process"
        return f"process {holder['pid']} on {holder['host']} (since {holder['since']})"

    def _recorded_holder(self) -> dict[str, Any] | None:
        try:
            return json.loads(self._holder_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
