"""The work of `metapt submit`: make the plan, leave out what is done, and run the rest here or submit it to Slurm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from metapt.config import SubmitConfig
from metapt.errors import OperationalError, UserError, listed
from metapt.files import write_atomically
from metapt.launch import slurm
from metapt.launch.display import describe_plan
from metapt.launch.due_jobs import (
    current_statuses,
    jobs_to_start,
    results_to_withdraw,
    states_of_others,
    with_checked_folders,
)
from metapt.launch.grid import plan
from metapt.launch.grid_dir import GridDir
from metapt.launch.grid_status import JobStatus
from metapt.launch.job_sources import JobSources, choose_sources
from metapt.launch.job_state import JobState
from metapt.launch.jobs import Job, Plan
from metapt.launch.local_run import run_here
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
    statuses = with_checked_folders(grid_plan, current_statuses(grid_plan, grid_dir), grid_dir)
    todo = jobs_to_start(grid_plan, statuses, grid_dir, on_slurm=config.cluster.name == "slurm")
    print(describe_plan(grid_plan, statuses, todo))
    for status in statuses.values():
        if status.damage:
            print(_damage(status))
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
    """Runs or submits the jobs of a plan that are not done. The caller holds the lock of the grid.

    Raises:
        OperationalError: jobs have failed or cannot be submitted. The others have been run or submitted, unless the message says that
            nothing was.
    """
    statuses = with_checked_folders(grid_plan, current_statuses(grid_plan, grid_dir), grid_dir)
    if others := grid_dir.other_runs(grid_plan):
        print(
            f"{grid_dir.path}: {len(others)} run(s) that are not in this plan are kept, such as {others[0]}"
        )
    on_slurm = config.cluster.name == "slurm"
    todo = jobs_to_start(grid_plan, statuses, grid_dir, on_slurm=on_slurm)
    if on_slurm and (names := [name for name, status in statuses.items() if status.runs_elsewhere]):
        print(
            f"{len(names)} job(s) are running outside of the queue that is visible here; they are not submitted again: "
            f"{listed(names, 3)}"
        )
    if left := [status for status in statuses.values() if status.state is JobState.UNKNOWN]:
        print(_left_to_others(left))
    damaged = [status for status in statuses.values() if status.damage]
    for status in damaged:
        print(_damage(status))
        write_atomically(grid_dir.run(status.job).error_file, f"{status.damage}\n")
    if todo:
        _start(grid_plan, todo, statuses, grid_dir, config)
    else:
        _write_report_settings(grid_plan, grid_dir)
        print(_nothing_to_do(grid_dir, statuses))
    if damaged:
        raise OperationalError(f"{grid_dir.path}: {len(damaged)} damaged run(s) were not started, see above")


def _start(
    grid_plan: Plan,
    todo: list[Job],
    statuses: Mapping[str, JobStatus],
    grid_dir: GridDir,
    config: SubmitConfig,
) -> None:
    """Runs or submits jobs."""
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
    others = states_of_others(grid_plan, todo, statuses)
    run_here(
        grid_plan, todo, others, grid_dir, config.cluster, _write_sources(config, grid_dir, todo, statuses)
    )


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


def _write_report_settings(grid_plan: Plan, grid_dir: GridDir) -> None:
    """Writes what a queued report is asked into plan.json, whose jobs are still those that were submitted."""
    submitted = grid_dir.read_plan() if grid_dir.plan_file.exists() else grid_plan
    asked = replace(
        submitted,
        comparisons=grid_plan.comparisons,
        targets=grid_plan.targets,
        margin=grid_plan.margin,
    )
    if asked != submitted or not grid_dir.plan_file.exists():
        grid_dir.write_plan(asked)


def _nothing_to_do(grid_dir: GridDir, statuses: Mapping[str, JobStatus]) -> str:
    done = sum(status.state is JobState.DONE for status in statuses.values())
    in_queue = sum(status.is_in_queue for status in statuses.values())
    queued = f", {in_queue} in Slurm's queue" if in_queue else ""
    page = grid_dir.path / "report" / "index.html"
    report = f"; report: {page.absolute()}" if page.exists() else ""
    return f"{grid_dir.path}: nothing to do: {done} of {len(statuses)} jobs are done{queued}{report}"


def _withdrawal(status: JobStatus) -> str:
    return (
        f"{status.job.id}: its result does not count and is withdrawn, since {status.run.result_problem}; "
        "it resumes from its newest intact checkpoint"
    )


def _damage(status: JobStatus) -> str:
    return (
        f"{status.job.id}: is not started, nor are the jobs that need it, since {status.damage}; "
        "restore this file, or delete the folder of the run to start it over"
    )


def _left_to_others(left: Sequence[JobStatus]) -> str:
    names, users = [status.job.id for status in left], dict.fromkeys(status.submitted_by for status in left)
    return (
        f"{len(left)} job(s) were submitted by {', '.join(users)} and may be in a queue that is not visible here; "
        f"they are not submitted again: {listed(names, 3)}"
    )
