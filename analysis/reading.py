"""From one run folder to its record, or to the reason why it has none.

A run that is broken in any part (unreadable result, missing predictions, predictions that give another F1 than the
result says) is left out as a whole and named, so that no table mixes numbers that can be trusted with others.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from analysis.records import (
    BASELINE,
    Columns,
    Evaluation,
    FinetuneRun,
    GoldSet,
    LeftOut,
    PretrainRun,
    Setting,
    is_target,
)
from metapt.data.iob2 import spans
from metapt.ner.resampling import micro_f1
from metapt.ner.scoring import Span, conlleval_spans, count
from metapt.runs import Run

FILES = frozenset(
    file.name
    for run in [Run(".")]
    for file in (run.config_file, run.metrics_file, run.result_file, run.error_file)
)
MARKS = frozenset(
    file.name for file in (Run(".").config_file, Run(".").metrics_file)
)  # of a run folder anywhere
F1_TOLERANCE = 1e-4
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast
TOTALS = ("step", "tokens_total", "flops_total", "seconds_total")
EPISODE = ("support_loss_nats", "support_accuracy", "query_loss_nats", "query_accuracy")
Record = PretrainRun | FinetuneRun | LeftOut
Stamp = tuple[tuple[str, int, int, int], ...]
"""(name, bytes, time of the last change in ns, inode) of each file of a run that the analysis reads"""


class Pool:
    """One object for equal values: gold sets, which must be the same object to be compared, and what repeats often."""

    def __init__(self) -> None:
        self._found: dict[Any, Any] = {}
        self._spans: dict[tuple[Any, ...], tuple[Span, ...]] = {}

    def gold(self, key: tuple[Any, ...]) -> GoldSet:
        """The gold set of (name, ids, words, spans)."""
        found = self._found.get(key)
        return found if found is not None else self._found.setdefault(key, GoldSet(*key))

    def same(self, value: Any) -> Any:
        return self._found.setdefault(value, value)

    def spans(self, tags: Iterable[Sequence[str]]) -> tuple[tuple[Span, ...], ...]:
        """The spans of each sentence; sentences are tagged alike again and again, so each tagging is looked at once."""
        return tuple(self._spans_of(tuple(sentence), spans) for sentence in tags)

    def conlleval_spans(self, tags: Iterable[Sequence[str]]) -> tuple[tuple[Span, ...], ...]:
        return tuple(self._spans_of(tuple(sentence), conlleval_spans) for sentence in tags)

    def _spans_of(self, tags: tuple[str, ...], find: Callable[[Sequence[str]], Sequence[Span]]) -> tuple[Span, ...]:  # fmt: skip
        found = self._spans.get((tags, find))
        if found is None:
            found = self._spans[tags, find] = self.same(tuple(find(tags)))
        return found


def stamp(path: Path) -> Stamp:
    """What changes when the run does; empty for a folder without any of a run's files."""
    found = []
    for folder in (path, Run(path).predictions_dir):
        if folder.is_dir():
            for entry in os.scandir(folder):
                if (folder != path or entry.name in FILES) and entry.is_file():
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
            return _read_pretraining(run, result)
        return _read_finetuning(run, result, pool)
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
    recorded = yaml.load(run.config_file.read_text(encoding="utf-8"), LOADER)
    return recorded["config"], recorded["provenance"]


def _read_pretraining(run: Run, result: dict[str, Any]) -> PretrainRun:
    config, provenance = _recorded(run)
    origin = result["origin"]
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for line in sorted(_lines(run.metrics_file), key=lambda line: line["step"]):
        by_kind.setdefault(line["kind"], []).append(line)
    return PretrainRun(
        run.path,
        origin["model"],
        origin["label"],
        origin["objective"],
        origin["seed"],
        origin["parameters"],
        origin["corpus_fingerprint"],
        config["meta"]["n_way"],
        provenance,
        result,
        _columns(by_kind.get("autoregressive", ()), (*TOTALS, "lm_loss_nats")),
        _columns(by_kind.get("episode", ()), (*TOTALS, *EPISODE)),
        _columns(by_kind.get("skipped", ()), TOTALS),
        _columns(by_kind.get("heldout", ()), ("step", "heldout_loss_nats")),
        by_kind.get("dynamics", ()),
    )


def _columns(lines: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> Columns:
    """The fields as arrays; null, which stands for a number that is not finite, is NaN."""
    return {field: np.array([line[field] for line in lines], dtype=np.float64) for field in fields}


def _read_finetuning(run: Run, result: dict[str, Any], pool: Pool) -> FinetuneRun:
    _, provenance = _recorded(run)
    origin = result["origin"]
    setting = Setting(origin["model"], origin.get("label", ""), origin.get("step"), result["regime"], result["source"])  # fmt: skip
    sets = {
        sys.intern(name): _read_set(run, name, values, pool) for name, values in result.pop("sets").items()
    }
    metrics = _lines(run.metrics_file) if origin.get("objective") != BASELINE else []  # which has no steps
    losses = [line["loss_nats"] for line in metrics if line["kind"] == "train"]
    return FinetuneRun(
        run.path,
        origin.get("objective", "other"),
        pool.same(setting),
        (origin.get("seed"), result["seed"]),
        origin.get("parameters"),
        origin.get("corpus_fingerprint", ""),
        provenance,
        result,
        np.array(losses, dtype=np.float32),
        sets,
    )


def _read_set(run: Run, name: str, values: Mapping[str, Any], pool: Pool) -> Evaluation:
    """The predictions on one set, checked against the F1 of the result."""
    path = run.predictions_dir / f"{name}.jsonl"
    if not path.is_file():
        raise ValueError(f"predictions/{path.name} is missing")
    lines = _lines(path)
    for number, line in enumerate(lines, 1):
        logprobs = line["gold_logprob"]
        sides = [line["gold"], line["predicted"], *([] if logprobs is None else [logprobs])]
        if any(len(side) != len(line["words"]) for side in sides):
            raise ValueError(f"predictions/{path.name}, line {number}: not as many tags as words")
    gold = pool.gold(
        (
            name,
            tuple(str(line["id"]) for line in lines),
            tuple(tuple(line["words"]) for line in lines),
            pool.spans(line["gold"] for line in lines),
        )
    )
    predicted = pool.spans(line["predicted"] for line in lines)
    counts = count(predicted, gold.spans).astype(np.int32)
    f1 = float(micro_f1(counts.sum(axis=0)))
    if abs(f1 - values["f1"]) > F1_TOLERANCE:
        raise ValueError(f"predictions/{path.name} give F1 {f1:.4f}, result.json says {values['f1']:.4f}")
    per_type = {sys.intern(kind): {"f1": found["f1"]} for kind, found in values["per_type"].items()}
    logprobs = [value for line in lines for value in line["gold_logprob"] or ()] if is_target(name) else []
    lax = [pool.conlleval_spans(line[side] for line in lines) for side in ("predicted", "gold")]
    lax_f1 = f1 if lax == [predicted, gold.spans] else float(micro_f1(count(*lax).sum(axis=0)))
    return Evaluation(gold, predicted, counts, lax_f1, per_type, np.array(logprobs, dtype=np.float32))


def _lines(path: Path) -> list[Mapping[str, Any]]:
    """The complete lines of a JSON-lines file, as `metapt.runs.read_jsonl` gives them but parsed in one go."""
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1].rstrip("\n")
    return json.loads("[" + whole.replace("\n", ",") + "]")


def _one_line(text: str) -> str:
    return " ".join(text.split())
