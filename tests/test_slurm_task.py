"""A job's life under Slurm, with a fake clock: what is saved, what is queued again and by whom, and when it is given up."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_slurm import JOB, KILL_WAIT, LIMIT, WARNING, Slurm
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metapt.errors import OperationalError
from metapt.launch.code_snapshot import VARIABLE
from metapt.launch.grid_dir import Root
from metapt.launch.requeues import refuse_fruitless_requeues
from metapt.launch.run_status import run_status
from metapt.launch.slurm_task import Task


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """Eight updates of a minute each; ten fit before the warning."""
    return Slurm(tmp_path, monkeypatch)


def state(slurm: Slurm) -> str:
    return run_status(slurm.program.run.path).state


def test_a_job_longer_than_its_limit_is_done_in_parts_and_no_update_is_made_twice(slurm: Slurm) -> None:
    slurm.program.updates = 75  # 75 minutes, ten in each start: more requeues than may be in vain
    slurm.live()
    assert state(slurm) == "done"
    assert slurm.asked_to_requeue == slurm.restarts == 7
    assert [step for step, _ in slurm.program.run.checkpoints()] == [10, 20, 30, 40, 50, 60, 70]


@pytest.mark.parametrize("sign", ["warn", "term"])
def test_a_preempted_job_asks_to_be_queued_again_whichever_signal_the_site_sends(
    slurm: Slurm, sign: str
) -> None:
    slurm.live([(200, sign)])
    assert (state(slurm), slurm.asked_to_requeue, slurm.restarts) == ("done", 1, 1)
    assert [step for step, _ in slurm.program.run.checkpoints()] == [3]


@pytest.mark.parametrize("sign", ["warn", "term"])
def test_a_job_that_is_preempted_while_its_process_starts_is_not_lost(slurm: Slurm, sign: str) -> None:
    slurm.program.starting_seconds = 40
    slurm.live([(20, sign)], [(20, "cancel")] if sign == "term" else ())
    again = 1 if sign == "term" else 0  # the warning went unheard
    assert (slurm.asked_to_requeue, slurm.restarts) == (again, again)
    assert state(slurm) == ("interrupted" if sign == "term" else "done")  # that cancelled is not queued again


@pytest.mark.parametrize("before", [[], [(198, "warn")]], ids=["alone", "after a warning"])
def test_a_cancelled_job_saves_and_is_not_queued_again(slurm: Slurm, before: list[tuple[float, str]]) -> None:
    slurm.live([*before, (200, "cancel")])
    assert (state(slurm), slurm.asked_to_requeue, slurm.restarts) == ("interrupted", 0, 0)
    assert slurm.program.saved == 3
    assert slurm.clock.now < 200 + KILL_WAIT


def test_what_was_saved_only_after_the_time_limit_is_queued_again_all_the_same(slurm: Slurm) -> None:
    slurm.program.updates, slurm.program.saving_seconds = 15, WARNING + KILL_WAIT / 2
    slurm.live()
    assert (state(slurm), slurm.asked_to_requeue) == ("done", 1)


def test_what_takes_longer_to_save_is_killed_and_may_be_submitted_again(slurm: Slurm) -> None:
    slurm.program.updates, slurm.program.saving_seconds = 15, WARNING + 2 * KILL_WAIT
    slurm.live()
    assert (state(slurm), slurm.asked_to_requeue, slurm.program.saved) == ("interrupted", 0, 0)
    assert slurm.clock.now == LIMIT + KILL_WAIT


def test_an_administrators_requeue_is_not_asked_for_a_second_time(slurm: Slurm) -> None:
    slurm.live([(200, "requeue")])
    assert (state(slurm), slurm.asked_to_requeue, slurm.restarts) == ("done", 0, 1)
    assert slurm.program.saved == 3


def test_a_failed_node_costs_the_updates_since_the_last_checkpoint(slurm: Slurm) -> None:
    slurm.live([(200, "warn")], [(200, "fail_node")])
    assert (state(slurm), slurm.restarts, slurm.asked_to_requeue) == ("done", 2, 1)
    assert [step for step, _ in slurm.program.run.checkpoints()] == [3]
    assert slurm.clock.now == pytest.approx(
        slurm.program.starts[2] + 5 * 60, abs=1
    )  # as many as the second had before it


def test_a_job_that_never_gets_as_far_as_a_checkpoint_is_given_up(slurm: Slurm) -> None:
    slurm.program.update_seconds = 2 * LIMIT
    slurm.live()
    status = run_status(slurm.program.run.path)
    assert status.state == "failed"
    assert status.last_error_line == (
        "queued again 4 times in a row without a new checkpoint (there is none); given up"
    )
    assert len(slurm.program.starts) == 4  # at the last requeue it was not started


def test_nodes_that_fail_again_and_again_count_too(slurm: Slurm) -> None:
    slurm.live([(200, "warn")], *[[(50, "fail_node")]] * 9)
    assert state(slurm) == "failed"
    assert "(the newest is of step 3)" in run_status(slurm.program.run.path).last_error_line
    assert len(slurm.program.starts) == 1 + 1 + 3  # the first, the first after the checkpoint, three requeues


def test_another_task_than_the_first_asks_for_nothing_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = Slurm(tmp_path, monkeypatch, rank=1).live([(200, "warn")])
    assert (slurm.asked_to_requeue, slurm.restarts) == (0, 0)
    assert slurm.clock.now == pytest.approx(200 + 5 + 90, abs=1)  # it gives the first one the time to ask
    assert not slurm.program.run.requeues_file.exists()
    assert not slurm.program.run.error_file.exists()


def test_a_start_waits_for_the_process_of_the_last_one(slurm: Slurm) -> None:
    """On a node that Slurm has given up it may still be at work."""
    lock = FileLock(slurm.program.run.lock_file)
    slurm.program.run.path.mkdir(parents=True)

    def hold() -> None:
        lock.acquire()
        slurm.clock.at(260, lock.release)

    slurm.clock.at(199, hold)
    slurm.live([(200, "fail_node")])
    assert state(slurm) == "done"
    assert slurm.program.starts == [0, pytest.approx(260, abs=1)]


WHAT = st.sampled_from(["warn", "term", "requeue", "fail_node"])
EVENTS = st.lists(st.tuples(st.floats(0, LIMIT - WARNING - 1), WHAT), max_size=1)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lives=st.lists(EVENTS, max_size=6), saving=st.sampled_from([1.0, KILL_WAIT - 1]))
def test_in_whatever_way_it_is_stopped_it_ends_done_or_is_given_up(
    lives: list[list[tuple[float, str]]],
    saving: float,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slurm = Slurm(tmp_path_factory.mktemp("root"), monkeypatch)
    slurm.program.saving_seconds = saving
    slurm.live(*lives)
    given_up = "given up" in run_status(slurm.program.run.path).last_error_line
    assert state(slurm) == ("failed" if given_up else "done")
    steps = [step for step, _ in slurm.program.run.checkpoints()]
    in_vain = len(slurm.program.starts) - 1 - len(steps)
    assert in_vain >= 3 if given_up else in_vain <= 3 * (1 + len(steps))


def test_the_local_executor_counts_by_the_task_that_it_queues_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no count of Slurm's; one of a job around it means nothing."""
    variables = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "5", "SLURM_RESTART_COUNT": "0"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    run, again = Root(tmp_path).run(JOB), Task(tmp_path, JOB, 1, max_requeues=0).checkpoint().function
    refuse_fruitless_requeues(run, "5", 0, most=0)
    with pytest.raises(OperationalError, match="queued again 1 times in a row"):
        again()


def test_what_fails_before_its_process_starts_is_failed_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not lost: status and the jobs that need it find the error."""
    variables = {
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_JOB_ID": "5",
        VARIABLE: str(tmp_path / "other"),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OperationalError, match="submitted with the source"):
        Task(tmp_path, JOB, 1, max_requeues=3)()
    status = run_status(Root(tmp_path).run(JOB).path)
    assert status.state == "failed"
    assert "submitted with the source" in status.last_error_line
