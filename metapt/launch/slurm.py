"""Submission of a plan to Slurm, ordered by dependencies. It returns at once.

Similar jobs, such as the fine-tuning runs of one pretraining run, form an array. A job has an `afterok` dependency on
the jobs that it needs; the report has `afterany` on all of them. Slurm cancels a job whose dependency has failed
(`--kill-on-invalid-dep`). Submission is all-or-nothing: if sbatch refuses a request, the jobs that this call has
submitted are cancelled; where a site limits the jobs of a user, this holds for each part of the grid. metapt.launch.slurm_task is what a job does on its nodes, and how it is requeued after its
time limit; metapt.launch.slurm_queue is what is in the queue already.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from shlex import join
from typing import TYPE_CHECKING, Any

from metapt.config import ClusterConfig
from metapt.config.commandline import quote_override
from metapt.errors import Interrupted, OperationalError, UserError, first_line
from metapt.launch import hub_inputs, slurm_queue
from metapt.launch.batch_script import build_executor, script_text
from metapt.launch.grid_dir import GridDir
from metapt.launch.interrupts import ignored_ctrl_c, term_as_ctrl_c
from metapt.launch.job_environment import without_job_environment
from metapt.launch.job_sources import JobSources
from metapt.launch.jobs import Job, Plan
from metapt.launch.resources import with_resources
from metapt.launch.slurm_queue import QueueEntry
from metapt.launch.submit_limits import REFUSAL, SubmitLimitReached, parts_of, room
from metapt.slurm_commands import site_setting

if TYPE_CHECKING:
    import submitit

DEFAULT_MAX_ARRAY_SIZE = 1001  # Slurm's own default
SubmitArray = Callable[[Sequence[Job], Sequence[str]], Sequence[str]]
"""Submits similar jobs with their dependencies (`afterok:1:2`, ...). Returns their Slurm job ids."""


def submit(
    plan: Plan, todo: Sequence[Job], grid_dir: GridDir, cluster: ClusterConfig, code: JobSources
) -> str:
    """Fetches what jobs read from the hub, and submits them to Slurm. Pending jobs among them, which wait for a job that
    failed, are replaced.

    Returns: a summary for the user.
    Raises:
        UserError: there is no Slurm on this machine.
        OperationalError: files of the hub cannot be fetched, sbatch refuses a job, a needed job has left the queue, or jobs.jsonl cannot be written.
        Interrupted: Ctrl-C or TERM.
            After both, nothing is submitted but the earlier parts of the grid, which the message counts.
    """
    if not shutil.which("sbatch"):
        raise UserError(
            "cluster=slurm: sbatch is not installed here; cluster=local runs jobs on this machine"
        )
    fetched = hub_inputs.fetch_inputs(plan, todo, cluster, grid_dir.path)
    todo, notes = with_resources(plan, todo, cluster)
    queue = slurm_queue.read_queue(grid_dir)
    slurm_queue.cancel(queue.unrecorded)
    submission = _Submission(plan, grid_dir, cluster, code, dict(queue.entries))
    try:
        left = _submit_within_limits(submission, todo)
    finally:
        replaced = _cancel_replaced(submission.submitted, queue.entries)
    kept = [
        entry for entry in queue.entries.values() if entry.slurm_id not in replaced and not entry.is_ending
    ]
    lines = [
        *fetched,
        *notes,
        f"{grid_dir.path}: {len(submission.submitted)} jobs submitted to Slurm in {submission.requests} requests; "
        f"{len(kept)} were already in its queue",
        *left,
        f"follow them with: {join(['metapt', 'status', quote_override('root', grid_dir.path)])}",
    ]
    return "\n".join(lines)


def _cancel_replaced(submitted: Sequence[Job], before: Mapping[str, QueueEntry]) -> set[str]:
    """Cancels the pending jobs that were submitted anew; a failure is printed. Returns their Slurm job ids."""
    replaced = {
        before[job.id].slurm_id for job in submitted if job.id in before and before[job.id].is_pending
    }
    try:
        slurm_queue.cancel(replaced)
    except OperationalError as error:
        print(f"pending jobs that were submitted anew are still in the queue: {error}", file=sys.stderr)
    return replaced


def _submit_within_limits(submission: _Submission, todo: Sequence[Job]) -> list[str]:
    """Submits all jobs, or as many parts of the grid as the site allows. Returns what to say about the rest."""
    allowed = room(submission.cluster.account)
    reason = str(allowed)
    if allowed is None or len(todo) <= allowed.left:
        try:
            submission.submit(todo)
            return []
        except SubmitLimitReached as error:
            reason = first_line(error)
    for part in parts_of(submission.plan, todo):
        if allowed is not None and len(submission.submitted) + len(part) > allowed.left:
            break
        try:
            submission.submit(part)
        except SubmitLimitReached as error:
            reason = first_line(error)
            break
    if not submission.submitted:
        raise OperationalError(f"the site's limit leaves no room for a part of the grid: {reason}")
    count = len(todo) - len(submission.submitted)
    return [
        f"{count} jobs are left, because of the site's limit on submitted jobs ({reason}); the same command submits them later"
    ]


@dataclass
class _Submission:
    """The submission of a grid in one or several parts.

    Attributes:
        present: the jobs in Slurm's queue, by job id, and those of the parts that are submitted.
        submitted: the jobs of these parts.
        requests: the number of calls of sbatch for them.
    """

    plan: Plan
    grid_dir: GridDir
    cluster: ClusterConfig
    code: JobSources
    present: dict[str, QueueEntry]
    submitted: list[Job] = field(default_factory=list)
    requests: int = 0

    def submit(self, part: Sequence[Job]) -> None:
        """Submits jobs and records them, all of them or none."""
        submitted: list[tuple[Job, str]] = []

        def submit_array(array: Sequence[Job], dependencies: Sequence[str]) -> list[str]:
            source = self.code.of(array[0])
            executor = build_executor(
                array, dependencies, self.plan.grid, self.grid_dir, self.cluster, source
            )
            with without_job_environment(script_text(executor, len(array))):
                slurm_ids = _submit_array(array, executor, self.grid_dir, self.cluster)
            submitted.extend(zip(array, slurm_ids, strict=True))
            return slurm_ids

        try:
            with term_as_ctrl_c():
                count = _submit_in_order(
                    self.plan, part, self.grid_dir, self.present, self.code, submit_array
                )
                slurm_queue.record_submissions(self.grid_dir, submitted)
        except (Exception, KeyboardInterrupt) as error:
            with ignored_ctrl_c():
                _roll_back(self.grid_dir, [slurm_id for _, slurm_id in submitted], error)
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(f"stopped; {self._outcome}") from None
            if isinstance(error, OperationalError) and not isinstance(error, SubmitLimitReached):
                raise OperationalError(f"{error}\n{self._outcome}") from None
            raise
        self.present |= {job.id: QueueEntry(slurm_id, "PENDING", "None") for job, slurm_id in submitted}
        self.submitted += part
        self.requests += count

    @property
    def _outcome(self) -> str:
        """What there is of the submission after an error."""
        count = len(self.submitted)
        return f"{count} jobs of earlier parts stay in the queue" if count else "nothing was submitted"


def _roll_back(grid_dir: GridDir, slurm_ids: Sequence[str], cause: BaseException) -> None:
    """Cancels the jobs of a submission that failed. Raises OperationalError, with both errors, if that fails too."""
    try:
        slurm_queue.cancel({*slurm_ids, *slurm_queue.read_queue(grid_dir).unrecorded})
    except OperationalError as error:
        raise OperationalError(
            f"{cause or 'stopped'}\nthe jobs submitted before this error could not be cancelled: {error}"
        ) from cause


def missing_inputs(plan: Plan, todo: Sequence[Job], grid_dir: GridDir, cluster: ClusterConfig) -> list[str]:
    """What `submit` would download first."""
    return hub_inputs.missing_inputs(plan, todo, cluster, grid_dir.path)


def batch_scripts(
    plan: Plan,
    todo: Sequence[Job],
    grid_dir: GridDir,
    cluster: ClusterConfig,
    code: JobSources,
    *,
    is_test: bool = False,
) -> list[tuple[str, str]]:
    """What `submit` would pass to sbatch, as (jobs, batch script). Needs no Slurm and writes nothing.

    The Slurm job id that the n-th request will get is written @n. With `is_test` dependencies on such ids are left out.
    """
    scripts: list[tuple[str, str]] = []
    todo, _ = with_resources(plan, todo, cluster)

    def collect(array: Sequence[Job], dependencies: Sequence[str]) -> list[str]:
        if is_test:
            dependencies = [known for item in dependencies if (known := _without_placeholders(item))]
        name = array[0].id if len(array) == 1 else f"{array[0].id} .. {array[-1].id} ({len(array)} jobs)"
        executor = build_executor(array, dependencies, plan.grid, grid_dir, cluster, code.of(array[0]))
        scripts.append((name, script_text(executor, len(array))))
        slurm_id = f"@{len(scripts)}"
        return [slurm_id] if len(array) == 1 else [f"{slurm_id}_{index}" for index in range(len(array))]

    _submit_in_order(plan, todo, grid_dir, slurm_queue.queue_entries(grid_dir), code, collect)
    return scripts


def _without_placeholders(dependency: str) -> str:
    """A dependency without the ids that only a real submission has; empty if none are left."""
    condition, *slurm_ids = dependency.split(":")
    known = [slurm_id for slurm_id in slurm_ids if not slurm_id.startswith("@")]
    return ":".join([condition, *known]) if known else ""


def check_with_sbatch(script: str) -> tuple[bool, str]:
    """Whether sbatch would accept a script, and its answer: when and where the job would start, or why not."""
    with without_job_environment(script):
        answer = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True)
    return answer.returncode == 0, (answer.stderr + answer.stdout).strip()


def _submit_in_order(
    plan: Plan,
    todo: Sequence[Job],
    grid_dir: GridDir,
    present: Mapping[str, QueueEntry],
    code: JobSources,
    submit_array: SubmitArray,
) -> int:
    """Submits arrays of jobs, each after the arrays that it depends on. Returns the number of arrays.

    A job whose previous submission has not ended yet also waits for that one to end, however it ends: Slurm may still
    be ending it, or an earlier report may be running.
    """
    due = {job.id for job in todo}
    slurm_ids = {
        job_id: entry.slurm_id
        for job_id, entry in present.items()
        if not (job_id in due and entry.is_pending)
    }
    previous = {job_id: slurm_id for job_id, slurm_id in slurm_ids.items() if job_id in due}
    jobs = {job.id: job for job in plan.jobs}
    arrays = group_into_arrays(todo, max_array_size(), code, previous)
    for array in arrays:
        first = array[0]  # all jobs of an array have the same dependencies
        absent = [
            name for name in first.needs if name not in slurm_ids and not grid_dir.run(jobs[name]).is_done
        ]
        if absent and not first.runs_after_failures:
            raise OperationalError(
                f"{first.id}: {absent[0]} has just left the queue unfinished; submit again"
            )
        needed = [slurm_ids[name] for name in first.needs if name in slurm_ids]
        own = [previous[first.id]] if first.id in previous else []
        slurm_ids |= zip(
            (job.id for job in array), submit_array(array, _dependencies(first, needed, own)), strict=True
        )
    return len(arrays)


def _dependencies(job: Job, needed: Sequence[str], previous: Sequence[str]) -> list[str]:
    """The dependencies of a job, in sbatch's form, on the jobs that it needs and on its previous submission."""
    if not job.runs_after_failures:
        conditions = {"afterok": list(needed), "afterany": list(previous)}
    else:
        whole_arrays = (slurm_id.partition("_")[0] for slurm_id in (*needed, *previous))
        conditions = {"afterany": list(dict.fromkeys(whole_arrays))}
    return [":".join([condition, *slurm_ids]) for condition, slurm_ids in conditions.items() if slurm_ids]


