"""Plans, progress and outcomes as text: for people, on a terminal or in a log."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from metapt.launch.grid_dir import Root
from metapt.launch.grid_status import JobStatus, Overview
from metapt.launch.jobs import Job, Plan
from metapt.launch.run_status import RunStatus, run_status

if TYPE_CHECKING:
    from metapt.launch.executors import View

LINE_SECONDS = 10.0
TERMINAL_SECONDS = 1.0
COLUMNS = ("job", "state", "at", "loss", "tokens/s", "left")
URGENCY = (
    "failed",
    "lost",
    "running",
    "interrupted",
    "queued",
    "blocked",
    "waiting",
    "done",
)  # what is shown where not all fits


def describe_plan(plan: Plan, states: Mapping[str, str], todo: Collection[Job]) -> str:
    """The whole plan: of each job the state, what it waits for, and the command; then the totals."""
    due = {job.id for job in todo}
    width = max(len(job.id) for job in plan.jobs)
    lines = [f"{'job':{width}}  {'now':11}  waits for"]
    for job in plan.jobs:
        needs = ", ".join(job.needs) if len(job.needs) < 3 else f"all the {len(job.needs)} jobs above"
        lines.append(f"{job.id:{width}}  {states[job.id]:11}  {needs or '-'}")
        lines.append(f"    python {join([*job.program, *job.argv])}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(job.kind for job in plan.jobs).items())
    lines += ["", f"grid {plan.grid}: {len(plan.jobs)} jobs ({kinds}); {len(due)} to do"]
    return "\n".join(lines)


def summary(plan: Plan, states: Mapping[str, str], root: Root, seconds: float) -> str:
    """How it ended: the counts, and every job that is not done with the last line of its error."""
    done = sum(state == "done" for state in states.values())
    lines = [f"{done} of {len(plan.jobs)} jobs done after {duration(seconds)} in {root.path}"]
    lines += failures(plan, states, root)
    return "\n".join(lines)


def failures(plan: Plan, states: Mapping[str, str], root: Root) -> list[str]:
    lines = []
    for job in plan.jobs:
        if states[job.id] == "failed":
            lines += _failed(job, run_status(root.run(job).path), root.log_file(job, "err"))
        elif states[job.id] == "blocked":
            lines.append(_blocked(job))
    return lines


def _failed(job: Job, run: RunStatus, log: Path) -> list[str]:
    return [f"failed  {job.id}: {run.last_error_line}", f"        all of it: {log}"]


def _blocked(job: Job) -> str:
    return f"blocked {job.id}: a job that it needs is not done"


def status_view(overview: Overview, rows: int | None = None) -> RenderableType:
    """What `python -m metapt.status` shows: a table of the jobs, the counts, and the errors.

    With `rows`, only so many jobs, those first that need a look or are at work.
    """
    jobs = list(overview.jobs)
    if rows is not None and rows < len(jobs):
        jobs = sorted(jobs, key=lambda status: URGENCY.index(status.state))[:rows]
    in_queue = any(status.entry for status in jobs)
    table = Table(*COLUMNS, *(["slurm"] if in_queue else []), box=None, pad_edge=False, header_style="bold")
    for status in jobs:
        table.add_row(
            *_row(status.job, status.state, status.run), *([Text(_place(status))] if in_queue else [])
        )
    counts = Counter(status.state for status in overview.jobs)
    total = f"{counts['done']} of {len(overview.jobs)} done{_others(counts)}"
    more = len(overview.jobs) - len(jobs)
    lines = ["", total + (f" ({more} not shown)" if more else "")]
    for status in jobs:
        if status.state == "failed":
            lines += _failed(status.job, status.run, status.log)
        elif status.state == "blocked":
            lines.append(_blocked(status.job))
        elif status.state == "lost":
            lines.append(f"lost    {status.job.id}: it left Slurm's queue before it began; submit again")
    if overview.others:
        numbers = [number for number in overview.others.values() if number]
        queued = f", {len(numbers)} of them in Slurm's queue ({', '.join(numbers[:5])})" if numbers else ""
        lines.append(
            f"not of the present plan, and not shown: {len(overview.others)} run(s){queued}, "
            f"such as {next(iter(overview.others))}"
        )
    lines.append(f"the log of a job: {overview.logs}")
    lines += [overview.queue_error] if overview.queue_error else []
    return Group(table, Text("\n".join(lines)))


def _place(status: JobStatus) -> str:
    """Number and reason in Slurm's queue."""
    if status.entry is None:
        return ""
    reason = "" if status.entry.reason in ("None", "") else f" ({status.entry.reason})"
    return status.entry.number + reason


