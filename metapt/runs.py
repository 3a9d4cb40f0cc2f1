"""The layout of run folders: file names, the lock, the recorded configuration, metrics, checkpoints.

No other module spells out a file name of a run folder. docs/run-folder.md describes the formats.

    ROOT/                               the folder of a grid
      plan.json                         the current jobs and their dependencies
      code/                             snapshots of the source code that jobs import
      corpus/                           token shards, shared by the runs of the grid
      features/                         cached word features of frozen decoders, shared as well
      pretrain/RUN/  finetune/RUN/  baseline/RUN/     run folders; RUN ends with a hash of the configuration
      report/                           the output of `metapt report`

    RUN/
      config.yaml                       {config, provenance}, written before the first step
      starts.jsonl                      one line per start: time, reason, job, nodes, GPUs, ranks, source, versions
      metrics.jsonl                     one JSON object per line: step, kind, values with their unit in the name
      tensorboard/  wandb/              copies of the metrics for these tools, if enabled
      checkpoints/step_000100/          has this name only when it is complete
        manifest.json                   size and SHA-256 of every file
        state.json                      step and running totals
        engine/                         what the trainer needs to resume
        model/                          loads with AutoModelForCausalLM and AutoTokenizer
          metapt.json                   its origin: model size, objective, seed, step, data
      tagger/                           (fine-tuning) the best weights, and their origin in metapt.json
      predictions/<set>.jsonl           (fine-tuning, baselines) one sentence per line
      crf.crfsuite                      (CRF baseline) the trained model
      result.json                       written last: a run is done if it exists (after pretraining: with the last checkpoint)
      error.txt                         the last failure; removed when the run starts again
      requeues.json                     (Slurm) requeues since the last new checkpoint
      node_failures/                    what ranks have recorded of failed devices and hangs (metapt.node_failures)
      .lock                             exists while a process works in the folder (metapt.leases)

This module imports neither torch nor any training code, so that the report can use it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from metapt import atomic_folders, files
from metapt.errors import OperationalError, UserError, first_line
from metapt.leases import Lease, LeaseHeld
from metapt.provenance import counting_starts, provenance, start_record

ENGINE_DIR, MODEL_DIR, STATE_FILE, ORIGIN_FILE = "engine", "model", "state.json", "metapt.json"
CHECKPOINT_NAME = re.compile(r"^step_(\d{6,})$")
# The line of config.yaml that limits a run: max_steps, or max_epochs of fine-tuning if the former is null.
MAX_LENGTH_LINE = re.compile(r"^ +max_(step|epoch)s: (\d+)$", re.MULTILINE)

HASHED_INPUTS = {  # keys of the inputs, by the name of their hash in config.yaml
    "corpus": ("data.name", "data.text_dir", "data.tokenizer"),
    "classes": ("classes.sizes", "classes.repeats"),
    "init_sha256": ("init",),
    "weights": ("checkpoint",),
    "sentences": ("data.uner_dir", "data.corpora"),
}


class Run:
    """One run folder. Creating the object does not touch the disk."""

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        self.config_file = self.path / "config.yaml"
        self.starts_file = self.path / "starts.jsonl"
        self.metrics_file = self.path / "metrics.jsonl"
        self.result_file = self.path / "result.json"
        self.error_file = self.path / "error.txt"
        self.requeues_file = self.path / "requeues.json"
        self.node_failures_dir = self.path / "node_failures"
        self.lock_file = self.path / ".lock"
        self.checkpoints_dir = self.path / "checkpoints"
        self.predictions_dir = self.path / "predictions"
        self.tagger_dir = self.path / "tagger"
        self.crf_file = self.path / "crf.crfsuite"
        self.tensorboard_dir = self.path / "tensorboard"

    @property
    def is_done(self) -> bool:
        """Whether the run has a result that counts (`result_problem`). Checksums are not compared."""
        return self.result_file.exists() and self.result_problem() is None

    def result_problem(self, hashed: str | None = None) -> str | None:
        """Why the result of the run does not count; None if it counts, or if there is none.

        The result of pretraining is worth nothing without its last checkpoint: an earlier one is another model.

        Args:
            hashed: the files of the checkpoint whose checksums are compared, as in `atomic_folders.problem`.
        """
        try:
            result = self.result()
        except FileNotFoundError:
            return None
        except ValueError as error:
            return f"{self.result_file} is damaged ({first_line(error)})"
        if result.get("kind") != "pretrain":
            return None
        if "steps" not in result:
            return f"{self.result_file} does not say after how many steps the run ended"
        folder = self.checkpoint(result["steps"])
        return atomic_folders.problem(folder, hashed) if folder.is_dir() else f"{folder} is missing"

    def weights_problem(self) -> str | None:
        """As `result_problem`, after comparing the checksums of the last checkpoint's model."""
        return self.result_problem(hashed=f"{MODEL_DIR}/")

    def withdraw_result(self) -> None:
        """Delete result.json: from then on the run is not done, and the same command resumes it."""
        self.result_file.unlink(missing_ok=True)

    def config(self) -> dict[str, Any]:
        """The resolved configuration of the run, as nested dictionaries."""
        return self._recorded()["config"]

    def provenance(self) -> dict[str, Any]:
        """Commit, library versions, host and data fingerprints of the run, as it first started."""
        return self._recorded()["provenance"]

    def starts(self) -> list[dict[str, Any]]:
        """The lines of starts.jsonl, in order, without damaged ones."""
        return list(files.read_jsonl(self.starts_file, lambda problem: None))

    def mixture(self) -> str | None:
        """How many sources and types of GPU trained the run, as "2 sources, 1 type of GPU"; None if not more than one."""
        starts = counting_starts(self.starts())
        used = len({entry.get("source") for entry in starts})
        gpus = len({name for entry in starts for name in entry.get("gpus", [])})
        if max(used, gpus) < 2:
            return None
        return f"{used} source{'s' * (used > 1)}, {gpus} type{'s' * (gpus != 1)} of GPU"

    def max_length(self) -> tuple[int, str] | None:
        """The configured length of the run, as (6000, "step") or (10, "epoch"); None if config.yaml does not exist.

        Searches the text of config.yaml instead of parsing it: parsing takes seconds for hundreds of runs.
        """
        try:
            found = MAX_LENGTH_LINE.search(self.config_file.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            return None
        return (int(found[2]), found[1]) if found else None

    def result(self) -> dict[str, Any]:
        return json.loads(self.result_file.read_text(encoding="utf-8"))

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl; a last one that a kill cut off is left out.

        Raises:
            UserError: a line is damaged. The command of the run leaves it out when it starts again.
        """
        yield from files.read_jsonl(self.metrics_file, _refuse)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for this process (metapt.leases), and remove leftovers of killed processes.

        Raises:
            OperationalError: another process has locked the folder.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lease = Lease(self.lock_file)
        try:
            lease.acquire()
        except LeaseHeld as holder:
            raise OperationalError(f"{self.path}: run directory is locked by {holder}") from None
        try:
            self.remove_leftovers()
            yield
        finally:
            lease.release()

    def start(
        self,
        identity: Mapping[str, Any],
        fingerprints: Mapping[str, str],
        config: Mapping[str, Any] | None = None,
        circumstances: Mapping[str, Any] | None = None,
    ) -> None:
        """Write config.yaml; if there is one, check that it describes the same run. Record the start; remove error.txt.

        The provenance in config.yaml is that of the first start; starts.jsonl has them all.

        Args:
            identity: the part of the configuration that decides the outcome of the run.
            fingerprints: hashes of the data, by name.
            config: the complete configuration, which is what is written; None: `identity` is all of it.
            circumstances: what starts.jsonl says beside time, reason, job, source and versions.
        Raises:
            UserError: the folder contains a run with a different configuration or different data.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        is_new = not self.config_file.exists()
        if not is_new:
            self.check_identity(identity, fingerprints, config)
        known = provenance(fingerprints) if is_new else self.provenance()
        self._write_config({"config": dict(config or identity), "provenance": known})
        newest = self.newest_checkpoint(lambda _: None)  # the run logs which ones it passes over
        record = start_record(newest[0] if newest else 0, self._reason(is_new), circumstances or {})
        files.append_line(self.starts_file, record)
        self.error_file.unlink(missing_ok=True)

    def check_identity(
        self,
        identity: Mapping[str, Any],
        fingerprints: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Check that the recorded run has this identity and, if they are given, these data fingerprints.

        Args:
            config: the complete configuration, with the paths that an error names in place of hashes.
        Raises:
            UserError: something differs, or there is no config.yaml.
        """
        if not self.config_file.exists():
            raise UserError(f"{self.path} has no {self.config_file.name}; choose another run_dir")
        recorded = self.config()
        differing = _differences(_restricted(recorded, identity), identity)
        if fingerprints is not None:
            differing += _differences(self.provenance()["fingerprints"], fingerprints)
        if differing:
            lines = "\n".join(f"  {_without_hashes(line, recorded, config or {})}" for line in differing)
            raise UserError(
                f"{self.path} contains a run with a different configuration:\n{lines}\n"
                "choose another run_dir, or delete this folder"
            )

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write result.json; from then on the run is done."""
        files.write_json(self.result_file, result)

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints_dir / f"step_{step:06d}"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Complete checkpoints as (step, folder), oldest first."""
        if not self.checkpoints_dir.is_dir():
            return []
        found = ((CHECKPOINT_NAME.match(path.name), path) for path in self.checkpoints_dir.iterdir())
        return sorted((int(match[1]), path) for match, path in found if match)

    def newest_checkpoint(self, log: Callable[[str], None]) -> tuple[int, Path] | None:
        """The newest checkpoint to resume from as (step, folder), or None: intact, and with the state of the optimizer.

        Each that is passed over is logged, and from where the run restarts.
        """
        found, saved = None, self.checkpoints()
        for step, folder in reversed(saved):
            problem = atomic_folders.problem(folder)
            if problem is None and atomic_folders.lists(folder, ENGINE_DIR):
                found = step, folder
                break
            reason = f"is damaged ({problem})" if problem else "has no optimizer state"
            log(f"checkpoint of step {step} {reason} and is skipped")
        if saved and (found is None or found[0] < saved[-1][0]):
            log(f"{self.path}: restarts from step {found[0] if found else 0}")
        return found

    def trim_metrics(self, last_step: int, rewritten_kinds: Collection[str] = ()) -> None:
        """Drop the lines that a resumed run will write again, and damaged ones, which are named on stderr.

        Args:
            last_step: the step from which the run resumes; all later lines are dropped.
            rewritten_kinds: the kinds of metrics whose lines at `last_step` are dropped as well.
        """
        if self.metrics_file.exists():
            intact = files.read_jsonl(self.metrics_file, lambda problem: print(problem, file=sys.stderr))
            lines = (line for line in intact if line["step"] <= last_step)
            kept = [line for line in lines if line["step"] < last_step or line["kind"] not in rewritten_kinds]
            files.write_atomically(self.metrics_file, "".join(json.dumps(line) + "\n" for line in kept))

    def repair_metrics(self) -> None:
        """Drop damaged lines of metrics.jsonl, if there are any."""
        try:
            for _ in self.metrics():
                pass
        except UserError:
            self.trim_metrics(sys.maxsize)

    def remove_leftovers(self) -> None:
        """Remove what a process left that was killed while it wrote or deleted a checkpoint or a file."""
        atomic_folders.remove_leftovers(self.checkpoints_dir, "step_*")
        for file in self.path.glob(f".*{files.TEMPORARY_SUFFIX}"):
            file.unlink(missing_ok=True)

    def _reason(self, is_new: bool) -> str:
        """Why the run starts."""
        if is_new:
            return "new"
        if self.error_file.exists():
            return "after a failure"
        if self.result_file.exists():
            return "extended after its end"
        requeues = os.environ.get("SLURM_RESTART_COUNT", "0")
        return "resumed" if requeues == "0" else f"requeue {requeues}"

    def _write_config(self, content: Mapping[str, Any]) -> None:
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        files.write_atomically(self.config_file, text)

    def _recorded(self) -> dict[str, Any]:
        """The content of config.yaml. Raises UserError if the file is cut off or otherwise damaged."""
        try:
            recorded = yaml.safe_load(self.config_file.read_bytes())
        except yaml.YAMLError as error:
            raise UserError(f"{self.config_file}: damaged ({first_line(error)})") from None
        known = recorded.get("provenance") if isinstance(recorded, dict) else None
        if not (isinstance(known, dict) and isinstance(known.get("fingerprints"), dict)):  # its last entry
            raise UserError(f"{self.config_file}: damaged (its end is missing)")
        return recorded


class MetricsWriter:
    """Appends complete lines to metrics.jsonl."""

    def __init__(self, run: Run):
        self._file = run.metrics_file.open("a", encoding="utf-8")

    def write(self, step: int, kind: str, **values: Any) -> None:
        line = files.json_safe({"step": step, "kind": kind, **values})
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _refuse(problem: str) -> None:
    raise UserError(problem)


def _differences(recorded: Mapping[str, Any], requested: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line for each leaf in which two nested dictionaries differ: `path: recorded OLD, requested NEW`."""
    lines: list[str] = []
    for name in sorted({*recorded, *requested}):
        old, new = recorded.get(name), requested.get(name)
        path = f"{prefix}{name}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += _differences(old, new, f"{path}.")
        elif old != new:
            lines.append(f"{path}: recorded {old!r}, requested {new!r}")
    return lines


def _without_hashes(line: str, recorded: Mapping[str, Any], requested: Mapping[str, Any]) -> str:
    """A line of `_differences`; if it is that of a hash, what the inputs that it is the hash of were and are.

    Args:
        recorded, requested: complete configurations.
    """
    name = line.partition(":")[0]
    if name not in HASHED_INPUTS:
        return line
    old, new = (
        {key: _value_at(config, key) for key in HASHED_INPUTS[name]} for config in (recorded, requested)
    )
    changes = [f"{key}: recorded {old[key]!r}, requested {new[key]!r}" for key in old if old[key] != new[key]]
    given = [f"{key}={value}" for key, value in old.items() if value]
    inputs = "; ".join(changes) or f"{' or '.join(given)}: the content has changed since the run began"
    return f"{inputs} (hash of {name} differs)"


def _value_at(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key in nested dictionaries; None if there is none."""
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _restricted(values: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of nested dictionaries whose keys occur in `keys` too."""
    kept = {}
    for name, value in values.items():
        if name in keys:
            nested = isinstance(value, Mapping) and isinstance(keys[name], Mapping)
            kept[name] = _restricted(value, keys[name]) if nested else value
    return kept
