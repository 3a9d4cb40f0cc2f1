"""Score the predictions of a program, compare those of two, and keep them in a run folder that the report reads."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from metapt.data.documents import resampling_units
from metapt.data.iob2 import spans
from metapt.errors import UserError
from metapt.evaluation.bootstrap import by_unit, micro_f1, p_value, swapped_differences
from metapt.evaluation.f1_interval import Interval, f1_difference_interval
from metapt.evaluation.predictions import SentencePrediction, write_predictions
from metapt.evaluation.score_inputs import Gold, Predictions
from metapt.evaluation.span_f1 import set_scores
from metapt.evaluation.span_matching import SetMatch, match_set
from metapt.files import file_sha256
from metapt.runs import Run

KIND = "score"
UNER_FILE = re.compile(r"(.+)-ud-(train|dev|test)")
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class SetName:
    """The name of a labelled set, and its split; empty if it is unknown."""

    name: str
    split: str


@dataclass(frozen=True)
class ScoredSystem:
    """The predictions of one system for one set."""

    name: str
    set_name: SetName
    gold: Gold
    predictions: Predictions

    @cached_property
    def match(self) -> SetMatch:
        """What became of each gold span, by strict IOB2."""
        sentences = (sentence.tags for sentence in self.gold.sentences)
        gold, predicted = (
            [tuple(spans(tags)) for tags in side] for side in (sentences, self.predictions.tags)
        )
        return match_set(gold, predicted)

    @property
    def counts(self) -> np.ndarray:
        """Spans of each sentence: integers [sentences, (correct, predicted, gold)]."""
        return self.match.counts

    @cached_property
    def scores(self) -> dict[str, Any]:
        """The entry of the set in result.json."""
        return set_scores(self.set_name.split, self.gold.sentences, self.predictions.tags)

    @property
    def units(self) -> np.ndarray:
        """The resampling unit of each sentence, its document or itself: integers [sentences]."""
        return resampling_units([sentence.document for sentence in self.gold.sentences])


@dataclass(frozen=True)
class Comparison:
    """A minus B in micro-F1, from 0 to 1.

    Attributes:
        interval: 95 % confidence interval of the difference.
        p: two-sided p-value of the approximate randomization test.
    """

    difference: float
    interval: Interval
    p: float

    @property
    def excludes_zero(self) -> bool:
        return self.interval[0] > 0 or self.interval[1] < 0


def default_set_name(path: Path) -> SetName:
    """The name of a set by that of its file: SET/test.iob2, UNER_Language/SET-ud-test.iob2, or SET.iob2."""
    if match := UNER_FILE.fullmatch(path.stem):
        return SetName(match[1], match[2])
    if path.stem in SPLITS and (folder := path.absolute().parent.name):
        return SetName(folder, path.stem)
    return SetName(path.stem, "")


def default_system_name(path: Path) -> str:
    """The name of a system by that of its file: the stem; RUN of RUN/predictions/SET.jsonl."""
    folder = path.absolute().parent
    return folder.parent.name if folder.name == Run("").predictions_dir.name else path.stem


def compare(first: ScoredSystem, second: ScoredSystem) -> Comparison:
    """Compare two systems on the same gold sentences. Whole documents are swapped where the set marks them."""
    units = first.units
    one, other = (system.counts.astype(np.int64) for system in (first, second))
    difference = float(micro_f1(one.sum(axis=0)) - micro_f1(other.sum(axis=0)))
    by_units = [by_unit(counts[None], units) for counts in (one, other)]
    swapped = swapped_differences(by_units[0], by_units[1], first.set_name.name)[0]
    interval = f1_difference_interval(one, other, units)
    return Comparison(difference, interval, float(p_value(difference, swapped)))


def write_run(system: ScoredSystem, out: Path) -> Run:
    """Write the predictions and the scores into OUT/NAME, a run folder like that of a baseline.

    Predictions of other sets that the folder holds are kept, so that a system scored on several sets is one row of the
    report. Those of the same set are replaced if they came from the same file.

    Raises:
        UserError: the folder holds another run, or predictions of the set from another file.
    """
    started = time.monotonic()
    run = Run(out / system.name)
    advice = "choose another name= or out=, or delete this folder"
    if run.config_file.exists() and run.config().get("kind") != KIND:
        raise UserError(f"{run.path}: holds a run of another command; {advice}")
    name, file = system.set_name.name, str(system.predictions.file.path.resolve())
    with run.locked():
        recorded: dict[str, Any] = run.result() if run.is_done else {"sets": {}, "inputs": {}}
        if name in recorded["sets"] and recorded["sets"][name]["file"] != file:
            raise UserError(
                f"{run.path}: holds predictions of {name} from {recorded['sets'][name]['file']}; {advice}"
            )
        run.start({"kind": KIND, "name": system.name}, {})
        path = run.predictions_dir / f"{name}.jsonl"
        predictions = [SentencePrediction(list(tags), None) for tags in system.predictions.tags]
        write_predictions(path, system.gold.sentences, predictions)
        files = {"gold": system.gold.file.path, "predicted": system.predictions.file.path}
        hashes = {f"{name} {role}": file_sha256(path) for role, path in files.items()}
        result = _result(system.name, time.monotonic() - started)
        result["sets"] = {**recorded["sets"], name: system.scores | {"file": file}}
        run.finish(result | {"inputs": {**recorded["inputs"], **hashes}})
    return run


def _result(name: str, seconds: float) -> dict[str, Any]:
    """The content of result.json beside sets and inputs. How the system was trained is unknown."""
    return {
        "kind": "baseline",
        "origin": {"model": name, "objective": "baseline"},
        "source": "",
        "tuning": "",
        "seed": 0,
        "settings": {"name": name},
        "train_sentences": None,
        "dev_f1": None,
        "source_sets": [],
        "shared_sentences": None,
        "generated_data": False,
        "seconds_total": seconds,
    }


def check_names(set_name: str, names: Sequence[str]) -> None:
    """Check that the names of a set and of one or two systems can be names of a file and of folders, and that they differ.

    Raises:
        UserError: a name is empty, hidden or a path, or both systems have the same.
    """
    for key, name in (("set_name", set_name), *(("name", name) for name in names)):
        if not name or name.startswith(".") or "/" in name:
            raise UserError(f"{key}={name}: must be a name that does not begin with a full stop and has no /")
    if len(set(names)) < len(names):
        raise UserError(f"both systems have the name {names[0]!r}; set name= and name_b=")