@contextmanager
def view(root: Root, plan: Plan) -> Iterator[View]:
    """The progress display: live on a terminal, else a line every ten seconds and at every change."""
    console = Console(highlight=False)
    if not console.is_terminal:
        yield _LineView(root, plan)
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield _LiveView(root, plan, live)


class _LineView:
    def __init__(self, root: Root, plan: Plan):
        self._root, self._plan = root, plan
        self._seen: dict[str, str] = {}
        self._next = 0.0

    def update(self, states: Mapping[str, str]) -> None:
        for name, state in states.items():
            before = self._seen.get(name)
            if state != before and not (before is None and state in ("done", "waiting")):
                self._say(f"{name} {state}{self._reason(name, state)}")
        self._seen = dict(states)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_SECONDS
            self._say(self._line(states))

    def _line(self, states: Mapping[str, str]) -> str:
        parts = [f"{sum(state == 'done' for state in states.values())}/{len(states)} done"]
        for job in _running(self._plan, states):
            status = run_status(self._root.run(job).path)
            parts.append(" ".join([job.id, *filter(None, _labelled(status))]))
        return "; ".join(parts)

    def _reason(self, name: str, state: str) -> str:
        job = next(job for job in self._plan.jobs if job.id == name)
        return f": {run_status(self._root.run(job).path).last_error_line}" if state == "failed" else ""

    @staticmethod
    def _say(line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


class _LiveView:
    def __init__(self, root: Root, plan: Plan, live: Live):
        self._root, self._plan, self._live = root, plan, live
        self._started = time.monotonic()
        self._next = 0.0

    def update(self, states: Mapping[str, str]) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + TERMINAL_SECONDS
        counts = Counter(states.values())
        shown = Table(*COLUMNS, box=None, pad_edge=False, header_style="bold")
        for job in _running(self._plan, states):
            shown.add_row(*_row(job, "running", run_status(self._root.run(job).path)))
        overall = Table.grid(padding=(0, 1))
        text = f"{counts['done']}/{len(states)} jobs done{_others(counts)}, {duration(time.monotonic() - self._started)}"
        overall.add_row(ProgressBar(total=len(states), completed=counts["done"], width=24), text)
        self._live.update(Group(overall, shown))


def _running(plan: Plan, states: Mapping[str, str]) -> Sequence[Job]:
    return [job for job in plan.jobs if states[job.id] == "running"]


def _others(counts: Mapping[str, int]) -> str:
    return "".join(f", {count} {state}" for state, count in counts.items() if state != "done")


def _row(job: Job, state: str, status: RunStatus) -> list[Text]:
    style = {"done": "green", "failed": "red", "lost": "red", "blocked": "red", "running": "cyan"}.get(
        state, ""
    )
    return [Text(job.id), Text(state, style=style), *map(Text, _cells(status))]


def _cells(status: RunStatus) -> list[str]:
    """The columns after the state; empty where nothing is known."""
    at = f"{status.unit} {status.step}/{status.max_steps}" if status.step is not None else ""
    loss = f"{status.loss:.3f}" if status.loss is not None else ""
    rate = f"{status.tokens_per_second:,.0f}" if status.tokens_per_second is not None else ""
    left = duration(status.seconds_left) if status.seconds_left is not None else ""
    return [at, loss, rate, left]


def _labelled(status: RunStatus) -> list[str]:
    at, loss, rate, left = _cells(status)
    return [at, loss and f"loss {loss}", rate and f"{rate} tokens/s", left and f"{left} left"]


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
