"""Failures around a grid on a real Slurm: killed launchers and submitters, other users, held and preempted jobs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import launch_fakes
import pytest
from launch_fakes import fake_plan, run_fake, starts, submitted_ids
from real_slurm import MARKS, wait_for_empty_queue, wait_until
from stopping import preempt
from test_slurm import CLUSTER, ids_in_queue, states

from metapt import slurm_commands
from metapt.launch import slurm_queue
from metapt.launch.due_jobs import current_statuses
from metapt.launch.grid_dir import GridDir
from metapt.launch.grid_status import grid_status
from metapt.leases import is_held, look

REPOSITORY = Path(__file__).parents[2]
NOBODY = 65534
pytestmark = MARKS


@pytest.fixture(autouse=True)
def _jobs_find_metapt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]))


@pytest.fixture(autouse=True)
def _no_job_is_left(tmp_path: Path) -> Iterator[None]:
    """A job that a failed test leaves would keep the next one waiting for its node."""
    yield
    slurm_queue.cancel({entry.slurm_id for entry in slurm_queue.queue_entries(GridDir(tmp_path)).values()})


def comments_in_queue(root: Path) -> list[str]:
    """The Slurm job ids of the grid's jobs that are pending or running, recorded or not."""
    command = ["squeue", "--noheader", "--array", "--states=pending,running", "--format=%i|%k"]
    lines = subprocess.check_output(command, text=True).splitlines()
    comment = slurm_queue.job_comment(GridDir(root))
    return [line.split("|")[0] for line in lines if line.split("|")[1] == comment]


def launcher(program: int) -> int:
    """The parent process of a program."""
    return int(Path(f"/proc/{program}/stat").read_text().rsplit(") ", 1)[1].split()[1])


def test_a_program_saves_and_ends_with_its_killed_launcher_and_is_resumed_once(tmp_path: Path) -> None:
    """The new submission neither prepares the corpus again nor adds a second report."""
    run_fake(tmp_path, CLUSTER, {"pretrain/a": "slow-stop"})
    wait_until((tmp_path / "pretrain/a/started").exists)
    lock = tmp_path / "pretrain/a/.lock"
    program = look(lock).owner.pid
    os.kill(launcher(program), signal.SIGKILL)
    wait_until(lambda: states(tmp_path)["pretrain/a"] == "interrupted" or not ids_in_queue(tmp_path), 60)
    run_fake(tmp_path, CLUSTER, {"pretrain/a": "slow-stop"})
    wait_for_empty_queue(tmp_path)
    assert set(states(tmp_path).values()) == {"done"}
    assert not is_held(lock)
    assert starts(tmp_path).count("prepare/demo") == 1
    assert starts(tmp_path).count("pretrain/a") == 2
    assert starts(tmp_path)[-1] == "report"


@pytest.mark.parametrize("behaviour", ["sick-device", "hung"])
def test_a_job_avoids_the_node_that_failed(behaviour: str, tmp_path: Path) -> None:
    run_fake(tmp_path, CLUSTER, {"pretrain/a": behaviour})
    wait_for_empty_queue(tmp_path)
    assert set(states(tmp_path).values()) == {"done"}
    first, second = (tmp_path / "pretrain/a/nodes").read_text().split()
    assert first != second
    (failure,) = (tmp_path / "pretrain/a/node_failures").iterdir()
    assert json.loads(failure.read_text())["node"] == first
    assert starts(tmp_path).count("pretrain/a") == 2


def test_a_job_that_fails_before_python_starts_has_failed(tmp_path: Path) -> None:
    """And the one that Slurm then never starts is blocked. A silent one is named by its command."""
    for setup, message in {
        "echo 'module: command not found' >&2; exit 3": "error: the setup of the site failed: exit 3",
        "exit 3": "error: the setup of the site failed: exit 3",
    }.items():
        root = tmp_path / str(len(setup))
        run_fake(root, replace(CLUSTER, setup=[setup]))
        wait_for_empty_queue(root)
        seen = {status.job.id: status for status in grid_status(GridDir(root)).jobs}
        assert (seen["prepare/demo"].state, seen["pretrain/a"].state) == ("failed", "blocked")
        assert seen["prepare/demo"].run.last_error_line == message
        assert seen["prepare/demo"].log.is_file()
        assert not starts(root)


def test_ctrl_c_during_a_submission_takes_it_back(tmp_path: Path) -> None:
    process = slow_submitter(tmp_path)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert "stopped; nothing was submitted" in output
    assert not comments_in_queue(tmp_path)
    assert not GridDir(tmp_path).plan_file.exists()
    assert not submitted_ids(GridDir(tmp_path))


def test_what_a_killed_submitter_left_is_shown_and_replaced(tmp_path: Path) -> None:
    process = slow_submitter(tmp_path)
    process.kill()
    process.communicate()
    left = comments_in_queue(tmp_path)
    assert left
    assert grid_status(GridDir(tmp_path)).unrecorded == tuple(sorted(left))
    run_fake(tmp_path, CLUSTER)
    assert not set(left) & set(ids_in_queue(tmp_path).values())
    wait_for_empty_queue(tmp_path)
    assert not grid_status(GridDir(tmp_path)).unrecorded
    assert set(states(tmp_path).values()) == {"done"}
    assert len(starts(tmp_path)) == len(set(starts(tmp_path)))


