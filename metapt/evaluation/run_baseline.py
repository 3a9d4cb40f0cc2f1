"""One run of a baseline. Its folder has the layout of a fine-tuning run, so that the report can show both."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import Any

from metapt.config import BaselineConfig, identity, settings
from metapt.data import DEMO_NOTICE
from metapt.data.collection import Collection
from metapt.data.labelled_sets import (
    evaluated_sets,
    open_collection,
    source_sets,
    training_sentences,
)
from metapt.data.shared_sentences import shared_with_sources
from metapt.data.subsets import scored_words, training_subset
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
    collection = open_collection(config.data, config.source, config.data.eval_sets)
    eval_sets = evaluated_sets(collection, config.data.eval_sets)
    sources = source_sets(collection, config.source) if config.source else []
    parts = [(name, split) for name in sources for split in ("train", "dev")]
    parts += [(name, "test") for name in eval_sets]
    run = Run(config.run_dir)
    fingerprints = {"sentences": collection.fingerprint(parts)}
    with run.locked():
        if run.is_done:
            run.check_identity(identity(config), fingerprints, asdict(config))
            print(f"{run.path}: already done")
            return
        for note in collection.notes():
            print(note, file=sys.stderr)
        run.start(identity(config), fingerprints, asdict(config))
        fit = fit or BASELINES[config.name]
        result = _result(config, fit, run, collection, sources, eval_sets) | {"inputs": fingerprints}
        run.finish(result)
    for line in set_lines(result["sets"]):
        print(line)
    if result["generated_data"]:
        print(DEMO_NOTICE)


def _result(
    config: BaselineConfig,
    fit: FitBaseline,
    run: Run,
    collection: Collection,
    sources: list[str],
    eval_sets: list[str],
) -> dict[str, Any]:
    """Train, predict, and return the content of result.json."""
    started = time.monotonic()
    train, dev = (
        training_sentences(collection, config.source, split) if config.source else []
        for split in ("train", "dev")
    )
    chosen = training_subset(train, config.data, scored_words(collection, eval_sets))
    train = [train[number] for number in chosen]
    training = TrainingData(train, run.crf_file, config.c1, config.c2, config.max_iterations)
    predict = fit(training)
    dev_f1 = None
    if dev:
        dev_tags = [predict(sentence).predicted for sentence in dev]
        dev_f1 = span_scores([sentence.tags for sentence in dev], dev_tags)["f1"]
    sets = {name: _score_set(name, collection, predict, run) for name in eval_sets}
    return {
        "kind": "baseline",
        "origin": {"model": config.name, "objective": "baseline"},
        "source": config.source or "",
        "tuning": "",
        "seed": 0,
        "settings": settings(config),
        "train_sentences": len(train),
        "dev_f1": dev_f1,
        "source_sets": sources,
        "custom_sets": collection.custom_sets,
        "sentences_left_out": dict(collection.report.bad_input.skipped),
        "shared_sentences": shared_with_sources(collection, sources, eval_sets),
        "generated_data": config.data.name == "demo",
        "seconds_total": time.monotonic() - started,
        "sets": sets,
    }


def _score_set(name: str, collection: Collection, predict: PredictSentence, run: Run) -> dict[str, Any]:
    """Tag a test set, write its predictions, and return its scores."""
    sentences = collection.load(name, "test")
    predictions = [predict(sentence) for sentence in sentences]
    write_predictions(run.predictions_dir / f"{name}.jsonl", sentences, predictions)
    return set_scores("test", sentences, [prediction.predicted for prediction in predictions])
