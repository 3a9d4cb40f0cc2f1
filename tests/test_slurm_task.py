"""The life of a job under a fake Slurm with a fake clock: what it saves, who requeues it, when it is abandoned."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_slurm import JOB, KILL_WAIT, LIMIT, WARNING, Slurm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metapt.errors import OperationalError
from metapt.launch.code_snapshot import VARIABLE
from metapt.launch.grid_dir import GridDir
from metapt.launch.requeues import check_requeue_limit
from metapt.launch.run_status import run_status
from metapt.launch.slurm_task import SlurmTask
from metapt.leases import Lease


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """Eight updates of a minute each; ten fit before the warning."""
    return Slurm(tmp_path, monkeypatch)


def state(slurm: Slurm) -> str:
    return run_status(slurm.program.run.path).state


def interim_steps(slurm: Slurm) -> list[int]:
    """The steps of the checkpoints before the last update."""
    return [step for step, _ in slurm.program.run.checkpoints() if step < slurm.program.updates]


def test_a_job_longer_than_its_time_limit_finishes_without_repeated_updates(slurm: Slurm) -> None:
    slurm.program.updates = 75  # 75 minutes, ten per start: more requeues than the limit without progress
    slurm.live()
    assert state(slurm) == "done"
    assert slurm.requeue_requests == slurm.restarts == 7
    assert interim_steps(slurm) == [10, 20, 30, 40, 50, 60, 70]


@pytest.mark.parametrize("event", ["warn", "term"])
def test_a_preempted_job_is_requeued_whichever_signal_the_site_sends(slurm: Slurm, event: str) -> None:
    slurm.live([(200, event)])
    assert (state(slurm), slurm.requeue_requests, slurm.restarts) == ("done", 1, 1)
    assert interim_steps(slurm) == [3]


@pytest.mark.parametrize("event", ["warn", "term"])
def test_a_job_preempted_during_start_up_is_not_lost(slurm: Slurm, event: str) -> None:
    slurm.program.starting_seconds = 40
    slurm.live([(20, event)], [(20, "cancel")] if event == "term" else ())
    again = 1 if event == "term" else 0  # the warning was ignored
    assert (slurm.requeue_requests, slurm.restarts) == (again, again)
    assert state(slurm) == ("interrupted" if event == "term" else "done")  # the cancelled one is not requeued


@pytest.mark.parametrize("before", [[], [(198, "warn")]], ids=["alone", "after a warning"])
def test_a_cancelled_job_saves_and_is_not_requeued(slurm: Slurm, before: list[tuple[float, str]]) -> None:
    slurm.live([*before, (200, "cancel")])
    assert (state(slurm), slurm.requeue_requests, slurm.restarts) == ("interrupted", 0, 0)
    assert slurm.program.saved == 3
    assert slurm.clock.now < 200 + KILL_WAIT


def test_a_job_that_saves_after_the_time_limit_is_requeued(slurm: Slurm) -> None:
    slurm.program.updates, slurm.program.saving_seconds = 15, WARNING + KILL_WAIT / 2
    slurm.live()
    assert (state(slurm), slurm.requeue_requests) == ("done", 1)


def test_a_job_that_saves_too_slowly_is_killed_and_can_be_resubmitted(slurm: Slurm) -> None:
    slurm.program.updates, slurm.program.saving_seconds = 15, WARNING + 2 * KILL_WAIT
    slurm.live()
    assert (state(slurm), slurm.requeue_requests, slurm.program.saved) == ("interrupted", 0, 0)
    assert slurm.clock.now == LIMIT + KILL_WAIT


def test_an_administrators_requeue_is_not_requested_again(slurm: Slurm) -> None:
    slurm.live([(200, "requeue")])
    assert (state(slurm), slurm.requeue_requests, slurm.restarts) == ("done", 0, 1)
    assert interim_steps(slurm) == [3]


def test_a_failed_node_costs_the_updates_since_the_last_checkpoint(slurm: Slurm) -> None:
    slurm.live([(200, "warn")], [(200, "fail_node")])
    assert (state(slurm), slurm.restarts, slurm.requeue_requests) == ("done", 2, 1)
    assert interim_steps(slurm) == [3]
    assert slurm.clock.now == pytest.approx(
        slurm.program.starts[2] + 5 * 60, abs=1
    )  # as many updates as remained before the second start


def test_a_job_that_never_reaches_a_checkpoint_is_abandoned(slurm: Slurm) -> None:
    slurm.program.update_seconds = 2 * LIMIT
    slurm.live()
    status = run_status(slurm.program.run.path)
    assert status.state == "failed"
    assert status.last_error_line == (
        "requeued 4 times in a row without a new checkpoint (newest: none); abandoned"
    )
    assert len(slurm.program.starts) == 4  # the last requeue does not start it


def test_repeated_node_failures_count_as_requeues(slurm: Slurm) -> None:
    slurm.live([(200, "warn")], *[[(50, "fail_node")]] * 9)
    assert state(slurm) == "failed"
    assert "(newest: step 3)" in run_status(slurm.program.run.path).last_error_line
    assert len(slurm.program.starts) == 1 + 1 + 3  # the first, the first after the checkpoint, three requeues


def test_only_the_first_task_requests_a_requeue_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = Slurm(tmp_path, monkeypatch, rank=1).live([(200, "warn")])
    assert (slurm.requeue_requests, slurm.restarts) == (0, 0)
    assert slurm.clock.now == pytest.approx(
        200 + 5 + 90, abs=1
    )  # it leaves the first task time to request it
    assert not slurm.program.run.requeues_file.exists()
    assert not slurm.program.run.error_file.exists()


def test_a_start_waits_for_the_process_of_the_previous_one(slurm: Slurm) -> None:
    """It may still run on a node that Slurm takes for dead."""
    lease = Lease(slurm.program.run.lock_file)
    slurm.program.run.path.mkdir(parents=True)

    def hold() -> None:
        lease.acquire()
        slurm.clock.at(260, lease.release)

    slurm.clock.at(199, hold)
    slurm.live([(200, "fail_node")])
    assert state(slurm) == "done"
    assert slurm.program.starts == [0, pytest.approx(260, abs=1)]


KINDS = st.sampled_from(["warn", "term", "requeue", "fail_node"])
EVENTS = st.lists(st.tuples(st.floats(0, LIMIT - WARNING - 1), KINDS), max_size=1)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lives=st.lists(EVENTS, max_size=6), saving=st.sampled_from([1.0, KILL_WAIT - 1]))
def test_a_job_stopped_in_any_way_ends_done_or_abandoned(
    lives: list[list[tuple[float, str]]],
    saving: float,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slurm = Slurm(tmp_path_factory.mktemp("root"), monkeypatch)
    slurm.program.saving_seconds = saving
    slurm.live(*lives)
    abandoned = "abandoned" in run_status(slurm.program.run.path).last_error_line
    assert state(slurm) == ("failed" if abandoned else "done")
    steps = interim_steps(slurm)
    fruitless = len(slurm.program.starts) - 1 - len(steps)
    assert fruitless >= 3 if abandoned else fruitless <= 3 * (1 + len(steps))


def test_the_local_executor_counts_restarts_in_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no count by Slurm; the count of a surrounding Slurm job does not apply."""
    variables = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "5", "SLURM_RESTART_COUNT": "0"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    run, again = GridDir(tmp_path).run(JOB), SlurmTask(tmp_path, JOB, 1, max_requeues=0).checkpoint().function
    check_requeue_limit(run, "5", 0, max_requeues=0)
    with pytest.raises(OperationalError, match="requeued 1 times in a row"):
        again()


def test_a_job_that_fails_before_its_process_starts_has_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is failed and not lost: status and the jobs that need it find the error."""
    variables = {
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_JOB_ID": "5",
        VARIABLE: str(tmp_path / "other"),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OperationalError, match="submitted with the source"):
        SlurmTask(tmp_path, JOB, 1, max_requeues=3)()
    status = run_status(GridDir(tmp_path).run(JOB).path)
    assert status.state == "failed"
    assert "submitted with the source" in status.last_error_line
