"""From one run folder to its record, or to the reason why it has none.

A run that is broken in any part (unreadable result, missing predictions, predictions that give another F1 than the
result) is excluded as a whole and listed, so that no table mixes reliable numbers with others.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import yaml

from metapt.provenance import counting_starts, sources
from metapt.runs import Run

from .prediction_reader import complete_lines, evaluate
from .records import (
    BASELINE,
    Columns,
    ExcludedRun,
    FinetuneRun,
    PretrainRun,
    Record,
    RunProvenance,
    Setting,
    is_target,
)
from .schema import BaselineResult, Dynamics, FinetuneResult, PretrainResult, decode_result

RUN = Run(".")
MARKER_FILES = frozenset({RUN.config_file.name, RUN.metrics_file.name})
"""a folder with one of these is a run folder, wherever it is"""
FILES = MARKER_FILES | {RUN.starts_file.name, RUN.result_file.name, RUN.error_file.name}
"""what the analysis reads of a run folder, beside predictions"""
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader is ten times as fast
TOTALS = ("step", "tokens_total", "flops_total", "seconds_total")
UPDATES = {"lm", "episode", "mixed", "skipped"}
"""kinds of lines of which each update has one"""
COSINE = "_gradient_cosine"
BROKEN = "broken"
"""the state of a folder of a run that cannot be read"""
EPISODE = ("support_loss_nats", "support_accuracy", "query_loss_nats", "query_accuracy")
Fingerprint = tuple[tuple[str, int, int, int], ...]
"""(name, size in bytes, modification time in ns, inode) of each file of a run that the analysis reads"""


class FinetuningLine(msgspec.Struct):
    """A line of a fine-tuning run's metrics.jsonl; only lines of kind "train" must have a loss, null if not finite."""

    kind: str
    loss_nats: float | msgspec.UnsetType | None = msgspec.UNSET


LINES = msgspec.json.Decoder(FinetuningLine)


