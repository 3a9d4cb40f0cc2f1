"""Which source each job of a submission runs.

A run that was interrupted keeps the source that trained it so far, so that it does not mix two. A run that failed takes
the present one, since the user may have repaired it. `code=first` and `code=now` decide otherwise for all runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from metapt.errors import listed
from metapt.launch.code_snapshot import (
    CodeSnapshot,
    existing_snapshot,
    live_code,
    shown_commit,
    take_snapshot,
)
from metapt.launch.grid_status import JobStatus
from metapt.launch.job_state import JobState
from metapt.launch.jobs import Job
from metapt.provenance import source_hash, sources
from metapt.runs import Run

SHOWN = 3  # names of runs in a note


@dataclass(frozen=True)
class JobSources:
    """The sources of the jobs of a submission.

    Attributes:
        present: the source of every job that is not in `kept`.
        kept: the copies that runs keep, by job id.
        notes: what the user should know about runs whose source differs from the present one.
    """

    present: CodeSnapshot
    kept: Mapping[str, CodeSnapshot] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def of(self, job: Job) -> CodeSnapshot:
        return self.kept.get(job.id, self.present)


def choose_sources(
    code: str, root: Path, todo: Sequence[Job], statuses: Mapping[str, JobStatus]
) -> JobSources:
    """The source of each job to start. Writes nothing.

    Args:
        code: the key `code` of `metapt submit`: snapshot, first, now or live.
        root: the grid folder.
    """
    present = live_code() if code == "live" else take_snapshot(root)
    digest = source_hash()
    kept: dict[str, CodeSnapshot] = {}
    notes: dict[str, list[str]] = {}
    for job in todo:
        run, has_failed = Run(root / job.run_dir), statuses[job.id].run.state is JobState.FAILED
        if not (job.is_run and run.config_file.exists()):
            continue  # it has not started
        used = sources(run.provenance(), run.starts())
        last = used[0 if code == "first" else -1]
        if last.get("source") == digest:
            continue
        keeps = code == "first" or (code == "snapshot" and not has_failed)
        copy = existing_snapshot(root, last["code"]) if last.get("code") else None
        if keeps and copy:
            kept[job.id] = copy
        state = "failed" if has_failed else "interrupted"
        notes.setdefault(_note(state, shown_commit(last["git_commit"]), keeps, copy), []).append(job.id)
    lines = [f"{len(ids)} {note}: {listed(ids, SHOWN)}" for note, ids in notes.items()]
    return JobSources(present, kept, tuple(lines))


def _note(state: str, before: str, keeps: bool, copy: CodeSnapshot | None) -> str:
    if keeps and copy:
        return f"{state} run(s) keep the source that they have run so far ({before}); code=now takes the present one"
    if keeps:
        return f"{state} run(s) continue with the present source, since there is no copy of theirs ({before})"
    return f"{state} run(s) continue with the present source instead of theirs ({before}); code=first keeps theirs"
