"""The folder of a grid: its files, its plan, and the lock that keeps two submitters apart.

GRID/
  plan.json                         the jobs of the present plan, and the jobs that each one needs
  jobs.jsonl                        (Slurm) the Slurm job id under which each job was submitted, by whom and where
  logs/KIND/NAME.{out,err}          output of the jobs; `.rank1.out` and so on for further tasks
  logs/submitit/                    files of submitit
  code/HASH/                        the source that jobs run (metapt/launch/code_snapshot.py)
  .submit.lock                      exists while a submitter works, and names it (metapt.leases)
  corpus/ , features/               token shards; word features and scores of the baselines: shared by the runs
  hub/ , datasets/                  (Slurm) downloads of the Hugging Face hub, for nodes without internet
  prepare/ , pretrain/ , finetune/ , baseline/ , report/
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from metapt.errors import OperationalError, UserError
from metapt.files import file_sha256, write_bytes_atomically, write_json
from metapt.launch.job_state import FINISHED, JobState, job_state
from metapt.launch.jobs import RUN_KINDS, Job, Plan
from metapt.launch.run_status import run_status
from metapt.leases import Lease, LeaseHeld, is_held
from metapt.runs import Run


class GridDir:
    """The folder of one grid. Creating the object does not touch the disk."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.plan_file = self.path / "plan.json"
        self.submitted_file = self.path / "jobs.jsonl"
        self.submitit_dir = self.path / "logs" / "submitit"
        self._lock_file = self.path / ".submit.lock"

    def run(self, job: Job) -> Run:
        return Run(self.path / job.run_dir)

    def log_file(self, job: Job, stream: str, rank: int = 0) -> Path:
        """Where a task of a job writes its output; `stream` is out or err."""
        return self.path / "logs" / f"{job.run_dir}{f'.rank{rank}' if rank else ''}.{stream}"

    def write_plan(self, plan: Plan) -> None:
        write_json(self.plan_file, plan.to_json())

    @contextmanager
    def submission_of(self, plan: Plan) -> Iterator[None]:
        """Submits a plan in the block, with the plan in plan.json.

        If the block fails before it has recorded a job in jobs.jsonl, plan.json is what it was before.
        """
        before, recorded = _content(self.plan_file), _content(self.submitted_file)
        self.write_plan(plan)  # before the block: jobs that start at once read it
        try:
            yield
        except BaseException:
            if _content(self.submitted_file) == recorded:
                if before is None:
                    self.plan_file.unlink(missing_ok=True)
                else:
                    write_bytes_atomically(self.plan_file, before, synced=True)
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
        """Lock the grid for this submitter (metapt.leases).

        Raises:
            OperationalError: another submitter holds the lock; the message names it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lease = Lease(self._lock_file)
        try:
            lease.acquire()
        except LeaseHeld as holder:
            raise OperationalError(f"{self.path}: this grid is locked by {holder}") from None
        try:
            yield
        finally:
            lease.release()

    @property
    def is_locked(self) -> bool:
        """Whether a submitter is active."""
        return is_held(self._lock_file)


def _content(file: Path) -> bytes | None:
    """The content of a file; None if there is none."""
    return file.read_bytes() if file.exists() else None