def fingerprint(path: Path) -> Fingerprint:
    """Return what changes when the files of a run change; empty for a folder without any."""
    files = []
    for folder, names in ((path, FILES), (path / RUN.predictions_dir.name, None)):
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
            for entry in entries:
                if (names is None or entry.name in names) and entry.is_file():
                    status = entry.stat()
                    files.append((entry.name, status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(sorted(files))


def read_run(path: Path, targets: Sequence[str]) -> Record:
    """Read a run folder. Whatever is wrong with it, the analysis goes on without it.

    Args:
        targets: the sets or languages of which probabilities are kept (`is_target`).
    """
    run = Run(path)
    try:
        if not run.result_file.exists():  # the result counts, also if the checkpoints were deleted since
            return _unfinished(run)
        result = decode_result(run.result_file.read_bytes())
        if isinstance(result, PretrainResult):
            return _read_pretraining(run, result)
        return _read_finetuning(run, result, targets)
    except KeyError as error:
        return ExcludedRun(path, BROKEN, f"key {error} is missing")
    except Exception as error:  # anyone may have written to the folder: anything can be wrong
        return ExcludedRun(path, BROKEN, _one_line(str(error)) or type(error).__name__)


def _unfinished(run: Run) -> ExcludedRun:
    if run.error_file.exists():
        text = run.error_file.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        return ExcludedRun(run.path, "failed", _one_line(lines[-1]) if lines else "error.txt is empty")
    if not run.config_file.exists():
        if not fingerprint(run.path) and any(run.path.iterdir()):
            return ExcludedRun(run.path, "not a run", "no file of a run in the folder")
        return ExcludedRun(run.path, "not started", "no config.yaml")
    step = max((line["step"] for line in run.metrics()), default=0)
    return ExcludedRun(run.path, "unfinished", f"at step {step}")


def _read_config(run: Run) -> tuple[Mapping[str, Any], RunProvenance]:
    """Read config.yaml: the configuration, and the provenance as the tables show it.

    Raises:
        KeyError, AttributeError: the provenance lacks an entry, or has it in another form.
    """
    content = yaml.load(run.config_file.read_text(encoding="utf-8"), LOADER)
    provenance = content["provenance"]
    used = sources(provenance, run.starts())
    commits = dict.fromkeys(
        _shown(entry["git_commit"]) + (f" ({entry['source']})" if len(used) > 1 else "") for entry in used
    )
    starts = counting_starts(run.starts())
    nodes = dict.fromkeys(name for entry in starts for name in entry["nodes"]) or [str(provenance["host"])]
    gpus = dict.fromkeys(name for entry in starts for name in entry.get("gpus", []))
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    return content["config"], RunProvenance(
        ", ".join(commits), str(provenance["started"]), ", ".join(nodes), ", ".join(gpus), versions
    )


def _shown(recorded_commit: str) -> str:
    """The first digits of a commit, and whether there were uncommitted changes."""
    commit, _, changes = recorded_commit.partition("+")
    return commit[:10] + (f"+{changes}" if changes else "")


def _read_pretraining(run: Run, result: PretrainResult) -> PretrainRun:
    config, provenance = _read_config(run)
    origin = result.origin
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    lines = sorted(run.metrics(), key=lambda line: line["step"])
    for line in lines:
        for kind in ("lm", "episode") if line["kind"] == "mixed" else (line["kind"],):
            by_kind.setdefault(kind, []).append(line)
    return PretrainRun(
        run.path,
        origin.model,
        origin.variant,
        origin.objective,
        origin.seed,
        origin.parameters,
        origin.corpus_fingerprint,
        msgspec.convert(config["meta"]["n_way"], int),
        provenance,
        result,
        updates=spent_by_update(lines),
        lm=_columns(by_kind.get("lm", ()), ("step", "lm_loss_nats")),
        episodes=_columns(by_kind.get("episode", ()), ("step", *EPISODE)),
        skipped=_columns(by_kind.get("skipped", ()), ("step",)),
        eval=_columns(by_kind.get("eval", ()), ("step", "eval_loss_nats")),
        dynamics=msgspec.convert(by_kind.get("dynamics", []), list[Dynamics]),
        gradient_cosines=_gradient_cosines(by_kind.get("lm", ())),
    )


def spent_by_update(lines: Sequence[Mapping[str, Any]]) -> Columns:
    """The columns of `PretrainRun.updates`, of lines in the order of steps."""
    lines = [line for line in lines if line["kind"] in UPDATES]
    columns = _columns(lines, TOTALS)
    trained_on = np.diff(columns["tokens_total"], prepend=0.0)
    for index, line in enumerate(lines):
        if line["kind"] != "lm":
            trained_on[index] = line["next_token_tokens"] if line["kind"] == "mixed" else 0
    return {**columns, "next_token_tokens": trained_on}


def _columns(lines: Sequence[Mapping[str, Any]], fields: Iterable[str]) -> Columns:
    """Return each field as an array; null, a number that is not finite, becomes NaN."""
    return {field: np.array([line[field] for line in lines], dtype=np.float64) for field in fields}


def _gradient_cosines(lines: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The cosines of each term by its name, where a line has one that is not null."""
    found: dict[str, list[float]] = {}
    for line in lines:
        for key, value in line.items():
            if key.endswith(COSINE) and value is not None:
                found.setdefault(key.removesuffix(COSINE), []).append(value)
    return {term: np.array(found[term], dtype=np.float64) for term in sorted(found)}


def _read_finetuning(
    run: Run, result: FinetuneResult | BaselineResult, targets: Sequence[str]
) -> FinetuneRun:
    origin, is_baseline = result.origin, isinstance(result, BaselineResult)
    _, provenance = _read_config(run)
    sets = {
        name: evaluate(run.predictions_dir / f"{name}.jsonl", scores, is_target(name, targets))
        for name, scores in result.sets.items()
    }
    losses = [] if is_baseline else train_losses(run.metrics_file.read_bytes())
    return FinetuneRun(
        run.path,
        BASELINE if is_baseline else origin.objective,
        Setting(origin.model, origin.variant, origin.step, result.tuning, result.source),
        (origin.seed, result.seed),
        origin.parameters,
        origin.corpus_fingerprint,
        provenance,
        msgspec.structs.replace(result, sets={}),
        np.array(losses, dtype=np.float32),
        sets,
    )


def train_losses(content: bytes) -> list[float | None]:
    """Return the loss of every training step; None for one that is not finite.

    Args:
        content: of metrics.jsonl.
    Raises:
        KeyError, msgspec.MsgspecError: a line lacks a key, or is not JSON.
    """
    lines = LINES.decode_lines(complete_lines(content))
    losses = [line.loss_nats for line in lines if line.kind == "train"]
    if msgspec.UNSET in losses:
        raise KeyError("loss_nats")
    return losses  # type: ignore[return-value]  # none is UNSET


def _one_line(text: str) -> str:
    return " ".join(text.split())
