"""Fine-tuning that is killed or interrupted resumes to the same weights."""

from __future__ import annotations

import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tuned import Killed, assert_same, die_after, tune

from metapt.errors import Interrupted
from metapt.finetuning import features, score_sets, tuner
from metapt.runs import Run
from metapt.training.signals import StopRequest


@pytest.mark.parametrize(
    ("tuning", "steps"), [("head_only", 12), ("head_only", 15), ("full", 6), ("full", 8), ("full", 3)]
)
def test_killed_run_resumes_to_the_same_results(
    world: Path,
    head_run: Run,
    full_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tuning: str,
    steps: int,
) -> None:
    """Killed at the end of an epoch (6 steps each), within one, and before the first checkpoint."""
    more = ("ner.max_epochs=6", f"tuning={tuning}", *(["ner.lr=0.005"] if tuning == "full" else []))
    with monkeypatch.context() as patch:
        die_after(patch, steps)
        with pytest.raises(Killed):
            tune(world, tmp_path / "run", *more)
    assert [step for step, _ in Run(tmp_path / "run").checkpoints()] == [steps // 6 * 6][: steps // 6]
    assert_same(tune(world, tmp_path / "run", *more), head_run if tuning == "head_only" else full_run)


def stop_at(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> StopRequest:
    """Send a stop request when the function `name` is called in a module."""
    stop, real = StopRequest(), getattr(module, name)

    def signalled(*args: Any, **kwargs: Any) -> Any:
        stop._record(signal.SIGTERM, None)
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, signalled)
    return stop


def test_signal_within_an_epoch_saves_a_checkpoint(
    world: Path, head_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        with monkeypatch.context() as patch:
            stop = stop_at(patch, tuner, "epoch_batches")
            with pytest.raises(Interrupted, match=f"step {step}"):
                tune(world, tmp_path / "run", "ner.max_epochs=6", stop=stop)
        assert [done for done, _ in Run(tmp_path / "run").checkpoints()] == [step]
    assert_same(tune(world, tmp_path / "run", "ner.max_epochs=6"), head_run)


def test_signal_while_features_are_computed(
    world: Path, head_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("ner.max_epochs=6", f"ner.cache_dir={tmp_path / 'cache'}")
    with monkeypatch.context() as patch:
        stop = stop_at(patch, features, "word_features")
        with pytest.raises(Interrupted, match="word features"):
            tune(world, tmp_path / "run", *more, stop=stop)
    assert not list((tmp_path / "cache").glob("*/"))
    assert_same(tune(world, tmp_path / "run", *more), head_run)


def test_kill_during_evaluation_does_not_repeat_training(
    world: Path, head_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def die(*_: object) -> None:
            raise Killed

        patch.setattr(score_sets, "write_predictions", die)
        with pytest.raises(Killed):
            tune(world, tmp_path / "run", "ner.max_epochs=6")
    assert not Run(tmp_path / "run").is_done
    die_after(monkeypatch, 36)
    assert_same(tune(world, tmp_path / "run", "ner.max_epochs=6"), head_run)


def test_damaged_checkpoint_is_skipped(
    world: Path,
    head_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        die_after(patch, 7)
        with pytest.raises(Killed):
            tune(world, tmp_path / "run", "ner.max_epochs=6")
    (checkpoint,) = [folder for _, folder in Run(tmp_path / "run").checkpoints()]
    weights = checkpoint / "engine" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert_same(tune(world, tmp_path / "run", "ner.max_epochs=6"), head_run)
    assert "damaged" in capsys.readouterr().err
