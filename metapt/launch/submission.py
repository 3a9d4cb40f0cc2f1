"""What `python -m metapt.submit` does: plan, leave out what is done, and hand the rest to where it runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

from metapt.config import SubmitConfig
from metapt.data import DEMO_NOTICE
from metapt.data.labelled_sets import open_collection, source_sets
from metapt.errors import OperationalError, UserError
from metapt.launch import executors, slurm, slurm_queue
from metapt.launch.code_snapshot import code
from metapt.launch.display import describe_plan, summary, view
from metapt.launch.grid import plan
from metapt.launch.grid_dir import Root
from metapt.launch.jobs import Job, Plan
from metapt.launch.requirements import requirements
from metapt.launch.run_status import run_status

IN_QUEUE = ("queued", "started")
NOTHING_TO_DO = ("done", *IN_QUEUE)


def submit(config: SubmitConfig) -> None:
    """Runs a grid, or hands it to Slurm; with dry_run, only says what it would do.

    Raises:
        UserError: mistakes in the grid.
        OperationalError: jobs have failed, another submitter is at work, or Slurm refuses.
        Interrupted: Ctrl-C; the same command goes on.
    """
    grid_plan, root = plan(config), Root(config.root)
    _refuse_unknown_sources(grid_plan)
    if config.dry_run != "false":
        dry_run(grid_plan, root, config)
        return
    with root.claimed():
        run_plan(grid_plan, root, config)


def dry_run(grid_plan: Plan, root: Root, config: SubmitConfig) -> None:
    """Prints the plan and what it needs; for Slurm the batch scripts, and with dry_run=test what sbatch says to each.

    Raises:
        OperationalError: sbatch would refuse some.
    """
    states = current_states(grid_plan, root)
    todo = to_do(grid_plan, states, root)
    print(describe_plan(grid_plan, states, todo))
    print("\n".join(["", *requirements(grid_plan, todo, config.cluster)]))
    if config.cluster.name != "slurm":
        return
    source, is_test = code(root.path, config.code == "snapshot"), config.dry_run == "test"
    refused = 0
    for name, script in slurm.scripts(grid_plan, todo, root, config.cluster, source, is_test=is_test):
        print(f"\n==> {name}\n{script}")
        if is_test:
            accepted, answer = slurm.asked(script)
            refused += not accepted
            print(f"{'accepted' if accepted else 'REFUSED'}: {answer}")
    if refused:
        raise OperationalError(f"sbatch would refuse {refused} of these scripts; nothing was submitted")


def run_plan(grid_plan: Plan, root: Root, config: SubmitConfig) -> None:
    """Runs what is to do of a plan, as the holder of its root."""
    states = current_states(grid_plan, root)
    root.write_plan(grid_plan)
    if others := root.other_runs(grid_plan):
        print(
            f"{root.path}: {len(others)} run(s) that this plan does not have, such as {others[0]}, stay as they are"
        )
    todo = to_do(grid_plan, states, root)
    if not todo:
        counts = Counter(states.values())
        queued = sum(counts[state] for state in IN_QUEUE)
        waiting = f", {queued} in Slurm's queue" if queued else ""
        print(f"{root.path}: nothing to do: {counts['done']} of {len(grid_plan.jobs)} jobs are done{waiting}")
        return
    if config.cluster.name != "slurm" and set(IN_QUEUE) & set(states.values()):
        raise OperationalError(
            f"{root.path}: jobs of this grid are in Slurm's queue; go on with cluster=slurm, or scancel them"
        )
    source = code(root.path, config.code == "snapshot")
    source.write()
    print(source)
    if config.cluster.name == "slurm":
        print(slurm.hand_over(grid_plan, todo, root, config.cluster, source))
        return
    started = time.monotonic()
    schedule = executors.Schedule(
        grid_plan,
        todo,
        root,
        executors.launcher(root, source, config.cluster),
        executors.parallelism(config.cluster),
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
    """The state of every job: that of its folder (status.RunStatus); where Slurm has it, queued or started."""
    entries = slurm_queue.entries(root)  # before the folders: what ends in between is seen as done
    states = {}
    for job in grid_plan.jobs:
        state, entry = run_status(root.path / job.run_dir).state, entries.get(job.id)
        if entry and not entry.is_hopeless and (state != "done" or not job.is_run):
            state = "queued" if entry.waits else "started"
        states[job.id] = state
    return states


def to_do(grid_plan: Plan, states: Mapping[str, str], root: Root) -> list[Job]:
    """The jobs to start: runs that are not done, the corpora that they need, and the report if it lacks anything.

    A job that waits in the queue for one that is to be started again would wait in vain: it is started again too.
    A corpus is prepared again whenever a run is to be made from it: if it stands, that takes a moment.
    """
    void: set[str] = set()
    for job in grid_plan.jobs:  # each after those that it needs
        waits_in_vain = states[job.id] == "queued" and not void.isdisjoint(job.needs)
        if states[job.id] not in NOTHING_TO_DO or waits_in_vain:
            void.add(job.id)
    runs = {job.id for job in grid_plan.jobs if job.is_run and job.id in void}
    corpora = {name for job in grid_plan.jobs if job.id in runs for name in job.needs}

    def is_due(job: Job) -> bool:
        if job.is_run:
            return job.id in runs
        if job.kind == "prepare":
            return job.id in corpora and states[job.id] not in IN_QUEUE
        return bool(runs) or states[job.id] not in NOTHING_TO_DO or _is_stale(job, states, root)

    return [job for job in grid_plan.jobs if is_due(job)]


def _is_stale(report: Job, states: Mapping[str, str], root: Root) -> bool:
    """Whether the report is done, of other results than those that are there now."""
    return states[report.id] == "done" and root.run(report).result().get("inputs") != root.results(
        report.needs
    )


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
