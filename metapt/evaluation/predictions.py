"""The predictions of a tagger for labelled sentences, and the file that stores them.

Imports neither torch nor numpy: `metapt status` must start fast.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metapt.data.iob2 import Sentence
from metapt.files import write_atomically

MIN_PROBABILITY = 1e-300  # replaces 0, whose logarithm JSON cannot represent


@dataclass(frozen=True)
class SentencePrediction:
    """The predicted tags of one sentence.

    Attributes:
        predicted: a tag per word.
        gold_logprob: log-probability of each word's gold tag, in nats (that of MIN_PROBABILITY for a tag that the tagger
            does not have); None for a tagger without probabilities.
    """

    predicted: list[str]
    gold_logprob: list[float] | None


def write_predictions(
    path: Path, sentences: Sequence[Sentence], predictions: Sequence[SentencePrediction]
) -> None:
    """Write one JSON object per line with the keys id, document, words, gold, predicted and gold_logprob."""
    lines = []
    for sentence, prediction in zip(sentences, predictions, strict=True):
        logprobs = prediction.gold_logprob
        values = {
            "id": sentence.id,
            "document": sentence.document,
            "words": sentence.words,
            "gold": sentence.tags,
            "predicted": prediction.predicted,
            "gold_logprob": logprobs and [round(value, 6) for value in logprobs],
        }
        lines.append(json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n")
    write_atomically(path, "".join(lines))
