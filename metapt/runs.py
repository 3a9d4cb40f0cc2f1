"""The run folder: its names, files and markers. No other module spells a file name of a run.

    ROOT/                               a grid
      plan.json                         the jobs of the present plan, and what each waits for
      code/                             copies of the source that jobs run
      corpus/                           token shards, shared by the runs of the grid
      features/                         word vectors of frozen decoders, likewise (metapt/ner/cache.py)
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

import hashlib
import json
import math
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from metapt.errors import OperationalError, UserError

ENGINE_DIR, MODEL_DIR, STATE_FILE, ORIGIN_FILE = "engine", "model", "state.json", "metapt.json"
HUB_PREFIX = "hub:"
COMMIT_FILE = "COMMIT"  # beside the package in a copy of the source
CHECKPOINT_NAME = re.compile(r"^step_(\d{6,})$")
LENGTH = re.compile(
    r"^ +max_(step|epoch)s: (\d+)$", re.MULTILINE
)  # in config.yaml: of pretraining, of fine-tuning
LIBRARIES = (
    "torch",
    "deepspeed",
    "transformers",
    "tokenizers",
    "accelerate",
    "datasets",
    "submitit",
    "numpy",
)


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
        yield from read_jsonl(self.metrics_file)

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
            write_atomically(self.config_file, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
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
        write_json(self.result_file, result)

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
            write_atomically(self.metrics_file, "".join(json.dumps(line) + "\n" for line in kept))


class MetricsWriter:
    """Appends to metrics.jsonl, a whole line at a time."""

    def __init__(self, run: Run):
        self._file = run.metrics_file.open("a", encoding="utf-8")

    def write(self, step: int, kind: str, **values: Any) -> None:
        self._file.write(json.dumps(finite({"step": step, "kind": kind, **values}), allow_nan=False) + "\n")
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
        files = sorted(path for path in staging.rglob("*") if path.is_file())
        listing = {
            str(path.relative_to(staging)): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
            for path in files
        }
        write_json(staging / cls.MANIFEST, {"files": listing})
        for path in (staging, *staging.rglob("*")):
            sync(path)
        replaced = _set_aside(final)
        staging.rename(final)
        sync(final.parent)
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
            if file_sha256(path) != checksum:
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


def model_folder(path: str | Path) -> Path:
    """The folder that `from_pretrained` can load, for a model folder, a checkpoint, a finished run (its newest), or hub:NAME.

    Raises:
        UserError: nothing of the kind is there, it is damaged, or the run is not finished.
    """
    if str(path).startswith(HUB_PREFIX):
        return _from_hub(str(path).removeprefix(HUB_PREFIX))
    path = Path(path).expanduser()
    for folder in (path, path / MODEL_DIR):
        if (folder / "config.json").is_file():
            checkpoint = folder.parent
            if (checkpoint / CheckpointFolders.MANIFEST).exists():
                problem = CheckpointFolders.problem(checkpoint)
                if problem:
                    raise UserError(problem)
            return folder
    run = Run(path)
    if run.checkpoints() and not run.is_done:
        raise UserError(f"{path}: this run is not finished; wait for it, or name one of its checkpoints")
    found = run.newest_checkpoint(lambda text: print(text, file=sys.stderr))
    if found is None:
        raise UserError(f"{path}: neither a finished run, nor a checkpoint, nor a model folder")
    return found[1] / MODEL_DIR


def _from_hub(name: str) -> Path:
    """A folder with the weights, configuration and tokenizer of a model of the hub, fetched unless it stands in the cache.

    Raises:
        UserError: there is no such model, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    wanted = ["*.safetensors", "*.json", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"{HUB_PREFIX}{name}: cannot be fetched ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from None


def model_origin(folder: Path, name: str = "") -> dict[str, Any]:
    """What is known of a model folder: its metapt.json, or its name alone if it was not made here.

    Args:
        name: that of a model of the hub, with its prefix; otherwise a model is called as its folder.
    """
    file = folder / ORIGIN_FILE
    called = name.removeprefix(HUB_PREFIX) if name.startswith(HUB_PREFIX) else folder.name
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"model": called}
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error})") from None


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file so that readers see either the old or the new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """The same JSON value with null for numbers that are not finite, which JSON does not have."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a JSON-lines file; nothing if there is no such file."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def provenance(fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """What made a run: commit, library versions, host, time, data fingerprints."""
    versions = {name: metadata.version(name) for name in LIBRARIES}
    return {
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version(), **versions},
        "host": socket.gethostname(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "fingerprints": dict(fingerprints),
    }


def git_commit() -> str:
    """The commit of the source, `+changes` where tracked files differ from it, or `unknown` outside of a checkout.

    A copy of the source that a grid made (metapt/launch/code.py) has it in a file.
    """
    folder = Path(__file__).parent
    if (recorded := folder.parent / COMMIT_FILE).exists():
        return recorded.read_text(encoding="utf-8").strip()
    commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
    try:
        head, changes = (
            subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changes else "")


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


def sync(path: Path) -> None:
    """Asks the system to put a file or a folder's entries on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
