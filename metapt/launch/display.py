"""Plans, progress and results as text, for a terminal or a log."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import join
from statistics import fmean
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from metapt.errors import listed
from metapt.launch.grid_dir import GridDir
from metapt.launch.grid_status import GridStatus, JobStatus
from metapt.launch.job_state import JobState
from metapt.launch.jobs import Job, Plan
from metapt.launch.run_status import RunStatus, run_status

if TYPE_CHECKING:
    from metapt.launch.executors import ProgressView

LINE_SECONDS = 10.0
TERMINAL_SECONDS = 1.0
MANY_NEEDS = 3  # jobs with more inputs show only how many
COLUMNS = ("job", "state", "progress", "loss", "F1", "tokens/s", "time left")
SHOWN_FIRST = (  # which jobs a table shows if it has no room for all
    JobState.FAILED,
    JobState.LOST,
    JobState.UNKNOWN,
    JobState.RUNNING,
    JobState.ENDING,
    JobState.INTERRUPTED,
    JobState.QUEUED,
    JobState.BLOCKED,
    JobState.WAITING,
    JobState.DONE,
)
STYLES = {
    JobState.DONE: "green",
    JobState.RUNNING: "cyan",
    JobState.FAILED: "red",
    JobState.LOST: "red",
    JobState.BLOCKED: "red",
}


def describe_plan(plan: Plan, statuses: Mapping[str, JobStatus], todo: Collection[Job]) -> str:
    """The whole plan: the state, the needed jobs and the command of each job, then the totals."""
    id_width = max(len(job.id) for job in plan.jobs)
    state_width = max(map(len, JobState))
    lines = [f"{'job':{id_width}}  {'state':{state_width}}  needs"]
    for job in plan.jobs:
        needs = ", ".join(job.needs) if len(job.needs) < MANY_NEEDS else f"all {len(job.needs)} jobs above"
        lines.append(f"{job.id:{id_width}}  {statuses[job.id].state:{state_width}}  {needs or '-'}")
        lines.append(f"    python {join([*job.program, *job.argv])}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(job.kind for job in plan.jobs).items())
    lines += ["", f"grid {plan.grid}: {len(plan.jobs)} jobs ({kinds}); {len(todo)} to do"]
    return "\n".join(lines)


def summary(plan: Plan, states: Mapping[str, JobState], grid_dir: GridDir, seconds: float) -> str:
    """The result of running a plan: the number of finished jobs, and the jobs that failed, with their errors."""
    done = sum(state is JobState.DONE for state in states.values())
    lines = [f"{done} of {len(plan.jobs)} jobs done after {duration(seconds)} in {grid_dir.path}"]
    for job in plan.jobs:
        if states[job.id] is JobState.FAILED:
            lines += _failure(job, run_status(grid_dir.run(job).path), grid_dir.log_file(job, "err"))
        elif states[job.id] is JobState.BLOCKED:
            lines.append(_blocked(job))
    return "\n".join(lines)


def _failure(job: Job, run: RunStatus, log: Path) -> list[str]:
    return [f"failed  {job.id}: {run.last_error_line}", f"        full log: {log}"]


def _blocked(job: Job) -> str:
    return f"blocked {job.id}: a job that it needs is not done"


def status_view(status: GridStatus, rows: int | None = None) -> RenderableType:
    """The output of `metapt status`: a table of the jobs, the number of jobs in each state, and the errors.

    Args:
        rows: the most jobs to show; first come those that failed or are running.
    """
    jobs = list(status.jobs)
    if rows is not None and rows < len(jobs):
        jobs = sorted(jobs, key=lambda job: SHOWN_FIRST.index(job.state))[:rows]
    counts = Counter(job.state for job in status.jobs)
    total = f"{counts[JobState.DONE]} of {len(status.jobs)} done{_unfinished(counts)}"
    hidden = len(status.jobs) - len(jobs)
    lines = ["", total + (f" ({hidden} not shown)" if hidden else "")]
    for job in jobs:
        lines += _problem(job)
    if mixed := [f"{job.job.id} ({job.run.mixture})" for job in status.jobs if job.run.mixture]:
        lines.append(f"trained by more than one source or type of GPU: {listed(mixed, 5)}")
    if status.others:
        lines.append(_other_runs(status.others))
    if status.unrecorded:
        lines.append(
            f"a killed submitter left {len(status.unrecorded)} job(s) in Slurm's queue "
            f"({listed(status.unrecorded, 5)}); the next submission cancels them"
        )
    lines.append(f"log of a job: {status.logs}")
    if status.queue_error:
        lines.append(status.queue_error)
    return Group(_table(jobs), Text("\n".join(lines)))


def _table(jobs: Sequence[JobStatus]) -> Table:
    """One row per job, with a column for Slurm if any of them is in its queue."""
    in_queue = any(job.entry for job in jobs)
    table = Table(*COLUMNS, *(["slurm"] if in_queue else []), box=None, pad_edge=False, header_style="bold")
    for job in jobs:
        cells = _row(job.job, job.state, job.run)
        table.add_row(*cells, *([Text(_queue_cell(job))] if in_queue else []))
    return table


def _queue_cell(job: JobStatus) -> str:
    """Slurm job id, and the reason why the job is pending."""
    if job.entry is None:
        return ""
    reason = "" if job.entry.reason in ("None", "") else f" ({job.entry.reason})"
    return job.entry.slurm_id + reason


def _problem(job: JobStatus) -> list[str]:
    """Why a job is not done and will not be, if that is so."""
    if job.state is JobState.FAILED:
        return _failure(job.job, job.run, job.log)
    if job.state is JobState.BLOCKED:
        return [_blocked(job.job)]
    if job.state is JobState.LOST:
        return [f"lost    {job.job.id}: it left Slurm's queue before it started; submit again"]
    if job.state is JobState.UNKNOWN:
        return [f"unknown {job.job.id}: submitted by {job.submitted_by}; squeue does not show it here"]
    if job.run.result_problem:
        return [f"{job.state} {job.job.id}: its result does not count: {job.run.result_problem}"]
    return []


def _other_runs(others: Mapping[str, str]) -> str:
    slurm_ids = [slurm_id for slurm_id in others.values() if slurm_id]
    queued = f", {len(slurm_ids)} of them in Slurm's queue ({', '.join(slurm_ids[:5])})" if slurm_ids else ""
    return f"{len(others)} run(s) are not in this plan and not shown{queued}, such as {next(iter(others))}"


@contextmanager
def progress_view(grid_dir: GridDir, plan: Plan) -> Iterator[ProgressView]:
    """The progress display: a live table on a terminal, else a line every ten seconds and at every change."""
    console = Console(highlight=False)
    if not console.is_terminal:
        yield _LineProgress(grid_dir, plan)
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield _LiveProgress(grid_dir, plan, live)


class _LineProgress:
    def __init__(self, grid_dir: GridDir, plan: Plan):
        self._grid_dir, self._plan = grid_dir, plan
        self._previous: dict[str, JobState] = {}
        self._next = 0.0

    def update(self, states: Mapping[str, JobState]) -> None:
        for job in self._plan.jobs:
            state, before = states[job.id], self._previous.get(job.id)
            is_new = before is None and state in (JobState.DONE, JobState.WAITING)
            if state != before and not is_new:
                self._print(f"{job.id} {state}{self._error(job, state)}")
        self._previous = dict(states)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_SECONDS
            self._print(self._line(states))

    def _line(self, states: Mapping[str, JobState]) -> str:
        parts = [f"{sum(state is JobState.DONE for state in states.values())}/{len(states)} done"]
        for job in _running(self._plan, states):
            progress, loss, f1, rate, left = _cells(run_status(self._grid_dir.run(job).path))
            labelled = [
                progress,
                loss and f"loss {loss}",
                f1 and f"F1 {f1}",
                rate and f"{rate} tokens/s",
                left and f"{left} left",
            ]
            parts.append(" ".join([job.id, *filter(None, labelled)]))
        return "; ".join(parts)

    def _error(self, job: Job, state: JobState) -> str:
        if state is not JobState.FAILED:
            return ""
        return f": {run_status(self._grid_dir.run(job).path).last_error_line}"

    @staticmethod
    def _print(line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


class _LiveProgress:
    def __init__(self, grid_dir: GridDir, plan: Plan, live: Live):
        self._grid_dir, self._plan, self._live = grid_dir, plan, live
        self._started = time.monotonic()
        self._next = 0.0

    def update(self, states: Mapping[str, JobState]) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + TERMINAL_SECONDS
        table = Table(*COLUMNS, box=None, pad_edge=False, header_style="bold")
        for job in _running(self._plan, states):
            table.add_row(*_row(job, JobState.RUNNING, run_status(self._grid_dir.run(job).path)))
        counts = Counter(states.values())
        done, elapsed = counts[JobState.DONE], duration(time.monotonic() - self._started)
        overall = Table.grid(padding=(0, 1))
        overall.add_row(
            ProgressBar(total=len(states), completed=done, width=24),
            f"{done}/{len(states)} jobs done{_unfinished(counts)}, {elapsed}",
        )
        self._live.update(Group(overall, table))


def _running(plan: Plan, states: Mapping[str, JobState]) -> Sequence[Job]:
    return [job for job in plan.jobs if states[job.id] is JobState.RUNNING]


def _unfinished(counts: Mapping[JobState, int]) -> str:
    return "".join(f", {count} {state}" for state, count in counts.items() if state is not JobState.DONE)


def _row(job: Job, state: JobState, run: RunStatus) -> list[Text]:
    return [Text(job.id), Text(state, style=STYLES.get(state, "")), *map(Text, _cells(run))]


def _cells(run: RunStatus) -> list[str]:
    """The columns after the state; empty where nothing is known."""
    return [
        f"{run.unit} {run.step}/{run.max_steps}" if run.step is not None else "",
        f"{run.loss:.3f}" if run.loss is not None else "",
        _f1(run),
        f"{run.tokens_per_second:,.0f}" if run.tokens_per_second is not None else "",
        duration(run.seconds_left) if run.seconds_left is not None else "",
    ]


def _f1(run: RunStatus) -> str:
    """The mean F1 over the test sets, and F1 on the dev set, as far as they are known."""
    parts = []
    if run.test_f1:
        count = len(run.test_f1)
        parts.append(f"{fmean(run.test_f1.values()):.3f} on {count} test set{'' if count == 1 else 's'}")
    if run.dev_f1 is not None:
        parts.append(f"{run.dev_f1:.3f} on dev")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """A duration as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
