"""The work of `metapt submit`: make the plan, leave out what is done, and run the rest here or submit it to Slurm."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from metapt.config import SubmitConfig
from metapt.data import DEMO_NOTICE
from metapt.errors import OperationalError, UserError, listed
from metapt.launch import executors, slurm, slurm_queue
from metapt.launch.display import describe_plan, progress_view, summary
from metapt.launch.grid import plan
from metapt.launch.grid_dir import GridDir
from metapt.launch.grid_status import JobStatus, job_statuses
from metapt.launch.job_sources import JobSources, choose_sources
from metapt.launch.job_state import JobState
from metapt.launch.jobs import Job, Plan
from metapt.launch.requirements import requirements
from metapt.launch.run_checks import check_plan


def submit(config: SubmitConfig) -> None:
    """Runs a grid, or submits it to Slurm; with dry_run, only prints what it would do.

    Raises:
        UserError: the grid has configuration errors.
        OperationalError: jobs have failed, another submitter holds the grid, or Slurm refuses a job.
        Interrupted: Ctrl-C; the same command resumes.
    """
    grid_plan, grid_dir = plan(config), GridDir(config.root)
    if config.dry_run != "false":
        dry_run(grid_plan, grid_dir, config)
        _print_refusals(grid_plan)
        return
    check_plan(grid_plan)
    with grid_dir.locked():
        run_plan(grid_plan, grid_dir, config)


def _print_refusals(grid_plan: Plan) -> None:
    """Prints why the plan cannot be submitted here: it can be looked at where its data are not."""
    try:
        check_plan(grid_plan)
    except UserError as error:
        lines = "".join(f"\n  {line}" for line in str(error).splitlines())
        print(f"\nnot ready, would be refused here:{lines}")


def dry_run(grid_plan: Plan, grid_dir: GridDir, config: SubmitConfig) -> None:
    """Prints the plan and its requirements; for Slurm also the batch scripts, and with dry_run=test sbatch's answers.

    Raises:
        OperationalError: sbatch would refuse some of them.
    """
    statuses = with_checked_weights(grid_plan, current_statuses(grid_plan, grid_dir), grid_dir)
    todo = jobs_to_start(grid_plan, statuses, grid_dir)
    print(describe_plan(grid_plan, statuses, todo))
    for job in results_to_withdraw(todo, statuses):
        print(_withdrawal(statuses[job.id]))
    print("\n".join(["", *requirements(grid_plan, todo, config.cluster)]))
    if config.cluster.name != "slurm":
        return
    if missing := slurm.missing_inputs(grid_plan, todo, grid_dir, config.cluster):
        print(f"to be downloaded first: {', '.join(missing)}")
    is_test, code = config.dry_run == "test", choose_sources(config.code, grid_dir.path, todo, statuses)
    print("\n".join(code.notes))
    refused = 0
    for name, script in slurm.batch_scripts(grid_plan, todo, grid_dir, config.cluster, code, is_test=is_test):
        print(f"\n==> {name}\n{script}")
        if is_test:
            accepted, answer = slurm.check_with_sbatch(script)
            refused += not accepted
            print(f"{'accepted' if accepted else 'REFUSED'}: {answer}")
    if refused:
        raise OperationalError(f"sbatch would refuse {refused} of these scripts; nothing was submitted")


def run_plan(grid_plan: Plan, grid_dir: GridDir, config: SubmitConfig) -> None:
    """Runs or submits the jobs of a plan that are not done. The caller holds the lock of the grid."""
    statuses = with_checked_weights(grid_plan, current_statuses(grid_plan, grid_dir), grid_dir)
    if others := grid_dir.other_runs(grid_plan):
        print(
            f"{grid_dir.path}: {len(others)} run(s) that are not in this plan are kept, such as {others[0]}"
        )
    todo = jobs_to_start(grid_plan, statuses, grid_dir)
    if left := [status for status in statuses.values() if status.state is JobState.UNKNOWN]:
        print(_left_to_others(left))
    if not todo:
        if not grid_dir.plan_file.exists():
            grid_dir.write_plan(grid_plan)
        print(_nothing_to_do(grid_dir, statuses))
        return
    for job in results_to_withdraw(todo, statuses):
        print(_withdrawal(statuses[job.id]))
        grid_dir.run(job).withdraw_result()
    if config.cluster.name == "slurm":
        code = _write_sources(config, grid_dir, todo, statuses)
        with grid_dir.submission_of(grid_plan):
            print(slurm.submit(grid_plan, todo, grid_dir, config.cluster, code))
        return
    if any(status.is_in_queue or status.state is JobState.ENDING for status in statuses.values()):
        raise OperationalError(
            f"{grid_dir.path}: jobs of this grid are in Slurm's queue; submit with cluster=slurm, or scancel them"
        )
    grid_dir.write_plan(grid_plan)
    _run_here(grid_plan, todo, grid_dir, config, _write_sources(config, grid_dir, todo, statuses))


def _run_here(
    grid_plan: Plan, todo: list[Job], grid_dir: GridDir, config: SubmitConfig, code: JobSources
) -> None:
    """Runs jobs on this machine. Raises OperationalError if any of them is not done at the end."""
    started = time.monotonic()
    launcher = executors.launcher(grid_dir, code, config.cluster)
    report = next((job for job in todo if job.kind == "report"), None)
    log = grid_dir.log_file(report, "out") if report else None
    before = log.stat().st_size if log and log.exists() else 0
    schedule = executors.Schedule(grid_plan, todo, grid_dir, launcher, executors.parallelism(config.cluster))
    with progress_view(grid_dir, grid_plan) as view:
        schedule.run(view)
    print(summary(grid_plan, schedule.states, grid_dir, time.monotonic() - started))
    if report and log and schedule.states[report.id] is JobState.DONE:
        print(f"\n{log.read_bytes()[before:].decode(errors='replace')}", end="")  # F1, verdicts, the page
    elif any(run_config.data.name == "demo" for run_config in grid_plan.configs.values()):
        print(DEMO_NOTICE)
    unfinished = Counter(state for state in schedule.states.values() if state is not JobState.DONE)
    if unfinished:
        counts = ", ".join(f"{count} {state}" for state, count in unfinished.items())
        raise OperationalError(f"{grid_dir.path}: {counts}")


def _write_sources(
    config: SubmitConfig, grid_dir: GridDir, todo: Sequence[Job], statuses: Mapping[str, JobStatus]
) -> JobSources:
    """Chooses the source of every job, copies the present one, and prints which it is."""
    code = choose_sources(config.code, grid_dir.path, todo, statuses)
    if any(code.of(job) is code.present for job in todo):
        code.present.write()
        print(code.present)
    for note in code.notes:
        print(note)
    return code


def _nothing_to_do(grid_dir: GridDir, statuses: Mapping[str, JobStatus]) -> str:
    done = sum(status.state is JobState.DONE for status in statuses.values())
    in_queue = sum(status.is_in_queue for status in statuses.values())
    queued = f", {in_queue} in Slurm's queue" if in_queue else ""
    return f"{grid_dir.path}: nothing to do: {done} of {len(statuses)} jobs are done{queued}"


def current_statuses(grid_plan: Plan, grid_dir: GridDir) -> dict[str, JobStatus]:
    """The status of every job of a plan, for the one submitter of its grid.

    Raises:
        OperationalError: jobs have been submitted, and squeue does not answer.
    """
    entries = slurm_queue.queue_entries(
        grid_dir
    )  # before the folders: a job that ends meanwhile is then done
    return job_statuses(grid_plan, grid_dir, entries, is_submitter_active=False)


def with_checked_weights(
    grid_plan: Plan, statuses: Mapping[str, JobStatus], grid_dir: GridDir
) -> dict[str, JobStatus]:
    """The statuses after the weights that jobs will fine-tune were compared with their checksums.

    A finished pretraining run whose weights are damaged is interrupted. `metapt status` compares sizes only.
    """
    needed = {
        name
        for job in grid_plan.jobs
        if job.kind == "finetune" and statuses[job.id].state is not JobState.DONE
        for name in job.needs
    }
    checked = dict(statuses)
    for name in sorted(needed):
        status = statuses[name]
        if status.state is JobState.DONE:
            problem = grid_dir.run(status.job).weights_problem()
            if problem:
                run = replace(status.run, state=JobState.INTERRUPTED, result_problem=problem)
                checked[name] = replace(status, state=JobState.INTERRUPTED, run=run)
    return checked


def results_to_withdraw(todo: Sequence[Job], statuses: Mapping[str, JobStatus]) -> list[Job]:
    """The jobs to start that have a result already, which does not count."""
    return [job for job in todo if statuses[job.id].run.result_problem]


def _withdrawal(status: JobStatus) -> str:
    return (
        f"{status.job.id}: its result does not count and is withdrawn, since {status.run.result_problem}; "
        "it resumes from its newest intact checkpoint"
    )


def jobs_to_start(grid_plan: Plan, statuses: Mapping[str, JobStatus], grid_dir: GridDir) -> list[Job]:
    """The jobs to start: runs that are not done, corpora that they need and that are not prepared, and the report.

    The report is left out only if it is up to date. A job that is queued behind a job that has to be started again would
    never start, so it is started again too. Jobs in state unknown, and jobs that need them, are left to those who have
    submitted them.
    """
    due: set[str] = set()
    held: set[str] = set()  # left to others
    for job in grid_plan.jobs:  # each comes after the jobs that it needs
        status = statuses[job.id]
        never_starts = status.state is JobState.QUEUED and not due.isdisjoint(job.needs)
        needs_held = not job.runs_after_failures and not held.isdisjoint(job.needs)
        if status.state is JobState.UNKNOWN or (needs_held and status.state is not JobState.DONE):
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
        return bool(runs) or job.id in due or _is_outdated(job, statuses[job.id], grid_dir)

    return [job for job in grid_plan.jobs if is_to_start(job)]


def _left_to_others(left: Sequence[JobStatus]) -> str:
    names, users = [status.job.id for status in left], dict.fromkeys(status.submitted_by for status in left)
    return (
        f"{len(left)} job(s) were submitted by {', '.join(users)} and may be in a queue that is not visible here; "
        f"they are not submitted again: {listed(names, 3)}"
    )


def _is_outdated(report: Job, status: JobStatus, grid_dir: GridDir) -> bool:
    """Whether a finished report was made from other results than the present ones."""
    if status.state is not JobState.DONE:
        return False
    return grid_dir.run(report).result().get("inputs") != grid_dir.result_checksums(report.needs)
