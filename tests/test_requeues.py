"""The limit on requeues without a new checkpoint: the record, when a job is abandoned, and that all ranks agree."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metapt.errors import OperationalError
from metapt.launch import requeues
from metapt.launch.code_snapshot import live_code
from metapt.launch.requeues import check_requeue_limit
from metapt.launch.run_status import run_status
from metapt.runs import Run

MAX_REQUEUES = 2


def start(run: Run, number: int, job: str = "7_1", is_lead: bool = True) -> bool:
    """Whether a job may run at this start."""
    try:
        check_requeue_limit(run, job, number, MAX_REQUEUES, is_lead)
    except OperationalError:
        return False
    return True


def test_a_job_without_progress_is_abandoned_with_a_message(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.checkpoint(12).mkdir(parents=True)
    assert [start(run, number) for number in range(5)] == [True, True, True, False, False]
    status = run_status(tmp_path)
    assert status.state == "failed"
    assert status.last_error_line == (
        "requeued 4 times in a row without a new checkpoint (newest: step 12); abandoned"
    )


def test_starts_that_were_stopped_before_their_record_count_too(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert not start(run, 3)
    assert start(run, 2, "8")  # of another job
    run.checkpoint(1).mkdir(parents=True)
    assert [start(run, number, "8") for number in (3, 4, 5, 6)] == [True, True, True, False]


def test_a_new_submission_starts_a_new_count(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert [start(run, number) for number in range(4)] == [True, True, True, False]
    assert [start(run, number, "8") for number in range(4)] == [True, True, True, False]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_a_job_is_abandoned_after_the_limit_whatever_happened_before(
    tmp_path_factory: pytest.TempPathFactory, has_progress: list[bool]
) -> None:
    """`has_progress`: whether each start writes a checkpoint. Ranks that look before and after the lead rank agree."""
    run, fruitless = Run(tmp_path_factory.mktemp("run")), 0
    for number, writes in enumerate(has_progress):
        before = start(run, number, is_lead=False)
        may = start(run, number)
        assert before == may == start(run, number, is_lead=False) == (fruitless <= MAX_REQUEUES)
        if not may:
            return
        if writes:  # the next start finds it and counts from there
            run.checkpoint(number).mkdir(parents=True)
        fruitless = 0 if writes else fruitless + 1


def test_the_command_of_the_batch_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "metapt.finetune_command",
        "data=demo",
        "checkpoint=c",
        "source=en_demo",
        f"run_dir={tmp_path / 'a b'}",
    ]
    monkeypatch.setattr("metapt.launch.run_checks.check_run", lambda config, ranks: None)  # no checkpoint
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    for number in range(6):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(number))
        requeues.main(words)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [str(live_code())] * 6
    monkeypatch.setenv("SLURM_RESTART_COUNT", "6")
    with pytest.raises(OperationalError, match="requeued 6 times in a row without a new checkpoint"):
        requeues.main(words)
