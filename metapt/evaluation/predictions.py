"""What a tagger makes of sentences, and the file of it. Imports no numpy: the configuration names the baselines, and
metapt.status, which reads it, is asked often.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metapt.data.iob2 import Sentence
from metapt.files import write_atomically


@dataclass(frozen=True)
class Annotation:
    """What a tagger makes of one sentence: a tag for each word, and log p of each word's gold tag, in nats.

    gold_logprob is None for a tagger without probabilities.
    """

    predicted: list[str]
    gold_logprob: list[float] | None


def write_predictions(path: Path, sentences: Sequence[Sentence], annotations: Sequence[Annotation]) -> None:
    """One JSON object a line: id, words, gold, predicted, gold_logprob (docs/design.md)."""
    lines = []
    for sentence, annotation in zip(sentences, annotations, strict=True):
        logprobs = annotation.gold_logprob
        values = {
            "id": sentence.id,
            "words": sentence.words,
            "gold": sentence.tags,
            "predicted": annotation.predicted,
            "gold_logprob": logprobs and [round(value, 6) for value in logprobs],
        }
        lines.append(json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n")
    write_atomically(path, "".join(lines))
