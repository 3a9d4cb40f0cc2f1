"""From one run folder to its record, or to the reason why it has none.

A run that is broken in any part (unreadable result, missing predictions, predictions that give another F1 than the
result says) is left out as a whole and named, so that no table mixes numbers that can be trusted with others.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import yaml

from metapt.evaluation.bootstrap import micro_f1
from metapt.evaluation.span_f1 import count
from metapt.runs import Run

from .prediction_reader import Pool, Predictions, json_lines, read_predictions
from .records import (
    BASELINE,
    Columns,
    Evaluation,
    FinetuneRun,
    LeftOut,
    Made,
    PretrainRun,
    Setting,
    is_target,
)
from .schema import (
    BaselineResult,
    Dynamics,
    Origin,
    PretrainResult,
    SetResult,
    TunedResult,
    checked,
)
from .span_matching import Matches

FILES = frozenset(
    file.name
    for run in [Run(".")]
    for file in (run.config_file, run.metrics_file, run.result_file, run.error_file)
)
PREDICTIONS = Run(".").predictions_dir.name
# of a run folder anywhere
MARKS = frozenset(file.name for file in (Run(".").config_file, Run(".").metrics_file))
F1_TOLERANCE = 1e-4
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast
TOTALS = ("step", "tokens_total", "flops_total", "seconds_total")
EPISODE = ("support_loss_nats", "support_accuracy", "query_loss_nats", "query_accuracy")
ENTRY = re.compile(
    r"^  \w.*\n(?:(?!  \w).*\n)*", re.MULTILINE
)  # of a mapping within a mapping, and what belongs to it
LOSS = re.compile(rb'"kind": "train", "epoch": \d+, "loss_nats": ([^,]+),')
Record = PretrainRun | FinetuneRun | LeftOut
Stamp = tuple[tuple[str, int, int, int], ...]
"""(name, bytes, time of the last change in ns, inode) of each file of a run that the analysis reads"""


def stamp(path: Path) -> Stamp:
    """What changes when the run does; empty for a folder without any of a run's files."""
    found = []
    for folder, known in ((path, FILES), (path / PREDICTIONS, None)):
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
            for entry in entries:
                if (known is None or entry.name in known) and entry.is_file():
                    status = entry.stat()
                    found.append((entry.name, status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(sorted(found))


def read(path: Path, pool: Pool) -> Record:
    """The record of a run folder. Whatever is the matter with it, it does not end the analysis."""
    run = Run(path)
    try:
        if not run.is_done:
            return _unfinished(run)
        result = run.result()
        if result.get("kind", path.parent.name) == "pretrain":
            return _read_pretraining(run, checked(result, PretrainResult))
        if checked(result["origin"], Origin).objective == BASELINE:
            return _read_finetuning(run, checked(result, BaselineResult), pool)
        return _read_finetuning(run, checked(result, TunedResult), pool)
    except KeyError as error:
        return LeftOut(path, "broken", f"no key {error} where one is expected")
    except Exception as error:  # a folder that anyone may have written to can be wrong in any way
        return LeftOut(path, "broken", _one_line(str(error)) or type(error).__name__)


def _unfinished(run: Run) -> LeftOut:
    if run.error_file.exists():
        text = run.error_file.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        return LeftOut(run.path, "failed", _one_line(lines[-1]) if lines else "error.txt is empty")
    if not run.config_file.exists():
        if not stamp(run.path) and any(run.path.iterdir()):
            return LeftOut(run.path, "foreign", "holds no file of a run")
        return LeftOut(run.path, "not begun", "no config.yaml")
    step = max((line["step"] for line in run.metrics()), default=0)
    return LeftOut(run.path, "unfinished", f"at step {step}")


def _recorded(run: Run) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """(config, provenance) of config.yaml."""
    recorded = _yaml(run.config_file.read_text(encoding="utf-8"))
    return recorded["config"], recorded["provenance"]


def _provenance(run: Run, pool: Pool) -> Mapping[str, Any]:
    """The provenance alone, the last part of config.yaml; the rest of it is long, and no table has it."""
    _, _, text = run.config_file.read_text(encoding="utf-8").rpartition("\nprovenance:\n")
    entries = ENTRY.findall(text)
    if entries and "".join(entries) == text:
        with suppress(yaml.YAMLError, AttributeError):  # of entries in another form
            return dict(chain.from_iterable(pool.parsed(entry, _yaml).items() for entry in entries))
    return _recorded(run)[1]


def _yaml(text: str) -> Any:
    return yaml.load(text, LOADER)


def _made(provenance: Mapping[str, Any]) -> Made:
    """What the tables tell of it.

    Raises:
        KeyError, AttributeError: the provenance lacks an entry, or has it in another form.
    """
    commit, _, changes = provenance["git_commit"].partition("+")
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    begun = commit[:10] + (f"+{changes}" if changes else "")
    return Made(begun, str(provenance["started"]), str(provenance["host"]), versions)


def _read_pretraining(run: Run, result: PretrainResult) -> PretrainRun:
    config, provenance = _recorded(run)
    origin = result.origin
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for line in sorted(json_lines(run.metrics_file.read_bytes()), key=lambda line: line["step"]):
        by_kind.setdefault(line["kind"], []).append(line)
    return PretrainRun(
        run.path,
        origin.model,
        origin.variant,
        origin.objective,
        origin.seed,
        origin.parameters,
        origin.corpus_fingerprint,
        checked(config["meta"]["n_way"], int),
        _made(provenance),
        result,
        _columns(by_kind.get("lm", ()), (*TOTALS, "lm_loss_nats")),
        _columns(by_kind.get("episode", ()), (*TOTALS, *EPISODE)),
        _columns(by_kind.get("skipped", ()), TOTALS),
        _columns(by_kind.get("eval", ()), ("step", "eval_loss_nats")),
        checked(by_kind.get("dynamics", []), list[Dynamics]),
    )


def _columns(lines: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> Columns:
    """The fields as arrays; null, which stands for a number that is not finite, is NaN."""
    return {field: np.array([line[field] for line in lines], dtype=np.float64) for field in fields}


def _read_finetuning(run: Run, result: TunedResult | BaselineResult, pool: Pool) -> FinetuneRun:
    origin = result.origin
    setting = Setting(origin.model, origin.variant, origin.step, result.tuning, result.source)
    sets = _read_sets(run, result.sets, pool)
    losses = train_losses(run.metrics_file.read_bytes()) if isinstance(result, TunedResult) else []
    return FinetuneRun(
        run.path,
        origin.objective,
        pool.same(setting),
        (origin.seed, result.seed),
        origin.parameters,
        origin.corpus_fingerprint,
        pool.same(_made(_provenance(run, pool))),
        replace(result, sets={}),
        np.array(losses, dtype=np.float32),
        sets,
    )


def _read_sets(run: Run, results: Mapping[str, SetResult], pool: Pool) -> dict[str, Evaluation]:
    """What was predicted on each set, checked against the F1 of the result."""
    read = {sys.intern(name): _predictions(run, name, pool) for name in results}
    predicted = [tagging.packed for each in read.values() for tagging in each.taggings]
    found = pool.together(tuple(each.gold for each in read.values())).matches(predicted)
    return {name: _evaluation(name, each, matches, results[name]) for (name, each), matches in zip(read.items(), found, strict=True)}  # fmt: skip


def _predictions(run: Run, name: str, pool: Pool) -> Predictions:
    path = run.predictions_dir / f"{name}.jsonl"
    if not path.is_file():
        raise ValueError(f"predictions/{path.name} is missing")
    return read_predictions(path, pool, is_target(name))


def _evaluation(name: str, read: Predictions, found: Matches, result: SetResult) -> Evaluation:
    lax_f1 = None
    if read.gold_lax != read.gold.spans or not all(tagging.is_valid for tagging in read.taggings):
        lax = [tagging.lax for tagging in read.taggings]
        lax_f1 = float(micro_f1(count(lax, read.gold_lax).sum(axis=0)))
    per_type = {sys.intern(kind): figures.f1 for kind, figures in result.per_type.items()}
    logprobs = list(chain.from_iterable(filter(None, read.logprobs)))
    evaluation = Evaluation.of(read.gold, found, per_type, lax_f1, logprobs)
    if abs(evaluation.f1 - result.f1) > F1_TOLERANCE:
        raise ValueError(f"predictions/{name}.jsonl give F1 {evaluation.f1:.4f}, result.json says {result.f1:.4f}")  # fmt: skip
    return evaluation


def train_losses(content: bytes) -> list[float | None]:
    """The loss of every training step, of the bytes of metrics.jsonl; None for one that is not finite.

    Lines as tuning writes them are searched for the loss alone: the rest of them is not read, so damage there is not told.

    Raises:
        KeyError, ValueError: lines of another form lack a key, or are no JSON.
    """
    content = content[: content.rfind(b"\n") + 1]
    found = LOSS.findall(content)
    if len(found) == content.count(b'"train"'):
        with suppress(ValueError):  # which the plain way tells better
            return orjson.loads(b"[" + b",".join(found) + b"]")
    return [line["loss_nats"] for line in json_lines(content) if line["kind"] == "train"]


def _one_line(text: str) -> str:
    return " ".join(text.split())
