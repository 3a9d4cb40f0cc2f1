"""F1 of the baselines on the sentences of one fine-tuning run, to which its own scores are compared. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from metapt import randomness
from metapt.data.iob2 import Sentence
from metapt.evaluation.baselines import BASELINES, TrainingData
from metapt.evaluation.span_f1 import span_scores

MAX_WORDS = 50_000
"""Training words that baselines learn from: the CRF takes 1.7 seconds for 20,000 of them (docs/log.md, 2026-11-29)."""
CRF = "crf"


def sample(train: Sequence[Sentence], words: int = MAX_WORDS) -> list[Sentence]:
    """Sentences with about this many words in all, a random choice from all sources, in their order; all if there are no more."""
    order = randomness.generator(0, "sentences of baselines").permutation(len(train))
    ends = np.cumsum([len(train[number].words) for number in order])
    return [train[number] for number in np.sort(order[ends <= words])]


def reference_scores(
    train: Sequence[Sentence], dev: Sequence[Sentence], tests: Mapping[str, Sequence[Sentence]]
) -> dict[str, Any]:
    """Train every baseline on `sample` of the training sentences, and score it.

    Args:
        dev: empty if the run has no dev set.
    Returns: `train_words` (of the sentences that baselines learned from), `dev_f1` of the surface CRF (None without a dev
        set), `sets` (F1 by test set and baseline).
    """
    used = sample(train)
    dev_f1 = None
    scores: dict[str, dict[str, float]] = {name: {} for name in tests}
    with TemporaryDirectory() as folder:
        for name, fit in BASELINES.items():
            predict = fit(TrainingData(used, Path(folder) / "model.crfsuite"))

            def f1(sentences: Sequence[Sentence], predict: Any = predict) -> float:
                predicted = [predict(sentence).predicted for sentence in sentences]
                return float(span_scores([sentence.tags for sentence in sentences], predicted)["f1"])

            for test, sentences in tests.items():
                scores[test][name] = f1(sentences)
            if name == CRF and dev:
                dev_f1 = f1(dev)
    return {"train_words": sum(len(sentence.words) for sentence in used), "dev_f1": dev_f1, "sets": scores}
