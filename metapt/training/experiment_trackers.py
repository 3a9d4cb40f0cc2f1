"""Metrics of a run: metrics.jsonl, and optional copies of it in TensorBoard, Weights & Biases and trackio (log.*).

metrics.jsonl is the record; nothing reads the copies back. The packages are optional and imported only if requested. A
tracker that fails is switched off with a warning and never ends a run.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import metadata
from typing import Any, Protocol, cast

from metapt.config import LogConfig
from metapt.errors import UserError, install_hint
from metapt.runs import MetricsWriter, Run


class Tracker(Protocol):
    """Records named scalars at a step."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def require_packages(config: LogConfig) -> None:
    """Check that the packages of all requested trackers are installed.

    Raises:
        UserError: a package is missing.
    """
    for name, requested in (
        ("tensorboard", config.tensorboard),
        ("wandb", config.wandb != "off"),
        ("trackio", config.trackio),
    ):
        if requested:
            try:
                metadata.version(name)
            except metadata.PackageNotFoundError:
                raise UserError(
                    f"log.{name} needs a package that is not installed. {install_hint('loggers')}"
                ) from None


class TrackedMetricsWriter:
    """Writes metrics to metrics.jsonl and to the requested trackers.

    Args:
        run: a run whose metrics.jsonl has been trimmed to what the run will not write again.
        settings: the configuration of the run, which Weights & Biases shows.
        last_step: the step from which the run resumes; 0 for a new run.
    """

    def __init__(self, run: Run, config: LogConfig, settings: Mapping[str, Any], last_step: int):
        self._trackers = open_trackers(run, config, settings, last_step)
        self._writer = MetricsWriter(run)

    def write(self, step: int, kind: str, **values: Any) -> None:
        """Write one line of metrics.jsonl and its copies."""
        self._writer.write(step, kind, **values)
        self._trackers.write(step, kind, values)

    def close(self) -> None:
        self._writer.close()
        self._trackers.close()


def open_trackers(
    run: Run, config: LogConfig, settings: Mapping[str, Any], last_step: int
) -> ExperimentTrackers:
    """Open the trackers that the configuration requests; arguments as in TrackedMetricsWriter."""
    factories: dict[str, Callable[[], Tracker]] = {}
    if config.tensorboard:
        factories["tensorboard"] = lambda: TensorBoard(run, last_step)
    if config.wandb != "off":
        factories["wandb"] = lambda: WeightsAndBiases(run, config, settings)
    if config.trackio:
        factories["trackio"] = lambda: Trackio(run, config, settings, last_step)
    return ExperimentTrackers(factories)


class ExperimentTrackers:
    """Several trackers. One that fails is switched off with a warning."""

    def __init__(self, factories: Mapping[str, Callable[[], Tracker]]):
        self._trackers: dict[str, Tracker] = {}
        for name, create in factories.items():
            with self._switch_off_on_error(name):
                self._trackers[name] = create()

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Copy one line of metrics.jsonl."""
        flat = dict(scalars(kind, values))
        for name, tracker in list(self._trackers.items()):
            with self._switch_off_on_error(name):
                tracker.write(step, flat)

    def close(self) -> None:
        for name, tracker in list(self._trackers.items()):
            with self._switch_off_on_error(name):
                tracker.close()

    @contextmanager
    def _switch_off_on_error(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # any error: the run matters more than its copy
            self._trackers.pop(name, None)
            print(
                f"warning: log.{name} failed and is switched off until the run is restarted ({error})",
                file=sys.stderr,
                flush=True,
            )


def scalars(kind: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the finite numbers of a line of metrics.jsonl, named by their path: `episode/support_loss_nats/0`.

    Trackers group by the part before the first slash and sort by name, hence other groups for losses and for dynamics:
    `1_loss/lm/lm_loss_nats` is shown first, and `training_dynamics/...` last.
    """
    group = "training_dynamics" if kind == "dynamics" else kind
    for name, value in _numbers(group, values):
        yield f"1_loss/{name}" if name.endswith("loss_nats") and group == kind else name, value


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yield the finite numbers in nested mappings and lists, named by their path."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(f"{name}/{key}", item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, item in enumerate(value):
            yield from _numbers(f"{name}/{index}", item)
    elif isinstance(value, int | float) and math.isfinite(value):
        yield name, float(value)


class TensorBoard:
    """Event files in the run folder, which show exactly the lines of metrics.jsonl.

    A resumed run hides all points from `last_step` on, and writes those of `last_step` again from metrics.jsonl. Points
    after the last checkpoint of a killed run, or of an evaluation that is repeated, are therefore not shown twice.
    """

    def __init__(self, run: Run, last_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.tensorboard_dir), purge_step=last_step)
        for line in run.metrics():
            if line["step"] == last_step:
                values = {name: value for name, value in line.items() if name not in ("step", "kind")}
                self.write(last_step, dict(scalars(line["kind"], values)))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A Weights & Biases run, continued after every resumption; its local files are in the run folder.

    The service ignores points for steps that it already has. In offline mode each start of the run writes files of its
    own; upload them with `wandb sync`.
    """

    def __init__(self, run: Run, config: LogConfig, settings: Mapping[str, Any]):
        import wandb

        self._run = wandb.init(
            project=config.project,
            id=run_id(run),
            name=run.path.name,
            dir=str(run.path),
            mode=cast(Any, config.wandb),
            resume="allow",
            config=dict(settings),
            settings=wandb.Settings(console="off", silent=True),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of trackio for each start of a run, in the group of its folder; the points are in a database in TRACKIO_DIR.

    Each start has a name of its own because trackio would show the points of repeated steps twice.
    """

    def __init__(self, run: Run, config: LogConfig, settings: Mapping[str, Any], last_step: int):
        import trackio

        with redirect_stdout(sys.stderr):
            self._run = trackio.init(
                project=config.project,
                name=f"{run.path.name} from step {last_step}",
                group=run.path.name,
                config=dict(settings),
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self._run.finish()


def run_id(run: Run) -> str:
    """An identifier of a started run. A later run in the same folder has another one."""
    recorded = run.provenance()
    text = "/".join([recorded["host"], str(run.path.absolute()), recorded["started"]])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
