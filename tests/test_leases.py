"""Leases: one owner at a time, owners that die on this machine, on others and in Slurm jobs, and file systems without flock."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from launch_fakes import fake_plan, run_fake, starts, wait_for

from metapt import leases, slurm_commands
from metapt.config import ClusterConfig, CorpusConfig
from metapt.data.corpus import prepare_corpus
from metapt.errors import OperationalError
from metapt.finetuning.feature_cache import FeatureCache
from metapt.launch.due_jobs import current_statuses
from metapt.launch.grid_dir import GridDir
from metapt.launch.run_status import run_status
from metapt.leases import EXPIRY_SECONDS, SILENCE_SECONDS, Lease, LeaseHeld, Owner, is_held, look
from metapt.runs import Run

REPOSITORY = Path(__file__).parents[1]
FORK = multiprocessing.get_context("fork")
LOCAL = ClusterConfig(name="local", max_parallel=2)


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / ".lock"


def elsewhere(path: Path, age: float = 0.0, **values: str) -> Owner:
    """Write the lease of a process on another machine, whose last heartbeat was `age` seconds ago."""
    mine = leases._this_process()
    fields = {
        "pid": 77,
        "host": "node2",
        "machine": "boot2 pid:[1]",
        "process_start": "5",
        "job": "",
        "cluster": "",
    }
    owner = replace(mine, token="other", **(fields | values))  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(owner)))
    then = time.time() - age
    os.utime(path, (then, then))
    return owner


# --- one owner at a time ---------------------------------------------------------------------------------------------


def add_ones(folder: Path, times: int, dies: bool) -> None:
    counter = folder / "counter"
    for number in range(times):
        with Lease(folder / ".lock").held(timeout=None):
            value = int(counter.read_text())
            if dies and number == times - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.001)
            counter.write_text(str(value + 1))


def test_processes_hold_a_lease_one_after_the_other_also_if_one_is_killed(tmp_path: Path) -> None:
    (tmp_path / "counter").write_text("0")
    processes = [FORK.Process(target=add_ones, args=(tmp_path, 8, index == 0)) for index in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 0, 0, 0]
    assert (tmp_path / "counter").read_text() == str(4 * 8 - 1)
    assert [path.name for path in tmp_path.iterdir()] == ["counter"]


def test_one_of_many_takes_over_from_a_dead_owner(lock: Path) -> None:
    elsewhere(lock, age=2 * EXPIRY_SECONDS)
    barrier, taken = threading.Barrier(8), []

    def contend() -> None:
        lease = Lease(lock)
        barrier.wait()
        try:
            lease.acquire()
            taken.append(lease)
        except LeaseHeld:
            pass

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    assert is_held(lock)
    taken[0].release()
    assert not list(lock.parent.iterdir())


def test_the_message_names_process_host_and_job(lock: Path) -> None:
    elsewhere(lock, job="123", cluster="c")
    with pytest.raises(LeaseHeld, match=r"process 77 on node2 in Slurm job 123 \(since 20"):
        Lease(lock).acquire()
    lock.unlink()
    with Lease(lock).held(), pytest.raises(LeaseHeld, match=f"process {os.getpid()} on "):
        Lease(lock).acquire()


# --- who is dead -----------------------------------------------------------------------------------------------------

LATE = 2 * EXPIRY_SECONDS
CASES = {  # age of the heartbeat, job of the owner, its state in the queue (None: squeue fails), whether the owner lives
    "another machine": (0, "", {}, True),
    "another machine, late": (LATE, "", {}, False),
    "a running job": (0, "5", {"5": "RUNNING"}, True),
    "a suspended job, late": (LATE, "5", {"5": "SUSPENDED"}, True),
    "a job that Slurm is ending": (0, "5", {"5": "COMPLETING"}, True),
    "a job that has left the queue": (SILENCE_SECONDS + 1, "5", {"6": "RUNNING"}, False),
    "a process that outlives its job": (SILENCE_SECONDS - 5, "5", {"6": "RUNNING"}, True),
    "a requeued job": (0, "5", {"5": "PENDING"}, True),
    "a requeued job, late": (LATE, "5", {"5": "PENDING"}, False),
    "an earlier start of this job": (0, "9", {"9": "RUNNING"}, True),
    "an earlier start of this job, late": (LATE, "9", {"9": "RUNNING"}, False),
    "no answer of squeue": (0, "5", None, True),
    "no answer of squeue, late": (LATE, "5", None, False),
}


@pytest.mark.parametrize("case", CASES)
def test_who_is_dead(case: str, lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    age, job, queue, lives = CASES[case]
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    monkeypatch.setattr(leases, "_cluster", lambda: "here")
    monkeypatch.setattr(leases, "jobs_in_queue", lambda user, max_age: queue)
    elsewhere(lock, age, job=job, cluster="here" if job else "")
    assert is_held(lock) == lives
    if lives:
        with pytest.raises(LeaseHeld):
            Lease(lock).acquire()
    else:
        with Lease(lock).held():
            assert is_held(lock)


@pytest.mark.parametrize("values", [{"cluster": "elsewhere"}, {"user": "ana"}])
def test_jobs_that_squeue_does_not_show_are_decided_by_the_heartbeat(
    values: dict[str, str], lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_cluster", lambda: "here")
    monkeypatch.setattr(leases, "jobs_in_queue", lambda user, max_age: {})
    elsewhere(lock, **{"job": "5", "cluster": "here"} | values)
    assert is_held(lock)
    elsewhere(lock, LATE, **{"job": "5", "cluster": "here"} | values)
    assert not is_held(lock)


def test_an_old_answer_of_squeue_removes_no_lease(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job may have started since."""
    monkeypatch.setattr(leases, "_cluster", lambda: "here")
    answers = {True: {}, False: {"5": "RUNNING"}}
    monkeypatch.setattr(leases, "jobs_in_queue", lambda user, max_age: answers[max_age > 0])
    elsewhere(lock, SILENCE_SECONDS + 1, job="5", cluster="here")
    with pytest.raises(LeaseHeld):
        Lease(lock).acquire()


