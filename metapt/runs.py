"""The run folder: its names, files and markers. No other module spells a file name of a run.

    ROOT/                               a grid
      plan.json                         the jobs of the present plan, and what each waits for
      code/                             copies of the source that jobs run
      corpus/                           token shards, shared by the runs of the grid
      features/                         word features of frozen decoders, likewise (metapt/finetuning/feature_cache.py)
      pretrain/RUN/ , finetune/RUN/ , baseline/RUN/     runs, as below; RUN ends with a hash of its configuration
      report/                           what analysis/report.py writes

    RUN/
      config.yaml                       {config, provenance}, written before the first step
      metrics.jsonl                     one JSON object a line: step, kind, values with the unit in the name
      tensorboard/ , wandb/             copies of it for these tools, if asked for
      checkpoints/step_000100/          there under this name only when complete
        manifest.json                   size and SHA-256 of every file
        state.json                      step and running totals
        engine/                         what the trainer needs to go on
        model/                          loads with AutoModelForCausalLM and AutoTokenizer
          metapt.json                   its origin: scale, objective, seed, step, data
      tagger/                           (fine-tuning) the best weights
      predictions/<set>.jsonl           (fine-tuning, baselines) one sentence a line
      crf.crfsuite                      (the baseline crf) its model
      result.json                       written last: its presence is what "done" means
      error.txt                         the last failure; gone when the run starts again
      requeues.json                     (on a cluster) since when it has no new checkpoint

This module imports neither torch nor anything of metapt that trains, so that the analysis may use it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from metapt import files
from metapt.errors import OperationalError, UserError
from metapt.provenance import provenance

ENGINE_DIR, MODEL_DIR, STATE_FILE, ORIGIN_FILE = "engine", "model", "state.json", "metapt.json"
CHECKPOINT_NAME = re.compile(r"^step_(\d{6,})$")
LENGTH = re.compile(
    r"^ +max_(step|epoch)s: (\d+)$", re.MULTILINE
)  # in config.yaml: of pretraining, of fine-tuning


class Run:
    """One run folder. Making the object touches nothing on disk."""

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.jsonl"
        self.result_file = self.path / "result.json"
        self.error_file = self.path / "error.txt"
        self.requeues_file = self.path / "requeues.json"
        self.lock_file = self.path / ".lock"
        self.checkpoints_dir = self.path / "checkpoints"
        self.predictions_dir = self.path / "predictions"
        self.tagger_dir = self.path / "tagger"
        self.crf_file = self.path / "crf.crfsuite"
        self.tensorboard_dir = self.path / "tensorboard"

    @property
    def is_done(self) -> bool:
        return self.result_file.exists()

    def config(self) -> dict[str, Any]:
        """The resolved configuration of the run, as nested dictionaries."""
        return self._recorded()["config"]

    def length(self) -> tuple[int, str] | None:
        """How long the run is at most, and in what: (6000, "step") or (10, "epoch"); None if it has not begun.

        Found without reading the YAML, which takes seconds for hundreds of runs.
        """
        try:
            found = LENGTH.search(self.config_file.read_text(encoding="utf-8"))
        except OSError:
            return None
        return (int(found[2]), found[1]) if found else None

    def provenance(self) -> dict[str, Any]:
        """Commit, library versions, host and data fingerprints of the run."""
        return self._recorded()["provenance"]

    def _recorded(self) -> dict[str, Any]:
        try:
            return yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise UserError(f"{self.config_file}: damaged ({str(error).splitlines()[0]})") from None

    def result(self) -> dict[str, Any]:
        return json.loads(self.result_file.read_text(encoding="utf-8"))

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The complete lines of metrics.jsonl; a line cut off by a kill is left out."""
        yield from files.read_jsonl(self.metrics_file)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Holds the folder for this process, so that no two processes ever work in one run; leftovers of one that was
        killed are removed.

        The lock goes with the process, however it dies.
        Raises:
            OperationalError: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.lock_file, timeout=1)  # whoever asks for the status holds it for a moment
        try:
            lock.acquire()
        except Timeout:
            raise OperationalError(f"{self.path}: another process is at work in this run") from None
        try:
            CheckpointFolders.sweep(self)
            yield
        finally:
            lock.release()

    def begin(
        self,
        deciding: Mapping[str, Any],
        fingerprints: Mapping[str, str],
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes config.yaml, or checks that the one that stands there says the same.

        Args:
            deciding: the part of the configuration that decides the outcome of the run.
            fingerprints: of the data, by name.
            config: the complete configuration, which is what is written; absent: `deciding` is all of it.
        Raises:
            UserError: the folder holds a run with another configuration or other data.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if self.config_file.exists():
            self.refuse_another(deciding, fingerprints)
        else:
            content = {"config": dict(config or deciding), "provenance": provenance(fingerprints)}
            files.write_atomically(
                self.config_file, yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
            )
        self.error_file.unlink(missing_ok=True)

    def refuse_another(
        self, deciding: Mapping[str, Any], fingerprints: Mapping[str, str] | None = None
    ) -> None:
        """Raises UserError if the folder holds a run with another configuration, or made from other data."""
        differing = self.differences(deciding)
        if fingerprints is not None:
            differing += differences(self.provenance()["fingerprints"], fingerprints)
        if differing:
            lines = "\n".join(f"  {line}" for line in differing)
            raise UserError(
                f"{self.path} holds a run with another configuration:\n{lines}\n"
                "give another run_dir, or delete that folder"
            )

    def differences(self, deciding: Mapping[str, Any]) -> list[str]:
        """Lines `path: old there, new here` for what decides the outcome and differs from what was recorded.

        Raises:
            UserError: there is no config.yaml.
        """
        if not self.config_file.exists():
            raise UserError(f"{self.path} holds no {self.config_file.name}; give another run_dir")
        return differences(_restricted(self.config(), deciding), deciding)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes result.json; from here on the run is done."""
        files.write_json(self.result_file, result)

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints_dir / f"step_{step:06d}"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Complete checkpoints as (step, folder), oldest first."""
        if not self.checkpoints_dir.is_dir():
            return []
        found = ((CHECKPOINT_NAME.match(path.name), path) for path in self.checkpoints_dir.iterdir())
        return sorted((int(match[1]), path) for match, path in found if match)

    def newest_checkpoint(self, say: Callable[[str], None]) -> tuple[int, Path] | None:
        """The newest intact checkpoint as (step, folder), if there is one; `say` is told of damaged ones."""
        for step, folder in reversed(self.checkpoints()):
            problem = CheckpointFolders.problem(folder)
            if problem is None:
                return step, folder
            say(f"checkpoint of step {step} is damaged and passed over: {problem}")
        return None

    def trim_metrics(self, last_step: int, again: Collection[str] = ()) -> None:
        """Drops what a resumed run is about to write again: lines after `last_step`, and those of kinds `again` at it."""
        if self.metrics_file.exists():
            lines = (line for line in self.metrics() if line["step"] <= last_step)
            kept = [line for line in lines if line["step"] < last_step or line["kind"] not in again]
            files.write_atomically(self.metrics_file, "".join(json.dumps(line) + "\n" for line in kept))


class MetricsWriter:
    """Appends to metrics.jsonl, a whole line at a time."""

    def __init__(self, run: Run):
        self._file = run.metrics_file.open("a", encoding="utf-8")

    def write(self, step: int, kind: str, **values: Any) -> None:
        self._file.write(
            json.dumps(files.finite({"step": step, "kind": kind, **values}), allow_nan=False) + "\n"
        )
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class CheckpointFolders:
    """The commit protocol: fill `step_N.tmp`, record sizes and checksums, rename. Deletion goes the other way."""

    MANIFEST = "manifest.json"

    @staticmethod
    def staging(final: Path) -> Path:
        """An empty folder to fill; `commit` gives it its final name."""
        staging = final.with_name(final.name + ".tmp")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        return staging

    @classmethod
    def commit(cls, staging: Path, final: Path) -> None:
        content = sorted(path for path in staging.rglob("*") if path.is_file())
        listing = {
            str(path.relative_to(staging)): {"bytes": path.stat().st_size, "sha256": files.file_sha256(path)}
            for path in content
        }
        files.write_json(staging / cls.MANIFEST, {"files": listing})
        for path in (staging, *staging.rglob("*")):
            files.sync(path)
        replaced = _set_aside(final)
        staging.rename(final)
        files.sync(final.parent)
        shutil.rmtree(replaced, ignore_errors=True)

    @classmethod
    def problem(cls, folder: Path) -> str | None:
        """What is wrong with a checkpoint folder, or None if every file is there and unchanged."""
        try:
            listing = json.loads((folder / cls.MANIFEST).read_text(encoding="utf-8"))["files"]
            expected = [(folder / name, item["bytes"], item["sha256"]) for name, item in listing.items()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return f"{folder / cls.MANIFEST} is missing or unreadable"
        for path, size, checksum in expected:
            if not path.is_file():
                return f"{path} is missing"
            if path.stat().st_size != size:
                return f"{path} has {path.stat().st_size} bytes, not {size}"
            if files.file_sha256(path) != checksum:
                return f"{path} does not match its checksum"
        return None

    @staticmethod
    def sweep(run: Run) -> None:
        """Removes what a kill in the middle of writing or deleting has left."""
        for folder in (*run.checkpoints_dir.glob("step_*.tmp"), *run.checkpoints_dir.glob("step_*.deleted")):
            shutil.rmtree(folder, ignore_errors=True)
        for file in run.path.glob(".*.tmp"):  # of write_atomically
            file.unlink(missing_ok=True)

    @staticmethod
    def remove(folder: Path) -> None:
        """Takes the name away first, so that a half-deleted checkpoint is never taken for a complete one."""
        shutil.rmtree(_set_aside(folder), ignore_errors=True)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines `path: old there, new here` for every leaf in which two nested dictionaries differ."""
    lines: list[str] = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        path = f"{prefix}{name}"
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{path}.")
        elif before != after:
            lines.append(f"{path}: {before!r} there, {after!r} here")
    return lines


def _set_aside(folder: Path) -> Path:
    """Renames a folder, if it is there, to what is to be deleted."""
    doomed = folder.with_name(folder.name + ".deleted")
    shutil.rmtree(doomed, ignore_errors=True)
    if folder.exists():
        folder.rename(doomed)
    return doomed


def _restricted(values: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of nested dictionaries that `keys` has as well."""
    kept = {}
    for name, value in values.items():
        if name in keys:
            nested = isinstance(value, Mapping) and isinstance(keys[name], Mapping)
            kept[name] = _restricted(value, keys[name]) if nested else value
    return kept
