"""Real training in jobs of a grid that are stopped: they resume, and end bit-identical to an undisturbed run.

The undisturbed runs train without Slurm.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean

import pytest
from conftest import SMALL_EPISODES
from forks import Forks
from real_slurm import MARKS, losses, wait_until, weights
from stopping import INTERRUPTIONS, fail_last_node, has_progressed, last_node, processes, requeue, restarts

from metapt.config import ClusterConfig
from metapt.launch import slurm, slurm_queue
from metapt.launch.code_snapshot import take_snapshot
from metapt.launch.grid_dir import GridDir
from metapt.launch.job_sources import JobSources
from metapt.launch.jobs import Job, Plan
from metapt.launch.run_status import run_status
from metapt.runs import Run

REPOSITORY = Path(__file__).parents[2]
CLUSTER = ClusterConfig(name="slurm", timeout_min=30, cpus_per_task=1, mem_gb=1, partition="low")
WORDS = ["model=nano", "objective=maml_paper", "data=demo", "ds=zero1", "train.warmup_steps=2"]
WORDS += [
    "train.seq_len=64",
    "train.micro_batch=2",
    "train.micro_batches_per_update=8",
    "meta.tasks_per_step=4",
]
WORDS += SMALL_EPISODES
WORDS += ["train.checkpoint_every=1000", "train.eval_every=1000", "train.dynamics_every=0"]
WAITING = Path(__file__).with_name("waiting_training.py")
UPDATES = 8  # of a run that waits where it is stopped

pytestmark = MARKS


@pytest.fixture(autouse=True)
def _jobs_find_metapt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


@pytest.fixture(scope="module")
def updates_in(
    forks: Forks, tmp_path_factory: pytest.TempPathFactory, corpus_cache: Path
) -> Callable[[int, float], int]:
    """A function of ranks and seconds: how many updates the machine makes, busy as it is now."""
    pace: dict[int, float] = {}

    def count(ranks: int, seconds: float) -> int:
        if ranks not in pace:
            run = Run(tmp_path_factory.mktemp("pace") / "run")
            train(forks, run, [*WORDS, f"data.cache_dir={corpus_cache}", "train.max_steps=40"], ranks)
            pace[ranks] = fmean(line["seconds"] for line in run.metrics() if "seconds" in line)
        return round(seconds / pace[ranks])

    return count


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing stops, made without Slurm, and its command line without the folder."""

    words: list[str]
    run: Run


@pytest.fixture(scope="module")
def undisturbed(
    forks: Forks, tmp_path_factory: pytest.TempPathFactory, corpus_cache: Path
) -> Callable[..., Undisturbed]:
    """A function from the numbers of ranks and updates to the undisturbed run."""
    runs: dict[tuple[int, int], Undisturbed] = {}

    def run(ranks: int, updates: int = UPDATES) -> Undisturbed:
        if (ranks, updates) not in runs:
            words = [*WORDS, f"data.cache_dir={corpus_cache}", f"train.max_steps={updates}"]
            whole = Undisturbed(words, Run(tmp_path_factory.mktemp("undisturbed") / "run"))
            train(forks, whole.run, words, ranks)
            runs[ranks, updates] = whole
        return runs[ranks, updates]

    return run


def train(forks: Forks, run: Run, words: list[str], ranks: int) -> None:
    """Trains a run without Slurm."""
    forks.succeed("pretrain", [*words, f"run_dir={run.path}"], ranks)


def submit(
    grid_dir: GridDir, words: list[str], nodes: int, cluster: ClusterConfig = CLUSTER, waits: int = 0
) -> tuple[Run, str]:
    """Submits a plan of one pretraining job with one rank per node. Returns its run and its Slurm job id.

    Args:
        waits: in how many starts the job waits to be stopped, as waiting_training.py does.
    """
    job_id = "pretrain/a"
    argv = (*words, "device=cpu", f"run_dir={grid_dir.path / job_id}")
    program: tuple[str, ...] = ("-m", "metapt.pretrain")
    if waits:
        waiting_dir(grid_dir).mkdir()
        program = (str(WAITING), str(waiting_dir(grid_dir)), str(waits))
    job = Job(job_id, "pretrain", nodes=nodes, gpus_per_node=1, program=program, argv=argv)
    code = take_snapshot(grid_dir.path)
    code.write()
    slurm.submit(Plan("one", (job,)), [job], grid_dir, cluster, JobSources(code))
    return grid_dir.run(job), slurm_queue.queue_entries(grid_dir)[job.id].slurm_id


def waiting_dir(grid_dir: GridDir) -> Path:
    return grid_dir.path / "waiting"


def run_disturbed(grid_dir: GridDir, words: list[str], nodes: int, kinds: list[str]) -> Run:
    """A run that is stopped in the given ways, each after two more updates, to its end."""
    run, slurm_id = submit(grid_dir, words, nodes, waits=len(kinds))
    for start, kind in enumerate(kinds):
        reached = [waiting_dir(grid_dir) / f"{start}.{rank}" for rank in range(nodes)]
        wait_until(lambda reached=reached: all(file.exists() for file in reached), seconds=300)
        INTERRUPTIONS[kind](slurm_id)
    wait_until(lambda: not slurm_queue.queue_entries(grid_dir), seconds=400)
    return run