def test_squeue_is_asked_for_the_states_of_a_users_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text(
        '#!/bin/bash\necho x >> "$0.calls"\nprintf "7|PENDING\\n7|RUNNING\\n7|PENDING\\n8|PENDING\\n"\n'
    )
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm_commands, "_answers", {})
    expected = {"7": "RUNNING", "8": "PENDING"}
    assert [slurm_commands.jobs_in_queue("ana", age) for age in (0, 60, 0)] == [expected] * 3
    assert (tmp_path / "squeue.calls").read_text() == "x\nx\n"
    squeue.write_text("#!/bin/bash\nexit 1\n")
    assert slurm_commands.jobs_in_queue("ana") is None


def test_a_reused_pid_is_another_process(lock: Path) -> None:
    owner = leases._this_process()
    for process_start, held in ((owner.process_start, True), ("1", False)):
        lock.write_text(json.dumps(asdict(replace(owner, process_start=process_start))))
        assert is_held(lock) == held


def test_a_file_that_is_not_complete_yet_is_a_lease_until_it_is_old(lock: Path) -> None:
    lock.touch()
    assert is_held(lock)
    os.utime(lock, (1, 1))
    assert not is_held(lock)
    with Lease(lock).held():
        pass


def test_a_full_disk_leaves_no_lease(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(leases.json, "dumps", full)
    with pytest.raises(OSError, match="No space left"):
        Lease(lock).acquire()
    assert not lock.exists()


# --- heartbeats ------------------------------------------------------------------------------------------------------


def hold(path: Path, ready: Path) -> None:
    with Lease(path).held():
        ready.touch()
        time.sleep(300)


def test_a_suspended_owner_that_has_lost_its_lease_ends_and_leaves_the_new_one(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.05)
    process = FORK.Process(target=hold, args=(lock, lock.with_name("ready")))
    process.start()
    wait_for(lock.with_name("ready"))
    first = lock.stat().st_mtime
    deadline = time.monotonic() + 60
    while lock.stat().st_mtime == first:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.pid
    os.kill(process.pid, signal.SIGSTOP)
    monkeypatch.setattr(leases, "_process_runs", lambda owner: None)  # as seen from another machine
    os.utime(lock, (1, 1))
    lease = Lease(lock)
    lease.acquire()
    os.kill(process.pid, signal.SIGCONT)
    process.join(60)
    assert process.exitcode == 1
    assert look(lock) is not None
    assert lease._owner == look(lock).owner  # type: ignore[union-attr]
    lease.release()


# --- run folders and grids -------------------------------------------------------------------------------------------


def test_a_run_of_another_machine_is_running_until_its_heartbeat_is_late(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.start({"train": {"max_steps": 3}}, {})
    elsewhere(run.lock_file)
    assert run_status(tmp_path).state == "running"
    with (
        pytest.raises(OperationalError, match="run directory is locked by process 77 on node2"),
        run.locked(),
    ):
        pass
    elsewhere(run.lock_file, LATE)
    assert run_status(tmp_path).state == "interrupted"
    with run.locked():
        assert run_status(tmp_path).state == "running"


def test_a_submitter_on_another_machine_is_respected_until_its_heartbeat_is_late(tmp_path: Path) -> None:
    file, grid_dir = tmp_path / ".submit.lock", GridDir(tmp_path)
    elsewhere(file)
    assert grid_dir.is_locked
    with (
        pytest.raises(OperationalError, match="this grid is locked by process 77 on node2"),
        grid_dir.locked(),
    ):
        pass
    elsewhere(file, LATE)
    assert not grid_dir.is_locked
    with grid_dir.locked():
        assert grid_dir.is_locked
    assert not file.exists()


FLOCKS = {  # how a file system may treat flock: refuse it, or lock for the processes of each node only
    "ENOSYS": "raise OSError(errno.ENOSYS, 'Function not implemented')",
    "node-local": "return None",
}


@pytest.fixture(params=FLOCKS)
def without_flock(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, and in those that it starts."""
    patch = f"def flock(*_):\n    {FLOCKS[request.param]}\nfcntl.flock = fcntl.lockf = flock\n"
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(f"import errno, fcntl\n{patch}")
    paths = [str(path) for path in (site, REPOSITORY, REPOSITORY / "tests")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    for name in ("flock", "lockf"):
        monkeypatch.setattr(fcntl, name, None)  # restored afterwards
    exec(patch, {"errno": errno, "fcntl": fcntl})


@pytest.mark.usefixtures("without_flock")
def test_a_grid_runs_and_is_killed_and_resumed_without_flock(tmp_path: Path) -> None:
    root = tmp_path / "grid"
    killed = Run(root / "pretrain/a")  # on another node
    killed.start({"train": {"max_steps": 4}}, {})
    elsewhere(killed.lock_file, LATE)
    run_fake(root, LOCAL)
    states = {name: status.state for name, status in current_statuses(fake_plan(root), GridDir(root)).items()}
    assert set(states.values()) == {"done"}
    assert len(starts(root)) == len(states)


@pytest.mark.usefixtures("without_flock")
def test_shared_data_is_built_once_without_flock(tmp_path: Path) -> None:
    """A corpus, and cached features, which are not deleted while another node reads them."""
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_text("\n\n".join(f"a document, number {number}" for number in range(40)))
    data = CorpusConfig(
        name="text",
        text_dir=str(text),
        txt_document="block",
        cache_dir=str(tmp_path / "cache"),
        vocab_size=300,
        eval_fraction=0.3,
    )
    assert prepare_corpus(data).fingerprint == prepare_corpus(data).fingerprint
    folder, rows = tmp_path / "features", 1000
    features = FeatureCache(folder, 1.5 * rows * 8 / 1e9)
    first = features.get({"number": 1}, lambda: torch.ones(rows, 2))
    entry = next(folder.glob("*/features.npy")).parent
    del first
    elsewhere(folder / f"{entry.name}.reader.other")
    features.get({"number": 2}, lambda: torch.ones(rows, 2))
    assert entry.exists()
    elsewhere(folder / f"{entry.name}.reader.other", LATE)
    features.get({"number": 2}, lambda: torch.ones(rows, 2))
    assert not entry.exists()
    assert not list(folder.glob("*.reader.other"))
    assert np.load(next(folder.glob("*/features.npy"))).shape == (rows, 2)
