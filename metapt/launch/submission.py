"""What `python -m metapt.submit` does: plan, leave out what is done, and hand the rest to where it runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

from metapt.config import SubmitConfig, identity
from metapt.data import DEMO_NOTICE
from metapt.data.uner import open_collection, source_sets
from metapt.errors import OperationalError, UserError
from metapt.launch import executors, slurm
from metapt.launch.display import describe_plan, summary, view
from metapt.launch.grid import plan
from metapt.launch.jobs import Job, Plan
from metapt.launch.requirements import requirements
from metapt.launch.root import Root
from metapt.launch.status import run_status

NOTHING_TO_DO = ("done", "queued")


def submit(config: SubmitConfig) -> None:
    """Runs a grid, or hands it to Slurm; with dry_run, only says what it would do.

    Raises:
        UserError: mistakes in the grid, or a run folder that holds another configuration.
        OperationalError: jobs have failed, another submitter is at work, or Slurm refuses.
        Interrupted: Ctrl-C; the same command goes on.
    """
    grid_plan, root = plan(config), Root(config.root)
    _refuse_unknown_sources(grid_plan)
    _refuse_other_configurations(grid_plan, root)
    if config.dry_run:
        states = current_states(grid_plan, root)
        print(describe_plan(grid_plan, states, to_do(grid_plan, states, root)))
        print("\n".join(["", *requirements(grid_plan, config.cluster)]))
        return
    with root.claimed():
        run_plan(grid_plan, root, config)


def run_plan(grid_plan: Plan, root: Root, config: SubmitConfig) -> None:
    """Runs what is to do of a plan, as the holder of its root."""
    root.write_plan(grid_plan)
    states = current_states(grid_plan, root)
    todo = to_do(grid_plan, states, root)
    if not todo:
        counts = Counter(states.values())
        waiting = f", {counts['queued']} in Slurm's queue" if counts["queued"] else ""
        print(f"{root.path}: nothing to do: {counts['done']} of {len(grid_plan.jobs)} jobs are done{waiting}")
        return
    if config.cluster.name != "slurm" and "queued" in states.values():
        raise OperationalError(
            f"{root.path}: jobs of this grid are in Slurm's queue; go on with cluster=slurm, or scancel them"
        )
    if config.cluster.name == "slurm":
        print(slurm.hand_over(grid_plan, todo, root, config.cluster))
        return
    started = time.monotonic()
    schedule = executors.Schedule(
        grid_plan, todo, root, executors.launcher(root, config.cluster), executors.parallelism(config.cluster)
    )
    with view(root, grid_plan) as progress:
        schedule.run(progress)
    print(summary(grid_plan, schedule.states, root, time.monotonic() - started))
    if any(each.data.name == "demo" for each in grid_plan.configs.values()):
        print(DEMO_NOTICE)
    bad = Counter(state for state in schedule.states.values() if state != "done")
    if bad:
        raise OperationalError(
            f"{root.path}: " + ", ".join(f"{count} {state}" for state, count in bad.items())
        )


def current_states(grid_plan: Plan, root: Root) -> dict[str, str]:
    """The state of every job: that of its folder (status.RunStatus), or queued where Slurm has it."""
    states = {job.id: run_status(root.path / job.run_dir).state for job in grid_plan.jobs}
    queued = {name: "queued" for name in slurm.queued(root) if states.get(name, "done") != "done"}
    return states | queued


def to_do(grid_plan: Plan, states: Mapping[str, str], root: Root) -> list[Job]:
    """The jobs to start: runs that are not done, the corpora that they need, and the report if anything is newer.

    A corpus is prepared again whenever a run is to be made from it: if it stands, that takes a moment.
    """
    runs = {job.id for job in grid_plan.jobs if job.is_run and states[job.id] not in NOTHING_TO_DO}
    corpora = {name for job in grid_plan.jobs if job.id in runs for name in job.needs}

    def is_due(job: Job) -> bool:
        if job.is_run:
            return job.id in runs
        if job.kind == "prepare":
            return job.id in corpora and states[job.id] != "queued"
        if runs:
            return True
        return states[job.id] != "queued" and (states[job.id] != "done" or _is_stale(job, grid_plan, root))

    return [job for job in grid_plan.jobs if is_due(job)]


def _is_stale(report: Job, grid_plan: Plan, root: Root) -> bool:
    """Whether a run was finished after the report."""
    made = root.run(report).result_file.stat().st_mtime_ns
    results = (root.run(job).result_file for job in grid_plan.jobs if job.is_run)
    return any(result.stat().st_mtime_ns > made for result in results if result.exists())


def _refuse_unknown_sources(grid_plan: Plan) -> None:
    """Raises UserError for a source that the labelled data does not have: before pretraining, not after it."""
    configs = [grid_plan.configs[job.id] for job in grid_plan.jobs if job.kind == "finetune"]
    distinct = {(config.source, str(config.data)): config for config in configs}
    complaints = []
    for config in distinct.values():
        try:
            source_sets(open_collection(config.data), config.source)
        except UserError as error:
            complaints.append(str(error))
    if complaints:
        raise UserError("\n".join(dict.fromkeys(complaints)))


def _refuse_other_configurations(grid_plan: Plan, root: Root) -> None:
    """Raises UserError if a run of the grid was begun with another configuration: it would be taken for this one."""
    complaints = []
    for job in grid_plan.jobs:
        run = root.run(job)
        if job.id in grid_plan.configs and run.config_file.exists():
            differing = run.differences(identity(grid_plan.configs[job.id]))
            complaints += [f"{run.path}: {line}" for line in differing]
    if complaints:
        listed = "".join(f"\n  {line}" for line in complaints)
        raise UserError(f"runs with another configuration; give another root=, or delete these:{listed}")