def check(run: Run, whole: Run, grid_dir: GridDir, kinds: list[str]) -> None:
    log = (grid_dir.path / "logs/pretrain/a.err").read_text()
    assert run_status(run.path).state == "done", log
    assert json.loads(run.requeues_file.read_text())["start"] == len(
        kinds
    )  # each start found a new checkpoint
    saved = [kind for kind in kinds if kind != "failed node"]  # which may leave no time to save
    assert len(saved) <= log.count("interrupted: ") <= len(kinds), log
    assert losses(run) == losses(whole)
    assert weights(run) == weights(whole)


def test_a_stopped_job_on_two_nodes_ends_like_an_undisturbed_one(
    tmp_path: Path, undisturbed: Callable[..., Undisturbed]
) -> None:
    grid_dir, kinds, whole = GridDir(tmp_path), ["preemption", "failed node"], undisturbed(2)
    run = run_disturbed(grid_dir, whole.words, 2, kinds)
    check(run, whole.run, grid_dir, kinds)


@pytest.mark.nightly
@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("kind", INTERRUPTIONS)
def test_each_way_of_stopping(
    kind: str, nodes: int, tmp_path: Path, undisturbed: Callable[..., Undisturbed]
) -> None:
    grid_dir, whole = GridDir(tmp_path), undisturbed(nodes)
    run = run_disturbed(grid_dir, whole.words, nodes, [kind])
    check(run, whole.run, grid_dir, [kind])


@pytest.mark.nightly
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_run_longer_than_its_time_limit(
    forks: Forks, nodes: int, tmp_path: Path, corpus_cache: Path, updates_in: Callable[[int, float], int]
) -> None:
    """The limit is a minute, Slurm's shortest, in which a busy machine may only get through the start."""
    grid_dir, whole = GridDir(tmp_path), Run(tmp_path / "undisturbed")
    words = [*WORDS, f"data.cache_dir={corpus_cache}", f"train.max_steps={updates_in(nodes, 120)}"]
    cluster = replace(CLUSTER, timeout_min=1, signal_delay_s=30, max_requeues_without_progress=20)
    run, _ = submit(grid_dir, words, nodes, cluster)
    wait_until(lambda: not slurm_queue.queue_entries(grid_dir), seconds=1800)
    log = (grid_dir.path / "logs/pretrain/a.err").read_text()
    assert run_status(run.path).state == "done", log
    assert log.count("interrupted: ") >= json.loads(run.requeues_file.read_text())["start"] > 0, log
    train(forks, whole, words, nodes)
    assert losses(run) == losses(whole)
    assert weights(run) == weights(whole)


@pytest.mark.nightly
def test_a_job_survives_a_node_that_dies_without_a_signal(
    tmp_path: Path, undisturbed: Callable[..., Undisturbed], updates_in: Callable[[int, float], int]
) -> None:
    """The other rank fails long before Slurm notices; the job still exists and is requeued."""
    grid_dir, whole = GridDir(tmp_path), undisturbed(2, min(400, max(100, updates_in(2, 40))))
    run, slurm_id = submit(grid_dir, [*whole.words, "train.checkpoint_every=3"], nodes=2)
    wait_until(has_progressed(run, slurm_id, 0, updates=5), seconds=300)
    for process in processes(slurm_id, last_node(slurm_id)):
        os.kill(process, signal.SIGKILL)
    wait_until(run.error_file.exists, seconds=300)
    fail_last_node(slurm_id)
    wait_until(lambda: not slurm_queue.queue_entries(grid_dir), seconds=400)
    assert run_status(run.path).state == "done"
    assert json.loads(run.requeues_file.read_text())["start"] == 1
    assert losses(run) == losses(whole.run)
    assert weights(run) == weights(whole.run)


@pytest.mark.nightly
def test_a_job_stopped_repeatedly_before_its_first_checkpoint_is_abandoned(
    tmp_path: Path, corpus_cache: Path
) -> None:
    grid_dir, limit = GridDir(tmp_path), 2
    words = [*WORDS, f"data.cache_dir={corpus_cache}"]
    run, slurm_id = submit(grid_dir, words, 1, replace(CLUSTER, max_requeues_without_progress=limit))
    for count in range(limit + 1):
        wait_until(partial(is_running, slurm_id, count), seconds=300)
        requeue(slurm_id)
    wait_until(lambda: not slurm_queue.queue_entries(grid_dir))
    status = run_status(run.path)
    assert status.state == "failed"
    assert status.last_error_line == (
        "requeued 3 times in a row without a new checkpoint (newest: none); abandoned"
    )
    assert "abandoned" in (grid_dir.submitit_dir / f"{slurm_id}_0_log.err").read_text()


def is_running(slurm_id: str, times: int) -> bool:
    return restarts(slurm_id) == times
