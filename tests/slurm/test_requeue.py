"""Real training in jobs of a grid that are stopped on the way: they go on, and end with the very bits of an undisturbed run.

The undisturbed runs are made without Slurm.
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
from conftest import pretrain_many
from real_slurm import MARKS, losses, wait_until, weights
from stopping import INTERRUPTIONS, at_work, fail_last_node, last_node, processes, requeue, restarts

from metapt.config import ClusterConfig
from metapt.launch import slurm, slurm_queue
from metapt.launch.code_snapshot import code
from metapt.launch.grid_dir import Root
from metapt.launch.jobs import Job, Plan
from metapt.launch.run_status import run_status
from metapt.runs import Run

REPOSITORY = Path(__file__).parents[2]
CLUSTER = ClusterConfig(name="slurm", timeout_min=30, cpus_per_task=1, mem_gb=1, partition="low")
WORDS = ["model=nano", "objective=maml", "data=demo", "ds=zero1", "train.warmup_steps=2"]
WORDS += [
    "train.seq_len=64",
    "train.micro_batch=2",
    "train.micro_batches_per_update=8",
    "meta.tasks_per_step=4",
]
WORDS += ["train.checkpoint_every=1000", "train.eval_every=1000", "train.dynamics_every=0"]

FEWEST, MOST, SECONDS = 100, 400, 40  # updates of a run: what takes so long, within these bounds

pytestmark = MARKS


@pytest.fixture(autouse=True)
def _jobs_find_metapt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


@pytest.fixture(scope="module")
def updates_in(tmp_path_factory: pytest.TempPathFactory, corpus_cache: Path) -> Callable[[int, float], int]:
    """How many updates so many ranks make in some seconds, on this machine and as busy as it is."""
    pace: dict[int, float] = {}

    def count(ranks: int, seconds: float) -> int:
        if ranks not in pace:
            run = Run(tmp_path_factory.mktemp("pace") / "run")
            train(run, [*WORDS, f"data.cache_dir={corpus_cache}", "train.max_steps=40"], ranks)
            pace[ranks] = fmean(line["seconds"] for line in run.metrics() if "seconds" in line)
        return round(seconds / pace[ranks])

    return count


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing stops, made without Slurm, and its words but for the folder."""

    words: list[str]
    run: Run


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, corpus_cache: Path, updates_in: Callable[[int, float], int]
) -> Callable[[int], Undisturbed]:
    """The run on so many ranks."""
    made: dict[int, Undisturbed] = {}

    def run(ranks: int) -> Undisturbed:
        if ranks not in made:
            steps = min(MOST, max(FEWEST, updates_in(ranks, SECONDS)))
            words = [*WORDS, f"data.cache_dir={corpus_cache}", f"train.max_steps={steps}"]
            made[ranks] = Undisturbed(words, Run(tmp_path_factory.mktemp("undisturbed") / "run"))
            train(made[ranks].run, words, ranks)
        return made[ranks]

    return run


def train(run: Run, words: list[str], ranks: int) -> None:
    """Without Slurm."""
    done = pretrain_many([[*words, f"run_dir={run.path}"]], ranks)
    assert done.returncode == 0, done.stderr


def hand_over(root: Root, words: list[str], nodes: int, cluster: ClusterConfig = CLUSTER) -> tuple[Run, str]:
    """A plan of one pretraining job with one rank on each node. Returns its run and its number."""
    run_dir = "pretrain/a"
    argv = (*words, f"run_dir={root.path / run_dir}")
    job = Job(run_dir, "pretrain", ("-m", "metapt.pretrain"), argv, run_dir, nodes=nodes, gpus_per_node=1)
    source = code(root.path, is_copied=True)
    source.write()
    slurm.hand_over(Plan("one", (job,)), [job], root, cluster, source)
    return root.run(job), slurm_queue.entries(root)[job.id].number


def disturb(root: Root, run: Run, number: str, kinds: list[str]) -> None:
    """Interrupts a job in these ways, each after some more updates, and waits for its end."""
    for count, kind in enumerate(kinds):
        wait_until(at_work(run, number, count), seconds=300)
        INTERRUPTIONS[kind](number)
    wait_until(lambda: not slurm_queue.entries(root), seconds=400)


