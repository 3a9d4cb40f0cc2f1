"""Copies of metrics.jsonl in TensorBoard and Weights & Biases, where asked for (log.*). Nothing reads them back.

Both packages are extras of the installation and imported only when asked for. None of their failures ends a run.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from typing import Any, Protocol, cast

from metapt.config import LogConfig, PretrainConfig
from metapt.errors import UserError
from metapt.runs import Run


class Sink(Protocol):
    """Takes named scalars at a step."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def require_packages(log: LogConfig) -> None:
    """Raises UserError if a package that the configuration asks for is not installed."""
    for name, asked in (("tensorboard", log.tensorboard), ("wandb", log.wandb != "off")):
        if asked:
            try:
                metadata.version(name)
            except metadata.PackageNotFoundError:
                raise UserError(
                    f"log.{name} needs a package that is not installed: pip install {name}"
                ) from None


def open_trackers(run: Run, config: PretrainConfig, done: int) -> ExperimentTrackers:
    """The loggers that the configuration asks for, of a run that goes on after `done` updates."""
    makers: dict[str, Callable[[], Sink]] = {}
    if config.log.tensorboard:
        makers["tensorboard"] = lambda: TensorBoard(run, done)
    if config.log.wandb != "off":
        makers["wandb"] = lambda: WeightsAndBiases(run, config)
    return ExperimentTrackers(makers)


class ExperimentTrackers:
    """Several sinks; one that fails is given up with a warning."""

    def __init__(self, makers: Mapping[str, Callable[[], Sink]]):
        self._sinks: dict[str, Sink] = {}
        for name, make in makers.items():
            with self._forgiving(name):
                self._sinks[name] = make()

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl."""
        flat = dict(scalars(kind, values))
        for name, sink in list(self._sinks.items()):
            with self._forgiving(name):
                sink.write(step, flat)

    def close(self) -> None:
        for name, sink in list(self._sinks.items()):
            with self._forgiving(name):
                sink.close()

    @contextmanager
    def _forgiving(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it was: the run is worth more than its copy
            self._sinks.pop(name, None)
            print(
                f"warning: log.{name} failed and is off until the run is started again ({error})",
                file=sys.stderr,
            )


def scalars(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """The finite numbers in nested mappings and lists, named by their path: `episode/support_loss_nats/0`."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from scalars(f"{name}/{key}", item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, item in enumerate(value):
            yield from scalars(f"{name}/{index}", item)
    elif isinstance(value, int | float) and math.isfinite(value):
        yield name, float(value)


class TensorBoard:
    """Event files in the run folder. What a killed run wrote after its last checkpoint is not shown twice."""

    def __init__(self, run: Run, done: int):
        from torch.utils.tensorboard import SummaryWriter

        first = done + 1 if done else 0  # of the steps that are about to be written
        self._writer = SummaryWriter(str(run.tensorboard_dir), purge_step=first)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, the same one after every resumption; its local files are in the run folder.

    The service drops what comes again for a step that it has. Offline, each start of the run writes files of its
    own, to be sent with `wandb sync`.
    """

    def __init__(self, run: Run, config: PretrainConfig):
        import wandb

        self._run = wandb.init(
            project=config.log.wandb_project,
            id=run_id(run),
            name=run.path.name,
            dir=str(run.path),
            mode=cast(Any, config.log.wandb),
            resume="allow",
            config=asdict(config),
            settings=wandb.Settings(console="off", silent=True),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def run_id(run: Run) -> str:
    """A name for a begun run that no other has, not even one that is later begun in the same folder."""
    begun = run.provenance()
    text = "/".join([begun["host"], str(run.path.absolute()), begun["started"]])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
