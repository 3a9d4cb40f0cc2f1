"""The folder of a grid: its names, its plan and the lock that keeps two submitters apart.

ROOT/
  plan.json                         the jobs of the present plan, and what each waits for
  jobs.jsonl                        (Slurm) which job was handed over under which number
  logs/KIND/NAME.{out,err}          what the jobs print; `.rank1.out` and so on for further tasks
  logs/submitit/                    what submitit keeps
  code/HASH/                        the source that jobs run (metapt/launch/code_snapshot.py)
  .submit.lock , .submit.json       held, and there, while a submitter is at work; who that is
  corpus/ , pretrain/ , finetune/ , prepare/ , report/
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from metapt.errors import OperationalError, UserError
from metapt.files import file_sha256, write_json
from metapt.launch.jobs import RUN_KINDS, Job, Plan
from metapt.launch.run_status import is_held
from metapt.runs import Run


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

    def other_runs(self, plan: Plan) -> list[str]:
        """Runs below this folder that the plan does not have: superseded ones, or of another selection."""
        planned = {job.run_dir for job in plan.jobs}
        folders = (
            path for kind in RUN_KINDS for path in sorted((self.path / kind).glob("[!.]*")) if path.is_dir()
        )
        found = [str(path.relative_to(self.path)) for path in folders]
        return [name for name in found if name not in planned]

    def results(self, names: Iterable[str]) -> dict[str, str]:
        """A checksum of result.json for those of the jobs that are done: what a report is made of."""
        files = ((name, Run(self.path / name).result_file) for name in names)
        return {name: file_sha256(file) for name, file in files if file.exists()}

    def wait_for_inputs(self, job: Job, seconds: float) -> None:
        """Waits until this machine sees how the jobs that `job` needs have ended, but no longer than `seconds`.

        On a shared file system another node's files may appear later than Slurm says that its job is over.
        """
        is_visible = self._settled(self.read_plan()) if job.runs_after_failures else self._can_be_used
        end = time.monotonic() + seconds
        while (missing := [name for name in job.needs if not is_visible(name)]) and time.monotonic() < end:
            time.sleep(min(1.0, seconds))
        if missing and not job.runs_after_failures:
            print(f"not visible here after {seconds} s: {', '.join(missing)}", file=sys.stderr, flush=True)

    def _settled(self, plan: Plan) -> Callable[[str], bool]:
        """Tells whether a job is done, or has failed, or will never begin because one that it needs has failed."""
        needs = {job.id: job.needs for job in plan.jobs}

        def is_failed(name: str) -> bool:
            run = Run(self.path / name)
            return not run.is_done and (run.error_file.exists() or any(map(is_failed, needs.get(name, ()))))

        return lambda name: Run(self.path / name).is_done or is_failed(name)

    def _can_be_used(self, name: str) -> bool:
        """Whether a job is done; if it has pretrained, whether its last checkpoint is there too, not only earlier ones."""
        run = Run(self.path / name)
        if not run.is_done:
            return False
        result = run.result()
        return (
            result.get("kind") != "pretrain"
            or "steps" not in result
            or run.checkpoint(result["steps"]).exists()
        )

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Holds the grid for this process, against others of this machine and of others that share the file system.

        Here a lock decides, which goes with the process, however it dies. Between machines such locks may not work:
        a file does, which only one can create. A file that a killed process of this machine left is taken over;
        that one on another machine is gone cannot be seen from here.
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
                f"{self.path}: {self._holder()} is already at work on this grid; "
                f"if that process is gone, delete {self._holder_file}"
            )
        if self._recorded_holder():  # of this machine, and the lock is ours
            self._holder_file.unlink()
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        who = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        complete = self._holder_file.with_name(f".submit.{socket.gethostname()}.{os.getpid()}.tmp")
        complete.write_text(who + "\n", encoding="utf-8")
        try:
            os.link(complete, self._holder_file)  # fails if it is there, on NFS too
        except FileExistsError:
            raise OperationalError(
                f"{self.path}: {self._holder()} has just begun work on this grid"
            ) from None
        finally:
            complete.unlink()

    @property
    def is_claimed(self) -> bool:
        """Whether a submitter is at work."""
        return is_held(self._lock_file) or self._is_held_elsewhere()

    def _is_held_elsewhere(self) -> bool:
        """Whether a process of another machine says that it is at work."""
        who = self._recorded_holder()
        return who is not None and who.get("host") != socket.gethostname()

    def _holder(self) -> str:
        who = self._recorded_holder()
        return f"process {who['pid']} on {who['host']} (since {who['since']})" if who else "another process"

    def _recorded_holder(self) -> dict[str, Any] | None:
        try:
            return json.loads(self._holder_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