def max_array_size() -> int:
    """How many jobs an array may have at this site; Slurm's default if that is not known."""
    found = site_setting("MaxArraySize")
    return max(1, int(found)) if found.isdigit() else DEFAULT_MAX_ARRAY_SIZE  # 0: arrays are disabled


def group_into_arrays(
    jobs: Sequence[Job], max_size: int, code: JobSources, previous: Mapping[str, str] | None = None
) -> list[list[Job]]:
    """Groups of at most `max_size` jobs with the same dependencies, resources and source, in the order of the jobs.

    Args:
        previous: the Slurm job ids of earlier submissions that the jobs have to wait for, by job id.
    """
    groups: dict[tuple[Any, ...], list[Job]] = {}
    for job in jobs:
        resources = (job.nodes, job.gpus_per_node, job.hours, job.mem_gb)
        key = (job.kind, job.needs, *resources, code.of(job).folder, (previous or {}).get(job.id))
        groups.setdefault(key, []).append(job)
    return [
        group[start : start + max_size]
        for group in groups.values()
        for start in range(0, len(group), max_size)
    ]


def _submit_array(
    array: Sequence[Job], executor: submitit.SlurmExecutor, grid_dir: GridDir, cluster: ClusterConfig
) -> list[str]:
    """Submits similar jobs. Returns their Slurm job ids: N for one job, N_0, N_1, ... for several."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from metapt.launch.slurm_task import SlurmTask

    tasks = [
        SlurmTask(
            grid_dir.path,
            job,
            threads=cluster.threads or cluster.cpus_per_task,
            max_requeues=cluster.max_requeues_without_progress,
            input_timeout_s=cluster.visibility_timeout_s,
        )
        for job in array
    ]
    try:
        return [submitted.job_id for submitted in executor.submit_array(tasks)]
    except (FailedJobError, FailedSubmissionError) as error:
        others = f" and {len(array) - 1} similar jobs" if len(array) > 1 else ""
        kind = SubmitLimitReached if REFUSAL.search(str(error)) else OperationalError
        raise kind(f"{array[0].id}{others}: sbatch refuses the job: {str(error).strip()}") from None
