"""Jobs that `metapt submit` runs on this machine: progress, the summary, and the scores of the report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing

from metapt.config import ClusterConfig
from metapt.data import DEMO_NOTICE
from metapt.errors import OperationalError
from metapt.launch import executors
from metapt.launch.display import progress_view, summary
from metapt.launch.grid_dir import GridDir
from metapt.launch.job_sources import JobSources
from metapt.launch.job_state import JobState
from metapt.launch.jobs import Job, Plan


def run_here(
    grid_plan: Plan,
    todo: Sequence[Job],
    others: Mapping[str, JobState],
    grid_dir: GridDir,
    cluster: ClusterConfig,
    code: JobSources,
) -> None:
    """Runs jobs on this machine.

    Args:
        others: the states of the jobs that are not started.
    Raises:
        OperationalError: a job of the plan is not done at the end.
        UserError: there are too few GPUs.
    """
    started = time.monotonic()
    launcher = executors.launcher(grid_dir, code, cluster)
    report = next((job for job in todo if job.kind == "report"), None)
    log = grid_dir.log_file(report, "out") if report else None
    before = log.stat().st_size if log and log.exists() else 0
    schedule = executors.Schedule(todo, others, grid_dir, launcher, cluster.max_parallel)
    with closing(launcher), progress_view(grid_dir, grid_plan) as view:
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
