"""One run of a baseline: a folder like that of a fine-tuning run, so that the report has a row for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from metapt.config import BaselineConfig, identity
from metapt.data import DEMO_NOTICE
from metapt.data.iob2 import Sentence
from metapt.data.labelled_sets import (
    Collection,
    drawn,
    evaluated_sets,
    open_collection,
    source_sets,
    training_sentences,
)
from metapt.evaluation.baselines import BASELINES, Training
from metapt.evaluation.predictions import Annotation, write_predictions
from metapt.evaluation.span_f1 import scored, span_scores
from metapt.runs import Run


def baseline(config: BaselineConfig) -> None:
    """Trains a baseline if it learns, tags the test sets, writes predictions and result.json; a run that is done is left alone.

    Raises:
        UserError: the data or the run folder is not what the configuration needs.
    """
    collection = open_collection(config.data)
    tests = evaluated_sets(collection, config.data.eval_sets)
    sources = source_sets(collection, config.source) if config.source else []
    parts = [(name, split) for name in sources for split in ("train", "dev")] + [
        (name, "test") for name in tests
    ]
    run = Run(config.run_dir)
    fingerprints = {"sentences": collection.fingerprint(parts)}
    with run.locked():
        if run.is_done:
            run.check_identity(identity(config), fingerprints)
            print(f"{run.path}: done already")
            return
        run.start(identity(config), fingerprints, asdict(config))
        started = time.monotonic()
        train, dev = (
            training_sentences(collection, config.source, split) if config.source else []
            for split in ("train", "dev")
        )
        train = [train[number] for number in drawn(len(train), config.data.max_train_sentences, seed=0)]
        training = Training(train, run.crf_file, config.c1, config.c2, config.max_iterations)
        annotate = BASELINES[config.name].fit(training)
        dev_tags = [annotate(sentence).predicted for sentence in dev]
        sets = {name: _tagged(name, collection, annotate, run) for name in tests}
        result = {
            "kind": "baseline",
            "origin": {"model": config.name, "objective": "baseline"},
            "source": config.source or "",
            "tuning": "",
            "seed": 0,
            "train_sentences": len(train),
            "dev_f1": span_scores([each.tags for each in dev], dev_tags)["f1"] if dev else None,
            "source_sets": sources,
            "generated_data": config.data.name == "demo",
            "seconds_total": time.monotonic() - started,
            "sets": sets,
        }
        run.finish(result)
    for name, figures in sets.items():
        low, high = figures["f1_interval"]
        print(f"{name}: F1 {figures['f1']:.3f} ({low:.3f} to {high:.3f}), {figures['gold_spans']} gold spans")
    if result["generated_data"]:
        print(DEMO_NOTICE)


def _tagged(
    name: str, collection: Collection, annotate: Callable[[Sentence], Annotation], run: Run
) -> dict[str, Any]:
    """Tags a test set, writes its predictions, and returns its figures."""
    sentences = collection.load(name, "test")
    annotations = [annotate(sentence) for sentence in sentences]
    write_predictions(run.predictions_dir / f"{name}.jsonl", sentences, annotations)
    return scored(name, "test", sentences, [each.predicted for each in annotations])
