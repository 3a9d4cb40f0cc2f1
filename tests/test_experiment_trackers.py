"""The copies of metrics in TensorBoard and Weights & Biases, read back from their own files."""

from __future__ import annotations

import json
import math
import signal
import sqlite3
import struct
import time
from contextlib import closing
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tuned import Killed, die_after, tune
from wandb.proto import wandb_internal_pb2

from metapt.config import PretrainConfig, commandline, identity
from metapt.errors import Interrupted, UserError
from metapt.finetuning import tuner
from metapt.finetuning.resume import FinetuneCheckpoints
from metapt.pretrain import main
from metapt.runs import Run
from metapt.training import experiment_trackers
from metapt.training.experiment_trackers import (
    ExperimentTrackers,
    TrackedMetricsWriter,
    open_trackers,
    scalars,
)
from metapt.training.signals import StopRequest


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def started_run(path: Path, *words: str) -> tuple[Run, PretrainConfig]:
    config = commandline.load("pretrain", [f"run_dir={path}", *words])
    run = Run(path)
    run.start(identity(config), {}, asdict(config))
    return run, config


def wait_for_new_file_names() -> None:
    """Both packages name the files of a start by its second, and TensorBoard reads them in the order of names."""
    time.sleep(1.1)


def tensorboard_points(run: Run) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run.tensorboard_dir), size_guidance={"scalars": 0})
    events.Reload()
    return {
        name: [(point.step, point.value) for point in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def wandb_points(run: Run) -> list[dict[str, list[tuple[int, float]]]]:
    """Map names to (step, value) for each start of the run, from the offline files (LevelDB log records)."""
    return [_points(file.read_bytes()) for file in sorted(run.path.glob("wandb/offline-run-*/*.wandb"))]


def _points(content: bytes) -> dict[str, list[tuple[int, float]]]:
    block, position, record = 32768, 7, b""  # after the file header
    points: dict[str, list[tuple[int, float]]] = {}
    while position + 7 <= len(content):
        if block - position % block < 7:
            position += block - position % block
            continue
        length, kind = struct.unpack("<HB", content[position + 4 : position + 7])
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a complete record, or its last part
            history = wandb_internal_pb2.Record.FromString(record).history
            for item in history.item:
                name = item.key or "/".join(item.nested_key)
                if name[0] != "_":
                    points.setdefault(name, []).append((history.step.num, json.loads(item.value_json)))
            record = b""
    return points


def expected_points(run: Run) -> dict[str, list[tuple[int, float]]]:
    points: dict[str, list[tuple[int, float]]] = {}
    for line in run.metrics():
        for name, value in scalars(line.pop("kind"), {key: line[key] for key in line if key != "step"}):
            points.setdefault(name, []).append((line["step"], value))
    return points


def test_scalars_are_finite_and_named_by_their_path() -> None:
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


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_trackers_are_off_by_default_and_not_part_of_the_identity(command: str) -> None:
    required = ["checkpoint=model", "source=en_ewt", "run_dir=run"] if command == "finetune" else []
    config = commandline.load(command, [*required, "log.tensorboard=true", "log.wandb=offline"])
    plain = commandline.load(command, required)
    assert identity(config) == identity(plain)
    assert "log" not in identity(config), "runs that were started without these keys would be rejected"
    default = plain.log
    assert (default.tensorboard, default.wandb) == (False, "off")


@pytest.mark.commands
def test_pretraining_copies_every_line(nano_arguments: list[str], tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    words = ["objective=maml_paper", "log.tensorboard=true", "log.wandb=offline", f"run_dir={run.path}"]
    main([*nano_arguments, *words])
    expected = expected_points(run)
    groups = sorted({name.split("/")[0] for name in expected})
    assert groups == ["1_loss", "episode", "eval", "lm", "training_dynamics"]
    losses = {name for name in expected if name.startswith("1_loss/")}
    assert losses == {
        "1_loss/lm/lm_loss_nats",
        "1_loss/eval/eval_loss_nats",
        "1_loss/episode/query_loss_nats",
    }
    assert {"episode/support_loss_nats/10", "training_dynamics/effective_rank/q/2"} <= expected.keys()
    assert_tensorboard_shows_all_metrics(run)
    (sent,) = wandb_points(run)
    assert sent == expected


def assert_tensorboard_shows_all_metrics(run: Run) -> None:
    """TensorBoard shows every number of metrics.jsonl exactly once."""
    expected, shown = expected_points(run), tensorboard_points(run)
    assert shown.keys() == expected.keys()
    for name, points in expected.items():
        assert [step for step, _ in shown[name]] == [step for step, _ in points]
        assert [value for _, value in shown[name]] == pytest.approx([value for _, value in points], rel=1e-6)


def test_tensorboard_shows_no_step_twice_after_resuming(tmp_path: Path) -> None:
    """Runs are killed after step 8, resume from step 4 with a repeated evaluation, and restart from scratch."""
    run, config = started_run(tmp_path / "run", "log.tensorboard=true")
    for last_step, steps in ((0, range(9)), (4, range(4, 7)), (0, range(3))):
        run.trim_metrics(last_step, rewritten_kinds=["eval"])
        writer = TrackedMetricsWriter(run, config.log, asdict(config), last_step)
        for step in steps:
            if step > last_step:
                writer.write(step, "lm", loss=step + 100 * last_step)
            writer.write(step, "eval", loss=step + 1000 * last_step)
        writer.close()
        wait_for_new_file_names()
        assert_tensorboard_shows_all_metrics(run)
    assert [step for step, _ in tensorboard_points(run)["eval/loss"]] == [0, 1, 2]


@pytest.mark.parametrize("step", [8, 12])
def test_fine_tuning_copies_every_line_once(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """A run is killed within an epoch or after the dev scores of an epoch, before its checkpoint, and resumes."""
    options = ("ner.max_epochs=3", "log.tensorboard=true", "log.wandb=offline")
    with monkeypatch.context() as patch:
        die_after(patch, step)
        with pytest.raises(Killed):
            tune(world, tmp_path / "run", *options)
    wait_for_new_file_names()
    run = tune(world, tmp_path / "run", *options)
    expected = expected_points(run)
    assert sorted({name.split("/")[0] for name in expected}) == ["1_loss", "dev", "train"]
    assert [point for point, _ in expected["dev/f1"]] == [6, 12, 18]
    assert_tensorboard_shows_all_metrics(run)
    before, after = wandb_points(run)
    assert [point for point, _ in before["1_loss/train/loss_nats"]] == list(range(1, step + 1))
    assert after["dev/f1"] == expected["dev/f1"][step // 6 :]


def test_repeated_dev_scores_are_shown_once(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is interrupted before scoring step 6, then killed between the dev scores and the checkpoint."""
    options, stop = ("ner.max_epochs=2", "log.tensorboard=true"), StopRequest()
    with monkeypatch.context() as patch:

        def interrupted_scores(*args: object) -> None:
            stop._record(signal.SIGTERM, None)

        patch.setattr(tuner, "dev_scores", interrupted_scores)
        with pytest.raises(Interrupted):
            tune(world, tmp_path / "run", *options, stop=stop)
    wait_for_new_file_names()
    with monkeypatch.context() as patch:

        def die(self: FinetuneCheckpoints) -> None:
            raise Killed

        patch.setattr(FinetuneCheckpoints, "save", die)
        with pytest.raises(Killed):
            tune(world, tmp_path / "run", *options)
    assert [line["step"] for line in Run(tmp_path / "run").metrics() if line["kind"] == "dev"] == [6]
    wait_for_new_file_names()
    run = tune(world, tmp_path / "run", *options)
    assert [step for step, _ in tensorboard_points(run)["dev/f1"]] == [6, 12]
    assert_tensorboard_shows_all_metrics(run)


def test_resumed_run_continues_the_same_wandb_run(tmp_path: Path) -> None:
    run, config = started_run(tmp_path / "run", "log.wandb=offline")
    for done in (0, 4):
        copies = open_trackers(run, config.log, asdict(config), done)
        copies.write(done + 1, "eval", {"loss": 1.5})
        copies.close()
        wait_for_new_file_names()
    files = [*run.path.glob("wandb/offline-run-*/*.wandb")]
    assert len(files) == 2
    assert {file.name for file in files} == {f"run-{experiment_trackers.run_id(run)}.wandb"}
    assert [points["eval/loss"] for points in wandb_points(run)] == [[(1, 1.5)], [(5, 1.5)]]


def test_new_run_in_the_same_folder_has_another_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = started_run(tmp_path / "run")
    first = experiment_trackers.run_id(run)
    assert experiment_trackers.run_id(Run(tmp_path / "run")) == first
    recorded = run.provenance()
    monkeypatch.setattr(Run, "provenance", lambda self: {**recorded, "started": "another time"})
    assert experiment_trackers.run_id(run) != first


def test_trackio_gets_every_line_of_fine_tuning(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is imported, here first
    run = tune(world, tmp_path / "run", "ner.max_epochs=1", "log.trackio=true", "log.project=names")
    with closing(sqlite3.connect(tmp_path / "trackio" / "names.db")) as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
        ((config,),) = database.execute("SELECT config FROM configs").fetchall()
    points: dict[str, list[tuple[int, float]]] = {}
    for _, step, values in rows:
        for name, value in json.loads(values).items():
            points.setdefault(name, []).append((step, value))
    assert points == expected_points(run)
    assert {name for name, _, _ in rows} == {"run from step 0"}
    assert json.loads(config)["_Group"] == "run"
    assert json.loads(config)["ner"]["max_epochs"] == 1


class FailingTracker:
    """A tracker that fails on its second use."""

    def __init__(self) -> None:
        self.uses = 0

    def write(self, step: int, values: object) -> None:
        self.uses += 1
        if self.uses > 1:
            raise RuntimeError("the disk is full")

    def close(self) -> None:
        raise AssertionError("a tracker that failed must not be closed")


class RecordingTracker:
    def __init__(self) -> None:
        self.recorded_points: list[tuple[int, object]] = []

    def write(self, step: int, values: object) -> None:
        self.recorded_points.append((step, values))

    def close(self) -> None:
        self.recorded_points.append((-1, "closed"))


def unavailable() -> FailingTracker:
    raise RuntimeError("no such service")


def test_failing_tracker_is_switched_off_with_one_warning(capsys: pytest.CaptureFixture[str]) -> None:
    faulty, keeper = FailingTracker(), RecordingTracker()
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
    assert keeper.recorded_points == [*((step, {"eval/loss": 1.0}) for step in range(4)), (-1, "closed")]


@pytest.mark.parametrize(
    ("word", "package"),
    [
        ("log.tensorboard=true", "tensorboard"),
        ("log.wandb=offline", "wandb"),
        ("log.trackio=true", "trackio"),
    ],
)
def test_missing_package_is_reported_before_the_run_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, package: str
) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(experiment_trackers.metadata, "version", version)
    with pytest.raises(UserError, match=f"log.{package} needs a package"):
        main([word, f"run_dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()
