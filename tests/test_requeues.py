"""The limit on requeues without a new checkpoint: what is noted, when a job is given up, and that all ranks agree."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metapt.errors import OperationalError
from metapt.launch import requeues
from metapt.launch.code_snapshot import code
from metapt.launch.requeues import refuse_fruitless_requeues
from metapt.launch.run_status import run_status
from metapt.runs import Run

MOST = 2


def start(run: Run, number: int, job: str = "7_1", leads: bool = True) -> bool:
    """Whether the job may run at this start."""
    try:
        refuse_fruitless_requeues(run, job, number, MOST, leads)
    except OperationalError:
        return False
    return True


def test_a_job_that_gets_nowhere_is_given_up_and_says_why(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.checkpoint(12).mkdir(parents=True)
    assert [start(run, number) for number in range(5)] == [True, True, True, False, False]
    said = run_status(tmp_path)
    assert said.state == "failed"
    assert said.last_error_line == (
        "queued again 4 times in a row without a new checkpoint (the newest is of step 12); given up"
    )


def test_starts_that_were_stopped_before_they_were_noted_count_too(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert not start(run, 3)
    assert start(run, 2, "8")  # of another job
    run.checkpoint(1).mkdir(parents=True)
    assert [start(run, number, "8") for number in (3, 4, 5, 6)] == [True, True, True, False]


def test_a_job_that_is_submitted_anew_begins_to_count_anew(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert [start(run, number) for number in range(4)] == [True, True, True, False]
    assert [start(run, number, "8") for number in range(4)] == [True, True, True, False]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_it_is_given_up_after_so_many_starts_without_progress_whatever_was_before(
    tmp_path_factory: pytest.TempPathFactory, brings: list[bool]
) -> None:
    """`brings`: whether each start writes a checkpoint. Ranks that look before and after the leading one agree."""
    run, fruitless = Run(tmp_path_factory.mktemp("run")), 0
    for number, writes in enumerate(brings):
        before = start(run, number, leads=False)
        may = start(run, number)
        assert before == may == start(run, number, leads=False) == (fruitless <= MOST)
        if not may:
            return
        if writes:  # which the next start notices, so that it is the first to count again
            run.checkpoint(number).mkdir(parents=True)
        fruitless = 0 if writes else fruitless + 1


def test_the_batch_scripts_ask_by_the_words_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["metapt.finetune", "data=demo", "checkpoint=c", "source=en_demo", f"run_dir={tmp_path / 'a b'}"]
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    for number in range(6):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(number))
        requeues.main(words)
    told = capsys.readouterr().out.splitlines()
    assert told == [str(code(Path(), is_copied=False))] * 6
    monkeypatch.setenv("SLURM_RESTART_COUNT", "6")
    with pytest.raises(OperationalError, match="6 times in a row without a new checkpoint"):
        requeues.main(words)
