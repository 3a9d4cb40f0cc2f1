"""run_status: the state and progress of a run, from the files in its folder."""

from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from metapt.launch.run_status import TAIL_BYTES, RunStatus, run_status, tail
from metapt.leases import is_held
from metapt.runs import MetricsWriter, Run


def started(path: Path, config: dict[str, object]) -> Run:
    run = Run(path)
    run.start(config, {})
    return run


def pretraining(path: Path, steps: int) -> Run:
    """Alternating updates: next-token ones of 1 s at 100 tokens/s, episodes of 3 s at 20 tokens/s."""
    run = started(path, {"train": {"max_steps": 1000}})
    metrics = MetricsWriter(run)
    metrics.write(0, "eval", eval_loss_nats=9.0)
    for step in range(1, steps + 1):
        if step % 2:
            metrics.write(step, "lm", lm_loss_nats=5.0 + step, seconds=1.0, tokens_per_second=100.0)
        else:
            metrics.write(step, "episode", query_loss_nats=1.0, seconds=3.0, tokens_per_second=20.0)
    metrics.close()
    return run


def test_an_empty_or_absent_folder_is_waiting(tmp_path: Path) -> None:
    assert run_status(tmp_path / "absent") == run_status(tmp_path) == RunStatus("waiting")
    assert list(tmp_path.iterdir()) == []


def test_progress_of_pretraining(tmp_path: Path) -> None:
    run = pretraining(tmp_path, 10)
    with run.locked():
        status = run_status(tmp_path)
    assert (status.state, status.step, status.max_steps, status.unit) == ("running", 10, 1000, "step")
    assert status.loss == 14.0  # of step 9, the last next-token update
    assert status.tokens_per_second == pytest.approx((5 * 100 + 5 * 60) / 20)
    assert status.seconds_left == pytest.approx(990 * 2.0)
    assert run_status(tmp_path).state == "interrupted"


def test_only_the_end_of_a_long_file_is_read_without_a_cut_line(tmp_path: Path) -> None:
    run = pretraining(tmp_path, 3000)
    assert run.metrics_file.stat().st_size > 2 * TAIL_BYTES
    with run.metrics_file.open("a") as file:
        file.write('{"step": 3001, "kind": "l')
    status = run_status(tmp_path)
    assert status.step == 3000
    assert status.tokens_per_second == pytest.approx(40, rel=0.01)


def test_progress_of_fine_tuning_is_counted_in_epochs(tmp_path: Path) -> None:
    run = started(tmp_path, {"ner": {"max_epochs": 10}, "train": {"seed": 0}})
    metrics = MetricsWriter(run)
    for step in range(1, 8):
        epoch = (step - 1) // 3 + 1
        metrics.write(step, "train", epoch=epoch, loss_nats=1.0 / step, lr=1e-3, seconds_total=2.0 * step)
        if step in (3, 6):
            metrics.write(step, "dev", epoch=step // 3, f1=0.5)
    status = run_status(tmp_path)
    assert (status.step, status.max_steps, status.unit, status.loss) == (2, 10, "epoch", 1 / 7)
    assert (status.dev_f1, status.test_f1) == (0.5, None)
    assert status.seconds_left == pytest.approx(8 * 12.0 / 2)
    metrics.close()


def test_progress_of_fine_tuning_with_a_fixed_number_of_updates_is_counted_in_updates(tmp_path: Path) -> None:
    run = started(tmp_path, {"ner": {"max_steps": 20, "max_epochs": 10}, "train": {"seed": 0}})
    metrics = MetricsWriter(run)
    for step in range(1, 6):
        metrics.write(step, "train", epoch=step, loss_nats=1.0 / step, lr=1e-3, seconds_total=2.0 * step)
    status = run_status(run.path)
    metrics.close()
    assert (status.step, status.max_steps, status.unit, status.loss) == (5, 20, "step", 1 / 5)
    assert status.seconds_left == 30


def test_epochs_longer_than_the_tail_are_counted(tmp_path: Path) -> None:
    run = started(tmp_path, {"ner": {"max_epochs": 10}, "train": {"seed": 0}})
    metrics = MetricsWriter(run)
    metrics.write(10, "dev", epoch=1, f1=0.5)
    for step in range(11, 3000):
        metrics.write(step, "train", epoch=2, loss_nats=1.0, lr=1e-3, seconds_total=0.1 * step)
    metrics.close()
    assert run.metrics_file.stat().st_size > 2 * TAIL_BYTES
    assert (run_status(tmp_path).step, run_status(tmp_path).max_steps) == (1, 10)


def test_a_failed_run_that_starts_again_is_running_then_done(tmp_path: Path) -> None:
    run = started(tmp_path, {"train": {"max_steps": 3}})
    run.error_file.write_text("Traceback\n\nOSError: no space left\n\n")
    assert run_status(tmp_path).state == "failed"
    assert run_status(tmp_path).last_error_line == "OSError: no space left"
    with run.locked():
        assert run_status(tmp_path).state == "running"
    run.finish({})
    assert run_status(tmp_path) == RunStatus("done")


def test_a_finished_tagger_or_baseline_has_its_f1(tmp_path: Path) -> None:
    sets = {"tl_trg": {"f1": 0.25, "per_type": {}}, "ceb_gja": {"f1": 0.5, "per_type": {}}}
    run = started(tmp_path / "tagger", {"ner": {"max_epochs": 10}})
    run.finish({"kind": "finetune", "epochs": 7, "dev_f1": 0.75, "sets": sets})
    test_f1 = {"tl_trg": 0.25, "ceb_gja": 0.5}
    expected = RunStatus("done", 7, 7, "epoch", dev_f1=0.75, test_f1=test_f1)
    assert run_status(tmp_path / "tagger") == expected
    Run(tmp_path / "rule").finish({"kind": "baseline", "dev_f1": None, "sets": sets})
    assert run_status(tmp_path / "rule") == RunStatus("done", unit="epoch", test_f1=test_f1)


def _hold(path: Path, held: Event, release: Event) -> None:
    with Run(path).locked():
        held.set()
        release.wait(60)


def test_the_lock_of_another_process_is_seen_and_not_taken(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, held, release))
    process.start()
    assert held.wait(60)
    assert is_held(Run(tmp_path).lock_file)
    assert is_held(Run(tmp_path).lock_file)  # asking has not taken it
    release.set()
    process.join(60)
    assert not is_held(Run(tmp_path).lock_file)
    with Run(tmp_path).locked():
        pass


def test_tail_starts_no_earlier_than_the_given_byte(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"an old error\n" + "ein Fehler: Grüße\n".encode())
    assert tail(path, 1000, start=13) == "ein Fehler: Grüße\n"
    assert tail(path, 6, start=13) == "üße\n"
    assert tail(tmp_path / "absent", 5) == ""