def slow_submitter(root: Path) -> subprocess.Popen[str]:
    """A submitter that is at work: it has submitted a job, which waits, and not yet the last one."""
    commands = root / "commands"
    commands.mkdir()
    script = commands / "sbatch"
    script.write_text(f'#!/bin/bash\n{shutil.which("sbatch")} --hold "$@"\nsleep 3\n')
    script.chmod(0o755)
    environment = {**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, launch_fakes.__file__, "submit", str(root), "slurm"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_until(lambda: comments_in_queue(root))
    return process


def test_a_held_job_is_queued_until_it_is_released(tmp_path: Path) -> None:
    """Held by an administrator after a requeue (REQUEUE_HOLD). It is neither lost nor submitted again."""
    run_fake(tmp_path, CLUSTER, {"pretrain/a": "stoppable"})
    wait_until((tmp_path / "pretrain/a/started").exists)
    slurm_id = ids_in_queue(tmp_path)["pretrain/a"]
    subprocess.run(["scontrol", "requeuehold", slurm_id], check=True)
    wait_until((tmp_path / "pretrain/a/saved").exists)
    wait_until(lambda: states(tmp_path)["pretrain/a"] == "queued")
    time.sleep(1)
    run_fake(tmp_path, CLUSTER, {"pretrain/a": "stoppable"})
    assert ids_in_queue(tmp_path)["pretrain/a"] == slurm_id
    subprocess.run(["scontrol", "release", slurm_id], check=True)
    wait_for_empty_queue(tmp_path)
    assert set(states(tmp_path).values()) == {"done"}
    assert starts(tmp_path).count("pretrain/a") == 2


def test_a_preempted_grid_is_not_submitted_again(tmp_path: Path) -> None:
    cluster = replace(CLUSTER, partition="low")
    run_fake(tmp_path, cluster, {"pretrain/a": "stoppable"})
    wait_until((tmp_path / "pretrain/a/started").exists)
    slurm_id = ids_in_queue(tmp_path)["pretrain/a"]
    preempt(slurm_id)
    wait_until((tmp_path / "pretrain/a/saved").exists)
    run_fake(tmp_path, cluster, {"pretrain/a": "stoppable"})
    assert ids_in_queue(tmp_path)["pretrain/a"] == slurm_id
    wait_for_empty_queue(tmp_path)
    assert set(states(tmp_path).values()) == {"done"}
    assert starts(tmp_path).count("pretrain/a") == 2


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")
def test_another_user_sees_the_jobs_and_never_takes_them_for_lost(tmp_path: Path) -> None:
    """Where Slurm shows the jobs of others, and where it hides them (PrivateData=jobs)."""
    run_fake(tmp_path, CLUSTER, {"pretrain/a": "stoppable"})
    wait_until((tmp_path / "pretrain/a/started").exists)
    subprocess.run(["chmod", "-R", "a+rX", tmp_path], check=True)
    for folder in tmp_path.parents[:3]:
        folder.chmod(folder.stat().st_mode | 0o055)
    shown = as_nobody(tmp_path)
    assert (shown["pretrain/a"][0], shown["finetune/a"][0]) == ("running", "queued")
    if slurm_commands.cluster_name() != "metapt":
        pytest.skip("only the configuration of the development cluster may be edited")
    configuration = Path(os.environ.get("SLURM_CONF", "/etc/slurm/slurm.conf"))
    before = configuration.read_text()
    try:
        configuration.write_text(f"{before}PrivateData=jobs\n")
        subprocess.run(["scontrol", "reconfigure"], check=True)
        hidden = as_nobody(tmp_path)
        assert hidden["finetune/a"] == [
            "unknown",
            f"{slurm_commands.user_name()} on {slurm_commands.cluster_name()}",
        ]
        assert "lost" not in {state for state, _ in hidden.values()}
    finally:
        configuration.write_text(before)
        subprocess.run(["scontrol", "reconfigure"], check=True)
    subprocess.run(["scancel", *ids_in_queue(tmp_path).values()], check=True)
    wait_for_empty_queue(tmp_path)
    assert current_statuses(fake_plan(tmp_path), GridDir(tmp_path))["pretrain/a"].state == "interrupted"


def as_nobody(root: Path) -> dict[str, list[str]]:
    """State, and who submitted it, of each job, as another user sees them: in a child process, since root cannot return."""
    reader, writer = os.pipe()
    if child := os.fork():
        os.close(writer)
        with os.fdopen(reader) as answer:
            content = answer.read()
        assert os.waitpid(child, 0)[1] == 0
        return json.loads(content)
    code = 1
    try:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        seen = {
            status.job.id: [status.state, status.submitted_by] for status in grid_status(GridDir(root)).jobs
        }
        os.write(writer, json.dumps(seen).encode())
        code = 0
    finally:
        os._exit(code)
