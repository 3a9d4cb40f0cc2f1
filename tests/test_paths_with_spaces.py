"""Paths with any characters in `root=`: written as they are, and in printed commands, which can be pasted into a shell."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from launch_fakes import fake_plan, run_fake

from metapt.config import ClusterConfig, commandline
from metapt.launch.display import describe_plan
from metapt.launch.due_jobs import current_statuses
from metapt.launch.grid_dir import GridDir

PATHS = [
    "/a b",
    "/a  b/c",
    "/it's",
    "/a=b",
    "/(c)",
    "/a#b c",
    "/ü x",
    "/[1]",
    "/{x}",
    '/a "q"',
    "~/x y",
    "/C:\\x y",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_needs_no_quotes_inside(path: str) -> None:
    assert commandline.load("status", [f"root={path}"]).root == path


@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], include_characters=" "), min_size=1)
)
def test_a_quoted_path_is_read_back(name: str) -> None:
    path = f"/{name}"
    (word,) = shlex.split(shlex.join([commandline.quote_override("root", path)]))
    assert commandline.load("status", [word]).root == path


def test_printed_commands_can_be_pasted(
    tmp_path: Path, slurm_commands: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "it's a grid"
    run_fake(root, ClusterConfig(name="slurm"))
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "follow them with" in line)
    command = line.partition(": ")[2].replace("metapt", f"{shlex.quote(sys.executable)} -m metapt", 1)
    output = subprocess.check_output(["bash", "-c", command], text=True)
    assert "0 of 6 done" in output
    plan, grid_dir = fake_plan(root), GridDir(root)
    described = describe_plan(plan, current_statuses(plan, grid_dir), plan.jobs).splitlines()
    printed = [shlex.split(line) for line in described if line.startswith("    python ")]
    assert printed == [["python", *job.program, *job.argv] for job in plan.jobs]
