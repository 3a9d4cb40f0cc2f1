"""Which jobs of a plan a submission starts, after what their folders contain was checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from metapt.errors import UserError
from metapt.launch import slurm_queue
from metapt.launch.grid_dir import GridDir
from metapt.launch.grid_status import JobStatus, job_statuses
from metapt.launch.job_state import JobState
from metapt.launch.jobs import Job, Plan
from metapt.launch.run_status import RunStatus
from metapt.runs import Run

LEFT_ALONE = (
    JobState.DONE,
    JobState.RUNNING,
    JobState.UNKNOWN,
)  # states of runs whose configuration is not read


def current_statuses(grid_plan: Plan, grid_dir: GridDir) -> dict[str, JobStatus]:
    """The status of every job of a plan, for the one submitter of its grid.

    Raises:
        OperationalError: jobs have been submitted, and squeue does not answer.
    """
    entries = slurm_queue.queue_entries(
        grid_dir
    )  # before the folders: a job that ends meanwhile is then done
    return job_statuses(grid_plan, grid_dir, entries, is_submitter_active=False)


def with_checked_folders(
    grid_plan: Plan, statuses: Mapping[str, JobStatus], grid_dir: GridDir
) -> dict[str, JobStatus]:
    """The statuses after files were read that `metapt status` does not read, since that would take too long.

    - A finished pretraining run whose weights are damaged is interrupted: those that jobs will fine-tune are compared with
      their checksums.
    - An unfinished run whose config.yaml is damaged has failed (`JobStatus.damage`): nothing says how it was trained so far.
    """
    checked = dict(statuses)
    needed = {
        name
        for job in grid_plan.jobs
        if job.kind == "finetune" and statuses[job.id].state is not JobState.DONE
        for name in job.needs
    }
    for job in grid_plan.jobs:
        status, run = statuses[job.id], grid_dir.run(job)
        if job.id in needed and status.state is JobState.DONE and (problem := run.weights_problem()):
            seen = replace(status.run, state=JobState.INTERRUPTED, result_problem=problem)
            status = checked[job.id] = replace(status, state=JobState.INTERRUPTED, run=seen)
        if job.is_run and status.state not in LEFT_ALONE and (damage := _config_damage(run)):
            seen = RunStatus(JobState.FAILED, error=damage)
            checked[job.id] = replace(status, state=JobState.FAILED, run=seen, damage=damage)
    return checked


def _config_damage(run: Run) -> str:
    """Why config.yaml cannot be read; empty if it can, or if the run has not started."""
    try:
        if run.config_file.exists():
            run.provenance()
    except UserError as error:
        return str(error)
    return ""


def results_to_withdraw(todo: Sequence[Job], statuses: Mapping[str, JobStatus]) -> list[Job]:
    """The jobs to start that have a result already, which does not count."""
    return [job for job in todo if statuses[job.id].run.result_problem]


def jobs_to_start(
    grid_plan: Plan, statuses: Mapping[str, JobStatus], grid_dir: GridDir, *, on_slurm: bool = False
) -> list[Job]:
    """The jobs to start: runs that are not done, corpora that they need and that are not prepared, and the report.

    The report is left out only if it is up to date. A job that is queued behind a job that has to be started again would
    never start, so it is started again too. Held back are jobs in state unknown, which are left to those who have submitted
    them, runs whose folder is damaged, which would be refused, on Slurm those that run elsewhere, since a job would wait for
    them in vain, and the jobs that need one of them.
    """
    due: set[str] = set()
    held: set[str] = set()
    for job in grid_plan.jobs:  # each comes after the jobs that it needs
        status = statuses[job.id]
        never_starts = status.state is JobState.QUEUED and not due.isdisjoint(job.needs)
        needs_held = not job.runs_after_failures and not held.isdisjoint(job.needs)
        is_held = status.state is JobState.UNKNOWN or status.damage or (on_slurm and status.runs_elsewhere)
        if is_held or (needs_held and status.state is not JobState.DONE):
            held.add(job.id)
        elif never_starts or not (status.is_in_queue or status.state is JobState.DONE):
            due.add(job.id)
    runs = {job.id for job in grid_plan.jobs if job.is_run and job.id in due}
    corpora = {name for job in grid_plan.jobs if job.id in runs for name in job.needs}

    def is_to_start(job: Job) -> bool:
        if job.is_run or job.id in held:
            return job.id in runs
        if job.kind == "prepare":
            return job.id in corpora & due
        return bool(runs) or job.id in due or _is_outdated(grid_plan, statuses[job.id], grid_dir)

    return [job for job in grid_plan.jobs if is_to_start(job)]


def states_of_others(
    grid_plan: Plan, todo: Sequence[Job], statuses: Mapping[str, JobStatus]
) -> dict[str, JobState]:
    """The states of the jobs that are not started, by job id: done, also corpora that nothing needs; or why they are not."""
    started = {job.id for job in todo}
    states: dict[str, JobState] = {}
    for job in grid_plan.jobs:
        state = statuses[job.id].state
        if job.id in started:
            continue
        if state is JobState.DONE or not job.is_run:
            states[job.id] = JobState.DONE
        else:
            is_cause = state in (JobState.FAILED, JobState.UNKNOWN)
            states[job.id] = state if is_cause else JobState.BLOCKED
    return states


def _is_outdated(grid_plan: Plan, status: JobStatus, grid_dir: GridDir) -> bool:
    """Whether a finished report was made from other results than the present ones, or was asked something else."""
    if status.state is not JobState.DONE:
        return False
    result = grid_dir.run(status.job).result()
    return result.get("settings") != grid_plan.report_settings or result.get(
        "inputs"
    ) != grid_dir.result_checksums(status.job.needs)