def check(run: Run, whole: Run, root: Root, kinds: list[str]) -> None:
    log = (root.path / "logs/pretrain/a.err").read_text()
    assert run_status(run.path).state == "done", log
    assert json.loads(run.requeues_file.read_text())["start"] == len(kinds)  # each brought a checkpoint
    saved = [kind for kind in kinds if kind != "failed node"]  # which may leave no time to
    assert len(saved) <= log.count("interrupted: ") <= len(kinds), log
    assert losses(run) == losses(whole)
    assert weights(run) == weights(whole)


def test_whatever_stops_a_job_on_two_nodes_it_ends_like_one_that_nothing_stopped(
    tmp_path: Path, undisturbed: Callable[[int], Undisturbed]
) -> None:
    root, kinds, whole = Root(tmp_path), ["preemption", "failed node"], undisturbed(2)
    run, number = hand_over(root, whole.words, nodes=2)
    disturb(root, run, number, kinds)
    check(run, whole.run, root, kinds)


@pytest.mark.nightly
@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("kind", INTERRUPTIONS)
def test_each_way_of_stopping(
    kind: str, nodes: int, tmp_path: Path, undisturbed: Callable[[int], Undisturbed]
) -> None:
    root, whole = Root(tmp_path), undisturbed(nodes)
    run, number = hand_over(root, whole.words, nodes)
    disturb(root, run, number, [kind])
    check(run, whole.run, root, [kind])


@pytest.mark.nightly
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_run_longer_than_its_time_limit(
    nodes: int, tmp_path: Path, corpus_cache: Path, updates_in: Callable[[int, float], int]
) -> None:
    """A minute, the shortest that Slurm knows, in which a busy machine may get no further than the start."""
    root, whole = Root(tmp_path), Run(tmp_path / "undisturbed")
    words = [*WORDS, f"data.cache_dir={corpus_cache}", f"train.max_steps={updates_in(nodes, 120)}"]
    cluster = replace(CLUSTER, timeout_min=1, signal_delay_s=30, max_requeues_without_progress=20)
    run, _ = hand_over(root, words, nodes, cluster)
    wait_until(lambda: not slurm_queue.entries(root), seconds=1800)
    log = (root.path / "logs/pretrain/a.err").read_text()
    assert run_status(run.path).state == "done", log
    assert log.count("interrupted: ") >= json.loads(run.requeues_file.read_text())["start"] > 0, log
    train(whole, words, nodes)
    assert losses(run) == losses(whole)
    assert weights(run) == weights(whole)


@pytest.mark.nightly
def test_a_job_outlives_a_node_that_dies_at_once(
    tmp_path: Path, undisturbed: Callable[[int], Undisturbed]
) -> None:
    """Without a signal. The other rank fails of it, long before Slurm knows; the job is there still and is run again."""
    root, whole = Root(tmp_path), undisturbed(2)
    run, number = hand_over(root, [*whole.words, "train.checkpoint_every=3"], nodes=2)
    wait_until(at_work(run, number, 0, updates=5), seconds=300)
    for process in processes(number, last_node(number)):
        os.kill(process, signal.SIGKILL)
    wait_until(run.error_file.exists, seconds=300)
    fail_last_node(number)
    wait_until(lambda: not slurm_queue.entries(root), seconds=400)
    assert run_status(run.path).state == "done"
    assert json.loads(run.requeues_file.read_text())["start"] == 1
    assert losses(run) == losses(whole.run)
    assert weights(run) == weights(whole.run)


@pytest.mark.nightly
def test_a_job_that_is_stopped_again_and_again_before_its_first_checkpoint_is_given_up(
    tmp_path: Path, corpus_cache: Path
) -> None:
    root, most = Root(tmp_path), 2
    words = [*WORDS, f"data.cache_dir={corpus_cache}"]
    run, number = hand_over(root, words, 1, replace(CLUSTER, max_requeues_without_progress=most))
    for count in range(most + 1):
        wait_until(partial(at_start, number, count), seconds=300)
        requeue(number)
    wait_until(lambda: not slurm_queue.entries(root))
    status = run_status(run.path)
    assert status.state == "failed"
    assert status.last_error_line == (
        "queued again 3 times in a row without a new checkpoint (there is none); given up"
    )
    assert "given up" in (root.submitit_dir / f"{number}_0_log.err").read_text()


def at_start(number: str, times: int) -> bool:
    return restarts(number) == times
