"""Which GPUs the jobs of a grid on this machine see; no GPU is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from metapt.config import ClusterConfig
from metapt.errors import UserError
from metapt.launch import executors
from metapt.launch.code_snapshot import live_code
from metapt.launch.grid_dir import GridDir
from metapt.launch.job_sources import JobSources
from metapt.launch.job_state import JobState
from metapt.launch.jobs import Job

SCRIPT = """\
import os, pathlib, sys, time
root, name = pathlib.Path(sys.argv[1]), sys.argv[2]
(root / f"{name}.begun").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
while len(list(root.glob("*.begun"))) < int(sys.argv[3]):
    time.sleep(0.05)
"""


class NoView:
    def update(self, states: object) -> None:
        pass


def jobs_of(grid_dir: GridDir, gpus: int, at_once: int) -> list[Job]:
    """Three jobs, which end once `at_once` of them have begun."""
    return [
        Job(
            f"prepare/{name}",
            "prepare",
            program=("-c", SCRIPT),
            argv=(str(grid_dir.path), name, str(at_once)),
            gpus_per_node=gpus,
        )
        for name in "abc"
    ]


@pytest.mark.parametrize(
    ("visible", "gpus", "seen"),
    [("5,3", 1, {"3", "5"}), ("5", 1, {"5"}), ("5,3", 0, {""})],
)
def test_jobs_at_the_same_time_see_gpus_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, gpus: int, seen: set[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    grid_dir, cluster = GridDir(tmp_path), ClusterConfig(name="local", max_parallel=3, gpus_per_node=gpus)
    launcher = executors.launcher(grid_dir, JobSources(live_code()), cluster)
    jobs = jobs_of(grid_dir, gpus, at_once=len(seen))
    schedule = executors.Schedule(jobs, {}, grid_dir, launcher, cluster.max_parallel)
    schedule.run(NoView())
    assert set(schedule.states.values()) == {JobState.DONE}
    assert {path.read_text() for path in tmp_path.glob("*.begun")} == seen


@pytest.mark.parametrize("visible", ["", "-1", "1", "GPU-8932f937"])
def test_too_few_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    cluster = ClusterConfig(name="local", gpus_per_node=2)
    with pytest.raises(UserError, match=r"cluster.gpus_per_node=2: jobs can use [01] GPU\(s\)"):
        executors.launcher(GridDir(tmp_path), JobSources(live_code()), cluster)
