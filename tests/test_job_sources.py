"""The source of resumed runs: interrupted ones keep theirs, failed ones take the present one, and all of it is recorded."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import launch_fakes
import pytest
from launch_fakes import fake_plan, run_fake, wait_for

from metapt.config import ClusterConfig
from metapt.launch.code_snapshot import SUBPACKAGES
from metapt.launch.due_jobs import current_statuses
from metapt.launch.grid_dir import GridDir
from metapt.launch.job_sources import JobSources, choose_sources
from metapt.launch.run_status import run_status
from metapt.provenance import sources
from metapt.runs import Run

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source that a test may edit."""
    clone = tmp_path_factory.mktemp("clone")
    for package in ("metapt", *SUBPACKAGES):
        shutil.copytree(REPOSITORY / package, clone / package, ignore=shutil.ignore_patterns("__pycache__"))
    return clone


def submitter(clone: Path, root: Path, cluster: str, *words: str) -> subprocess.Popen[str]:
    """A submitter that runs the source in `clone`."""
    command = [sys.executable, launch_fakes.__file__, "submit", str(root), cluster, *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(clone), str(REPOSITORY / "tests")])}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=clone, env=environment
    )


def submit(clone: Path, root: Path, *words: str) -> str:
    """Runs the grid and returns what it prints."""
    return submitter(clone, root, "inline", *words).communicate(timeout=300)[0]


def edit(clone: Path) -> None:
    with (clone / "metapt/errors.py").open("a") as file:
        file.write("# edited\n")


def test_interrupted_runs_keep_their_source_and_failed_ones_take_the_present_one(
    clone: Path, tmp_path: Path
) -> None:
    words = ["code=snapshot", "pretrain/a=fail-once", "pretrain/b=stoppable"]
    first = submitter(clone, tmp_path, "inline", *words)
    wait_for(tmp_path / "pretrain/b/started")
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=300)
    edit(clone)
    output = submit(clone, tmp_path, *words)
    assert "1 interrupted run(s) keep the source that they have run so far (commit" in output
    assert "1 failed run(s) continue with the present source instead of theirs (commit" in output
    assert "6 of 6 jobs done" in output
    copies = {path.name for path in (tmp_path / "code").iterdir()}
    assert len(copies) == 2
    used = {name: used_by(Run(tmp_path / name)) for name in ("pretrain/a", "pretrain/b")}
    (kept,) = used["pretrain/b"]
    assert kept["code"] in copies
    assert [entry["code"] for entry in used["pretrain/a"]] == list(copies - {kept["code"]})  # it started over
    recorded = Run(tmp_path / "pretrain/a").provenance()
    assert recorded["code"] == kept["code"]
    assert [entry["step"] for entry in Run(tmp_path / "pretrain/a").starts()] == [0, 0]
    assert used_by(Run(tmp_path / "finetune/b"))[0]["code"] in copies - {kept["code"]}


def used_by(run: Run) -> list[Mapping[str, Any]]:
    return sources(run.provenance(), run.starts())


def choice(root: Path, code: str, *, has_failed: bool) -> JobSources:
    """The choice for a grid whose run pretrain/a was saved at step 4 by the source in GRID/code/old."""
    run = Run(root / "pretrain/a")
    run.start({"train": {"max_steps": 8}}, {})
    launch_fakes.save_checkpoint(run, 4)
    text = run.config_file.read_text()
    changed = {"source": "0123456789ab", "code": "old", "git_commit": "feedfeedfeedfeed"}
    lines = [
        f"  {name}: {changed[name]}" if (name := line.strip().partition(":")[0]) in changed else line
        for line in text.splitlines()
    ]
    run.config_file.write_text("\n".join(lines) + "\n")
    run.starts_file.write_text(json.dumps({**run.starts()[0], **changed}) + "\n")
    if has_failed:
        run.error_file.write_text("OSError: no space left\n")
    plan, grid_dir = fake_plan(root), GridDir(root)
    return choose_sources(code, root, plan.jobs, current_statuses(plan, grid_dir))


@pytest.mark.parametrize(
    ("code", "has_failed", "keeps"),
    [
        ("snapshot", False, True),
        ("snapshot", True, False),
        ("first", False, True),
        ("first", True, True),
        ("now", False, False),
        ("now", True, False),
        ("live", False, False),
    ],
)
@pytest.mark.parametrize("has_copy", [True, False], ids=["copy", "no copy"])
def test_each_choice(tmp_path: Path, code: str, has_failed: bool, keeps: bool, has_copy: bool) -> None:
    copy = tmp_path / "code/old"
    if has_copy:
        copy.mkdir(parents=True)
        (copy / "COMMIT").write_text("feedfeedfeedfeed\n")
    chosen = choice(tmp_path, code, has_failed=has_failed)
    a, b = (job for job in fake_plan(tmp_path).jobs if job.kind == "pretrain")
    assert (chosen.of(a).folder == copy) == (keeps and has_copy)
    assert chosen.of(b) is chosen.present
    (note,) = chosen.notes
    assert note.startswith(f"1 {'failed' if has_failed else 'interrupted'} run(s) ")
    assert note.endswith(": pretrain/a")
    assert "commit feedfeedfe" in note
    assert ("no copy of theirs" in note) == (keeps and not has_copy)


def test_a_run_that_another_source_resumes_records_both(tmp_path: Path) -> None:
    choice(tmp_path, "now", has_failed=False)
    run = Run(tmp_path / "pretrain/a")
    run.start({"train": {"max_steps": 8}}, {})
    first, second = used_by(run)
    assert (first["git_commit"], second["step"]) == ("feedfeedfeedfeed", 4)
    assert second["source"] != first["source"]
    run.start({"train": {"max_steps": 8}}, {})
    assert (len(used_by(run)), run.mixture()) == (2, "2 sources, 0 types of GPU")
    assert [entry["reason"] for entry in run.starts()] == ["new", "resumed", "resumed"]
    assert run_status(run.path).mixture == run.mixture()


def test_jobs_of_different_sources_are_in_different_arrays(tmp_path: Path, slurm_commands: Path) -> None:
    (tmp_path / "r/code/old").mkdir(parents=True)
    (tmp_path / "r/code/old/COMMIT").write_text("feedfeedfeedfeed\n")
    choice(tmp_path / "r", "snapshot", has_failed=False)
    run_fake(tmp_path / "r", ClusterConfig(name="slurm"), code="snapshot")
    scripts = [path.read_text() for path in sorted(slurm_commands.glob("batch_*"))]
    old = [script for script in scripts if "METAPT_CODE=" in script and "/code/old " in script]
    assert len(scripts) == 6
    assert len(old) == 1
    assert "--job-name=pretrain/a\n" in old[0]
