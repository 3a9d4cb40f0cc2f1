"""Copies of the metrics in TensorBoard and Weights & Biases, read back from what they wrote."""

from __future__ import annotations

import json
import math
import struct
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from metapt.config import commandline, identity
from metapt.errors import UserError
from metapt.pretrain import main
from metapt.runs import Run
from metapt.training import experiment_trackers
from metapt.training.experiment_trackers import ExperimentTrackers, open_trackers, scalars


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def begun(path: Path, *words: str):
    config = commandline.load("pretrain", [f"run_dir={path}", *words])
    run = Run(path)
    run.start(identity(config), {}, asdict(config))
    return run, config


def tensorboard_points(run: Run) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run.tensorboard_dir), size_guidance={"scalars": 0})
    events.Reload()
    return {
        name: [(point.step, point.value) for point in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def wandb_points(run: Run) -> list[dict[str, list[tuple[int, float]]]]:
    """Name to (step, value) of each start of the run, from the offline files (records in the log format of LevelDB)."""
    return [_points(file.read_bytes()) for file in sorted(run.path.glob("wandb/offline-run-*/*.wandb"))]


def _points(content: bytes) -> dict[str, list[tuple[int, float]]]:
    block, place, record = 32768, 7, b""  # after the head of the file
    found: dict[str, list[tuple[int, float]]] = {}
    while place + 7 <= len(content):
        if block - place % block < 7:
            place += block - place % block
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            history = wandb_internal_pb2.Record.FromString(record).history
            for item in history.item:
                name = item.key or "/".join(item.nested_key)
                if name[0] != "_":
                    found.setdefault(name, []).append((history.step.num, json.loads(item.value_json)))
            record = b""
    return found


def expected_points(run: Run) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for line in run.metrics():
        for name, value in scalars(line.pop("kind"), {key: line[key] for key in line if key != "step"}):
            found.setdefault(name, []).append((line["step"], value))
    return found


def test_scalars_are_named_by_their_path_and_finite():
    values = {
        "loss": [1, math.nan, 2.5],
        "rank": {"q": [[0.5]]},
        "far": math.inf,
        "note": "text",
        "none": None,
    }
    assert dict(scalars("episode", values)) == {
        "episode/loss/0": 1.0,
        "episode/loss/2": 2.5,
        "episode/rank/q/0/0": 0.5,
    }


def test_loggers_are_off_by_default_and_do_not_decide_a_run():
    config = commandline.load(
        "pretrain", ["log.tensorboard=true", "log.wandb=offline", "train.dynamics_every=7"]
    )
    assert identity(config) == identity(commandline.load("pretrain", []))
    assert "log" not in identity(config), "runs that were begun without these keys would be refused"
    default = commandline.load("pretrain", []).log
    assert (default.tensorboard, default.wandb) == (False, "off")


@pytest.mark.commands
def test_both_get_every_line(nano_arguments: list[str], tmp_path: Path):
    run = Run(tmp_path / "run")
    words = ["objective=maml", "log.tensorboard=true", "log.wandb=offline", f"run_dir={run.path}"]
    main([*nano_arguments, *words])
    expected = expected_points(run)
    assert {name.split("/")[0] for name in expected} == {"lm", "episode", "eval", "dynamics"}
    assert {"episode/support_loss_nats/10", "dynamics/effective_rank/q/2"} <= expected.keys()
    shown = tensorboard_points(run)
    assert shown.keys() == expected.keys()
    for name, points in expected.items():
        assert [step for step, _ in shown[name]] == [step for step, _ in points]
        assert [value for _, value in shown[name]] == pytest.approx([value for _, value in points], rel=1e-6)
    (sent,) = wandb_points(run)
    assert sent == expected


def test_tensorboard_shows_no_step_twice_after_a_resumption(tmp_path: Path):
    run, config = begun(tmp_path / "run", "log.tensorboard=true")
    for done, steps in ((0, range(9)), (4, range(5, 7)), (0, range(3))):
        copies = open_trackers(run, config, done)
        for step in steps:
            copies.write(step, "eval", {"loss": step + 100 * done})
        copies.close()
        expected = {0: [*range(len(steps))], 4: [0, 1, 2, 3, 4, 405, 406]}[done]
        assert [value for _, value in tensorboard_points(run)["eval/loss"]] == expected


def test_a_resumed_run_is_the_same_one_in_weights_and_biases(tmp_path: Path):
    run, config = begun(tmp_path / "run", "log.wandb=offline")
    for done in (0, 4):
        copies = open_trackers(run, config, done)
        copies.write(done + 1, "eval", {"loss": 1.5})
        copies.close()
        time.sleep(1.1)  # the files of a start are named by its second
    files = [*run.path.glob("wandb/offline-run-*/*.wandb")]
    assert len(files) == 2
    assert {file.name for file in files} == {f"run-{experiment_trackers.run_id(run)}.wandb"}
    assert [points["eval/loss"] for points in wandb_points(run)] == [[(1, 1.5)], [(5, 1.5)]]


def test_a_folder_that_is_begun_anew_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, _ = begun(tmp_path / "run")
    first = experiment_trackers.run_id(run)
    assert experiment_trackers.run_id(Run(tmp_path / "run")) == first
    made = run.provenance()
    monkeypatch.setattr(Run, "provenance", lambda self: {**made, "started": "another time"})
    assert experiment_trackers.run_id(run) != first


class Faulty:
    """Fails when it is used for the second time."""

    def __init__(self) -> None:
        self.uses = 0

    def write(self, step: int, values: object) -> None:
        self.uses += 1
        if self.uses > 1:
            raise RuntimeError("the disk is full")

    def close(self) -> None:
        raise AssertionError("a sink that failed is not closed")


class Keeper:
    def __init__(self) -> None:
        self.kept: list[tuple[int, object]] = []

    def write(self, step: int, values: object) -> None:
        self.kept.append((step, values))

    def close(self) -> None:
        self.kept.append((-1, "closed"))


def unavailable() -> Faulty:
    raise RuntimeError("no such service")


def test_a_failing_logger_is_given_up_with_one_warning(capsys: pytest.CaptureFixture[str]):
    faulty, keeper = Faulty(), Keeper()
    copies = ExperimentTrackers({"absent": unavailable, "faulty": lambda: faulty, "keeper": lambda: keeper})
    for step in range(4):
        copies.write(step, "eval", {"loss": 1})
    copies.close()
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2
    assert "log.absent" in warnings[0]
    assert "no such service" in warnings[0]
    assert "log.faulty" in warnings[1]
    assert "the disk is full" in warnings[1]
    assert faulty.uses == 2
    assert keeper.kept == [*((step, {"eval/loss": 1.0}) for step in range(4)), (-1, "closed")]


@pytest.mark.parametrize(
    ("word", "package"), [("log.tensorboard=true", "tensorboard"), ("log.wandb=offline", "wandb")]
)
def test_a_missing_package_is_named_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, package: str
):
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(experiment_trackers.metadata, "version", version)
    with pytest.raises(UserError, match=f"pip install {package}"):
        main([word, f"run_dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()
