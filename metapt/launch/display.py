"""Plans, progress and outcomes as text: for people, on a terminal or in a log."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from shlex import join

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from metapt.launch.executors import View
from metapt.launch.jobs import Job, Plan
from metapt.launch.root import Root
from metapt.launch.status import RunStatus, run_status

LINE_SECONDS = 10.0
TERMINAL_SECONDS = 1.0
COLUMNS = ("job", "state", "at", "loss", "tokens/s", "left")


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
            lines.append(f"failed  {job.id}: {run_status(root.run(job).path).last_error_line}")
            lines.append(f"        all of it: {root.log_file(job, 'err')}")
        elif states[job.id] == "blocked":
            lines.append(f"blocked {job.id}: a job that it needs is not done")
    return lines


def status_table(plan: Plan, states: Mapping[str, str], statuses: Mapping[str, RunStatus]) -> Table:
    """One row per job with its progress."""
    table = Table(*COLUMNS, box=None, pad_edge=False, header_style="bold")
    for job in plan.jobs:
        table.add_row(*_row(job, states[job.id], statuses[job.id]))
    return table


def print_status(plan: Plan, states: Mapping[str, str], root: Root) -> None:
    """What `python -m metapt.status` prints."""
    statuses = {job.id: run_status(root.run(job).path) for job in plan.jobs}
    running = {name: "running" for name, status in statuses.items() if status.state == "running"}
    states = {**states, **running}  # Slurm's queue holds those as well
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(status_table(plan, states, statuses))
    counts = Counter(states.values())
    console.print(f"\n{counts['done']} of {len(plan.jobs)} done" + _others(counts))
    for line in failures(plan, states, root):
        console.print(Text(line))


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


def _row(job: Job, state: str, status: RunStatus) -> list[str | Text]:
    style = {"done": "green", "failed": "red", "blocked": "red", "running": "cyan"}.get(state, "")
    return [job.id, Text(state, style=style), *_cells(status)]


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
