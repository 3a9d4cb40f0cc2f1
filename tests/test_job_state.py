"""The state of a job, as one table over everything that decides it."""

from __future__ import annotations

from fnmatch import fnmatch
from itertools import product

import pytest

from metapt.launch.job_state import JobState, job_state

FOLDERS = ("waiting", "running", "interrupted", "failed", "done")
QUEUE = {  # entry in Slurm's queue
    "absent": None,
    "pending": ("PENDING", "Priority"),
    "requeued": ("REQUEUED", "None"),
    "never": ("PENDING", "DependencyNeverSatisfied"),
    "running": ("RUNNING", "None"),
    "suspended": ("SUSPENDED", "None"),
    "completing": ("COMPLETING", "None"),
}
NEEDED = {  # the jobs that it needs
    "none": [],
    "done": ["done", "done"],
    "open": ["done", "running", "queued", "waiting", "ending"],
    "some-interrupted": ["done", "interrupted"],
    "some-failed": ["done", "failed"],
    "some-lost": ["done", "lost"],
    "some-blocked": ["done", "blocked"],
    "unknown": ["done", "unknown"],
    "all-interrupted": ["interrupted"],
    "all-failed": ["failed", "blocked"],
    "open-and-failed": ["running", "failed"],
}
KINDS = {  # is_run, runs_after_failures
    "run": (True, False),
    "corpus": (False, False),
    "report": (False, True),
}
TABLE = """
folder      queue       kind            needed              submitted submitter state

# the entry in the queue decides; only a run's result, or that of a job that Slurm is ending, comes first
done        *           run             *                   *         *         done
done        completing  corpus|report   *                   *         *         done
done        pending     corpus|report   *                   *         *         queued
done        requeued    corpus|report   *                   *         *         queued
done        never       corpus|report   *                   *         *         blocked
done        running     corpus|report   *                   *         *         running
done        suspended   corpus|report   *                   *         *         running
not-done    pending     *               *                   *         *         queued
not-done    requeued    *               *                   *         *         queued
not-done    never       *               *                   *         *         blocked
not-done    running     *               *                   *         *         running
not-done    suspended   *               *                   *         *         running
not-done    completing  *               *                   *         *         ending

# without an entry, what the folder says
done        absent      corpus|report   *                   *         *         done
failed      absent      *               *                   *         *         failed
interrupted absent      *               *                   yes|never *         interrupted
running     absent      *               *                   *         *         running

# another user has submitted it, or this one on another cluster: it may be in a queue that is not visible
waiting     absent      *               *                   elsewhere *         unknown
interrupted absent      *               *                   elsewhere *         unknown

# nothing in the folder either: a run or a corpus is blocked by one job that will not be done
waiting     absent      run|corpus      some-failed         yes|never *         blocked
waiting     absent      run|corpus      some-lost           yes|never *         blocked
waiting     absent      run|corpus      some-blocked        yes|never *         blocked
waiting     absent      run|corpus      all-failed          yes|never *         blocked
waiting     absent      run|corpus      open-and-failed     yes|never *         blocked
waiting     absent      run|corpus      *-interrupted       yes|never no        blocked
waiting     absent      run|corpus      *-interrupted       yes|never active    waiting

# the report only by having no result at all to show
waiting     absent      report          all-failed          yes|never *         blocked
waiting     absent      report          all-interrupted     yes|never no        blocked
waiting     absent      report          all-interrupted     yes|never active    waiting
waiting     absent      report          open-and-failed     yes|never *         waiting

# Slurm had it, and has nothing to wait for: it left the queue before it started
waiting     absent      *               open|unknown        yes|never *         waiting
waiting     absent      *               none|done           yes       no        lost
waiting     absent      *               none|done           yes       active    waiting
waiting     absent      *               none|done           never     *         waiting
waiting     absent      report          some-*              yes       no        lost
waiting     absent      report          some-*              yes       active    waiting
waiting     absent      report          some-*              never     *         waiting
"""
ROWS = [line.split() for line in TABLE.splitlines() if line and line[0] != "#"][1:]
COMBINATIONS = list(product(FOLDERS, QUEUE, KINDS, NEEDED, ("yes", "elsewhere", "never"), ("active", "no")))


def matches(pattern: str, value: str) -> bool:
    """Whether a cell of the table has a value: `*` is any text, `|` separates alternatives."""
    return any(value != "done" if part == "not-done" else fnmatch(value, part) for part in pattern.split("|"))


def state_of(folder: str, queue: str, kind: str, needed: str, submitted: str, submitter: str) -> JobState:
    is_run, runs_after_failures = KINDS[kind]
    return job_state(
        JobState(folder),
        QUEUE[queue],
        needed=[JobState(state) for state in NEEDED[needed]],
        is_run=is_run,
        runs_after_failures=runs_after_failures,
        was_submitted=submitted != "never",
        is_foreign=submitted == "elsewhere",
        is_submitter_active=submitter == "active",
    )


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("queue", QUEUE)
def test_every_combination_has_the_state_of_its_one_row(folder: str, queue: str) -> None:
    for case in COMBINATIONS:
        if case[:2] == (folder, queue):
            (row,) = (row for row in ROWS if all(map(matches, row, case)))
            assert state_of(*case) == row[-1], (case, row)


def test_every_row_and_every_state_occurs() -> None:
    used = [row for row in ROWS if any(all(map(matches, row, case)) for case in COMBINATIONS)]
    assert used == ROWS
    assert {row[-1] for row in ROWS} == set(JobState)
