"""One run of a baseline. Its folder has the layout of a fine-tuning run, so that the report can show both."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

from metapt.config import BaselineConfig, identity, settings
from metapt.data import DEMO_NOTICE
from metapt.data.iob2 import Sentence
from metapt.data.run_sets import RunSets, open_run_sets
from metapt.evaluation.baselines import BASELINES, FitBaseline, PredictSentence, TrainingData
from metapt.evaluation.f1_text import set_lines
from metapt.evaluation.predictions import write_predictions
from metapt.evaluation.span_f1 import set_scores, span_scores
from metapt.runs import Run


def run_baseline(config: BaselineConfig, fit: FitBaseline | None = None) -> None:
    """Train a baseline if it learns, tag the test sets, and write predictions and result.json.

    A finished run is left unchanged.

    Args:
        fit: the baseline; None: the one of this name.

    Raises:
        UserError: the data or the run folder does not match the configuration.
    """
    sets = open_run_sets(config.data, config.source)
    run = Run(config.run_dir)
    fingerprints = {"sentences": sets.fingerprint()}
    with run.locked():
        if run.is_done:
            run.check_identity(identity(config), fingerprints, asdict(config))
            print(f"{run.path}: already done")
            return
        for note in sets.collection.notes():
            print(note, file=sys.stderr)
        run.start(identity(config), fingerprints, asdict(config))
        fit = fit or BASELINES[config.name]
        result = _result(config, fit, run, sets) | {"inputs": fingerprints}
        run.finish(result)
    for line in set_lines(result["sets"]):
        print(line)
    if result["generated_data"]:
        print(DEMO_NOTICE)


def _result(config: BaselineConfig, fit: FitBaseline, run: Run, sets: RunSets) -> dict[str, Any]:
    """Train, predict, and return the content of result.json."""
    started = time.monotonic()
    train, dev = (list(chain(*parts)) for parts in (sets.training_sample(), sets.sentences("dev")))
    training = TrainingData(train, run.crf_file, config.c1, config.c2, config.max_iterations)
    predict = fit(training)
    dev_f1 = None
    if dev:
        dev_tags = [predict(sentence).predicted for sentence in dev]
        dev_f1 = span_scores([sentence.tags for sentence in dev], dev_tags)["f1"]
    scores = {name: _score_set(name, tests, predict, run) for name, tests in sets.tests().items()}
    return {
        "kind": "baseline",
        "origin": {"model": config.name, "objective": "baseline"},
        "source": config.source or "",
        "tuning": "",
        "seed": 0,
        "settings": settings(config),
        "train_sentences": len(train),
        "dev_f1": dev_f1,
        "seconds_total": time.monotonic() - started,
        "sets": scores,
        **sets.result_entries(),
    }


def _score_set(
    name: str, sentences: Sequence[Sentence], predict: PredictSentence, run: Run
) -> dict[str, Any]:
    """Tag a test set, write its predictions, and return its scores."""
    predictions = [predict(sentence) for sentence in sentences]
    write_predictions(run.predictions_dir / f"{name}.jsonl", sentences, predictions)
    return set_scores("test", sentences, [prediction.predicted for prediction in predictions])
