"""29 failures in jobs that train on a real Slurm, six of them not nightly.

Each job ends bit-identical to an undisturbed one, by itself or after the same submission was repeated, or its run is refused
with the cause. All jobs are in one grid, so that they also disturb one another.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
from forks import Fault
from real_slurm import MARKS, losses, wait_for_empty_queue, wait_until, weights
from stopping import fail_last_node, preempt_with_term, requeue, warn

from metapt import atomic_folders
from metapt.config import ClusterConfig, GridConfig, SubmitConfig
from metapt.launch import slurm_queue
from metapt.launch.grid_dir import GridDir
from metapt.launch.jobs import Job, Plan
from metapt.launch.run_status import run_status
from metapt.launch.submission import run_plan
from metapt.leases import look
from metapt.runs import Run

REPOSITORY = Path(__file__).parents[2]
PROGRAM = (str(Path(__file__).with_name("faulty_training.py")),)
CLUSTER = ClusterConfig(name="slurm", timeout_min=30, cpus_per_task=1, mem_gb=1)
WHOLE = "undisturbed"
pytestmark = MARKS


class Grid:
    """The jobs of some failures, and an undisturbed one."""

    def __init__(self, root: Path, names: list[str], words: list[str]):
        self.root, self.grid_dir = root, GridDir(root)
        jobs = (self._job(name, number, words) for number, name in enumerate([WHOLE, *names]))
        self.plan = Plan("failures", tuple(jobs))

    def _job(self, name: str, number: int, words: list[str]) -> Job:
        """Jobs have different time limits, so that they form no array: Slurm 22.05 refuses signals to some of its tasks."""
        failure = FAILURES.get(name)
        fault = json.dumps(asdict(failure.fault if failure else NEVER))
        run_dir = f"pretrain/{name}"
        extra = failure.words if failure else []
        argv = (str(self.marker(name)), fault, *words, *extra, f"run_dir={self.root / run_dir}")
        return Job(run_dir, "pretrain", hours=(30 + number) / 60, program=PROGRAM, argv=argv)

    def marker(self, name: str) -> Path:
        return self.root / "markers" / name

    def run(self, name: str) -> Run:
        return Run(self.root / "pretrain" / name)

    def log(self, name: str) -> str:
        return (self.root / "logs/pretrain" / f"{name}.err").read_text()

    def slurm_id(self, name: str) -> str:
        return slurm_queue.queue_entries(self.grid_dir)[f"pretrain/{name}"].slurm_id

    def submit(self) -> None:
        grid = GridConfig(name="failures")
        config = SubmitConfig(grid=grid, cluster=CLUSTER, root=str(self.root), code="live")
        with self.grid_dir.locked():
            run_plan(self.plan, self.grid_dir, config)


@dataclass(frozen=True)
class Failure:
    """What goes wrong at the first start of a job.

    Attributes:
        event: is called while the job waits at its fault.
        damage: is called after the job has ended, before the grid is submitted again.
        cause: a regular expression that is found in the errors of the job.
        is_refused: whether the run cannot go on.
        words: further words of the command line.
    """

    fault: Fault
    event: Callable[[Grid, str], None] | None = None
    damage: Callable[[Run], None] | None = None
    cause: str = ""
    is_refused: bool = False
    words: list[str] = field(default_factory=list)


# --- events and damage -----------------------------------------------------------------------------------------------


def signalled(by: Callable[[str], None]) -> Callable[[Grid, str], None]:
    return lambda grid, name: by(grid.slurm_id(name))


def hold_and_release(grid: Grid, name: str) -> None:
    slurm_id = grid.slurm_id(name)
    subprocess.run(["scontrol", "requeuehold", slurm_id], check=True)
    wait_until(lambda: slurm_queue.queue_entries(grid.grid_dir)[f"pretrain/{name}"].is_pending)
    grid.submit()  # it is not submitted a second time
    assert grid.slurm_id(name) == slurm_id
    subprocess.run(["scontrol", "release", slurm_id], check=True)


def cancel_and_submit(grid: Grid, name: str) -> None:
    subprocess.run(["scancel", grid.slurm_id(name)], check=True)
    grid.submit()


def kill_launcher(grid: Grid, name: str) -> None:
    seen = look(grid.run(name).lock_file)
    assert seen is not None
    assert seen.owner is not None
    parent = Path(f"/proc/{seen.owner.pid}/stat").read_text().rsplit(") ", 1)[1].split()[1]
    os.kill(int(parent), signal.SIGKILL)


def wait_for_record(grid: Grid, name: str) -> None:
    wait_until(grid.run(name).node_failures_dir.exists, seconds=600)


def truncate_newest(run: Run) -> None:
    file = max(run.checkpoints()[-1][1].glob("engine/*.safetensors"), key=lambda file: file.stat().st_size)
    os.truncate(file, file.stat().st_size // 2)


def delete_manifest(run: Run) -> None:
    (run.checkpoints()[-1][1] / atomic_folders.MANIFEST).unlink()


def delete_newest(run: Run) -> None:
    shutil.rmtree(run.checkpoints()[-1][1])


def damage_result(run: Run) -> None:
    os.truncate(run.result_file, run.result_file.stat().st_size // 2)


def change_config(run: Run) -> None:
    text = run.config_file.read_text()
    run.config_file.write_text(re.sub(r"( +lr: ).*", r"\g<1>0.5", text, count=1))


NEVER = Fault("unit", "USR1", call=10**6)
WAITS = Fault("unit", "WAIT", 12)
FULL = "No space left on device"
FEW: dict[str, Failure] = {
    "killed in the optimizer": Failure(Fault("step", "KILL", 5)),
    "damaged newest checkpoint": Failure(
        Fault("step", "KILL", 8), damage=truncate_newest, cause=r"checkpoint of step 6 is damaged \(.+\) and is skipped"
    ),
    "missing last checkpoint of a finished run": Failure(NEVER, damage=delete_newest),
    "cancelled and submitted again at once": Failure(WAITS, cancel_and_submit, cause="stopped by SIGTERM"),
    "failed device": Failure(Fault("unit", "DEVICE", 12), cause=r"cpu|cuda:0.* on node node\d: RuntimeError: CUDA error"),
    "another configuration in the folder": Failure(
        Fault("step", "KILL", 5), damage=change_config, cause="contains a run with a different configuration", is_refused=True
    ),
}  # fmt: skip
NIGHTLY: dict[str, Failure] = {
    "killed before a checkpoint has its name": Failure(Fault("commit", "KILL", 3)),
    "full disk in a checkpoint": Failure(Fault("engine file", "ENOSPC", 2), cause=FULL),
    "killed before the corpus": Failure(Fault("corpus", "KILL")),
    "killed before the engine": Failure(Fault("engine", "KILL")),
    "killed in an inner loop": Failure(Fault("inner loss", "KILL", 3)),
    "killed in an evaluation": Failure(Fault("evaluation", "KILL", 2)),
    "killed after metrics": Failure(Fault("metrics", "KILL", 6, after=True)),
    "killed in a staged checkpoint": Failure(Fault("staging", "KILL", 3, after=True)),
    "killed in an export": Failure(Fault("export", "KILL", 2)),
    "killed before the result": Failure(Fault("finish", "KILL")),
    "killed after the result": Failure(Fault("finish", "KILL", after=True)),
    "full disk in metrics": Failure(Fault("metrics", "ENOSPC", 5), cause=FULL),
    "full disk in the result": Failure(Fault("finish", "ENOSPC"), cause=FULL),
    "missing manifest": Failure(Fault("step", "KILL", 8), damage=delete_manifest, cause="checkpoint of step 6 is damaged"),
    "damaged result": Failure(NEVER, damage=damage_result),
    "warned before the time limit": Failure(WAITS, signalled(warn), cause="stopped by SIGUSR2"),
    "preempted with TERM": Failure(WAITS, signalled(preempt_with_term), cause="stopped by SIGTERM"),
    "requeued by an administrator": Failure(WAITS, signalled(requeue), cause="stopped by SIGTERM"),
    "requeued with a hold and released": Failure(WAITS, hold_and_release, cause="stopped by SIGTERM"),
    "killed launcher": Failure(WAITS, kill_launcher, cause="stopped by SIGTERM"),
    "hang": Failure(Fault("unit", "HANG", 12), wait_for_record, cause=r"on node node\d: no progress for 90 s", words=["train.hang_timeout_s=90"]),
    "killed in a backward pass": Failure(Fault("backward", "KILL", 12)),
}  # fmt: skip
LAST = {"failed node": Failure(WAITS, signalled(fail_last_node))}  # disturbs the jobs that share the node
FAILURES = {**FEW, **NIGHTLY, **LAST}


def outcome(names: list[str], root: Path, words: list[str]) -> Grid:
    """A grid in which these failures have happened, and that was submitted again.

    Jobs whose files are damaged come first: those that wait for an event occupy the nodes.
    """
    names = sorted(names, key=lambda name: FAILURES[name].damage is None)
    grid = Grid(root, names, words)
    grid.submit()
    for name in names:  # before the events, some of which submit the grid again
        if damage := FAILURES[name].damage:
            run = grid.run(name)
            wait_until(lambda run=run: run.error_file.exists() or run.is_done, seconds=1800)
            damage(run)
    for name in names:
        if event := FAILURES[name].event:
            wait_until(grid.marker(name).with_suffix(".reached").exists, seconds=1800)
            event(grid, name)
    wait_until(lambda: not slurm_queue.queue_entries(grid.grid_dir), seconds=1800)
    grid.submit()
    wait_until(lambda: not slurm_queue.queue_entries(grid.grid_dir), seconds=1800)
    return grid


def problem(grid: Grid, name: str) -> str:
    """How a job did not end as it should; empty if it did."""
    run, whole, failure = grid.run(name), grid.run(WHOLE), FAILURES[name]
    status, log = run_status(run.path), grid.log(name)
    if not re.search(failure.cause, log):
        return f"not in its log: {failure.cause}\n{log}"
    if failure.is_refused:
        is_named = re.search(failure.cause, status.error or "")
        return "" if status.state == "failed" and is_named else f"{status.state}: {status.error}"
    if status.state != "done":
        return f"{status.state}\n{log}"
    if not grid.marker(name).exists():
        return "undisturbed"
    return "" if (losses(run), weights(run)) == (losses(whole), weights(whole)) else f"other results\n{log}"


@pytest.mark.parametrize(
    "names",
    [[*FEW], pytest.param([*NIGHTLY, *LAST], marks=[pytest.mark.nightly, pytest.mark.timeout(3600)])],
    ids=["few", "others"],
)
def test_jobs_end_like_an_undisturbed_one_or_are_refused(
    names: list[str], tmp_path: Path, small_arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    try:
        grid = outcome(names, tmp_path, [*small_arguments, "objective=maml_paper", "ds=zero1"])
        problems = {name: problem(grid, name) for name in names}
        assert {name: text for name, text in problems.items() if text} == {}
    finally:
        slurm_queue.cancel(
            {entry.slurm_id for entry in slurm_queue.queue_entries(GridDir(tmp_path)).values()}
        )
        wait_for_empty_queue(tmp_path)
