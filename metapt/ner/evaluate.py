"""Tags for a set of sentences, and their score: strict IOB2 span F1, as seqeval counts it (a test holds the two equal)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metapt.data.iob2 import TAGS, TYPES, Sentence, spans
from metapt.models.tagger import TagLayer, unpacked
from metapt.ner.features import EncodedSet, WordVectors
from metapt.runs import write_atomically


def span_figures(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Span counts, precision, recall and F1 over all types (micro) and by type.

    A predicted span is correct if sentence, type, start and end are those of a gold span. A share whose
    denominator is zero is 0.

    Args:
        gold, predicted: tags of each sentence, equally many.
    Returns: gold_spans, predicted_spans, correct_spans, precision, recall, f1, and per_type: type to the same six.
    """
    golden: Counter[str] = Counter()
    guessed: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    for true_tags, tags in zip(gold, predicted, strict=True):
        if len(true_tags) != len(tags):
            raise ValueError(f"{len(true_tags)} gold tags, but {len(tags)} predicted ones")
        true_spans, found = set(spans(true_tags)), set(spans(tags))
        golden.update(kind for kind, _, _ in true_spans)
        guessed.update(kind for kind, _, _ in found)
        correct.update(kind for kind, _, _ in true_spans & found)
    per_type = {kind: _figures(golden[kind], guessed[kind], correct[kind]) for kind in TYPES}
    return {**_figures(golden.total(), guessed.total(), correct.total()), "per_type": per_type}


def _figures(gold: int, predicted: int, correct: int) -> dict[str, float]:
    return {
        "gold_spans": gold,
        "predicted_spans": predicted,
        "correct_spans": correct,
        "precision": correct / predicted if predicted else 0.0,
        "recall": correct / gold if gold else 0.0,
        "f1": 2 * correct / (gold + predicted) if gold + predicted else 0.0,
    }


@dataclass(frozen=True)
class Annotation:
    """What a tagger makes of one sentence: a tag for each word, and log p of each word's gold tag, in nats."""

    predicted: list[str]
    gold_logprob: list[float]


@torch.no_grad()
def annotate(
    layer: TagLayer, vectors: Tensor | WordVectors, encoded: EncodedSet, batch_size: int
) -> list[Annotation]:
    """Tags every sentence of a set.

    Args:
        layer: on any device.
        vectors: [M, d], the words of the set (`features.word_vectors`).
        batch_size: sentences.
    """
    found: dict[int, Annotation] = {}
    for numbers, emissions, tags, lengths in _batches(layer, vectors, encoded, batch_size):
        decoded = layer.sequence.decode(emissions, lengths)
        gold = (
            layer.sequence.log_marginals(emissions, lengths).gather(2, tags[:, :, None]).squeeze(2).tolist()
        )
        for number, path, logprobs in zip(numbers, decoded, gold, strict=True):
            found[number] = Annotation([TAGS[tag] for tag in path], logprobs[: len(path)])
    return [found[number] for number in range(len(found))]


@torch.no_grad()
def dev_figures(
    layer: TagLayer, vectors: Tensor | WordVectors, encoded: EncodedSet, batch_size: int
) -> tuple[float, float]:
    """Micro-F1, and the mean over sentences of the negative log-likelihood per word in nats; arguments as above."""
    gold: list[list[str]] = []
    predicted: list[list[str]] = []
    loss = 0.0
    for _, emissions, tags, lengths in _batches(layer, vectors, encoded, batch_size):
        loss -= float((layer.sequence.log_likelihood(emissions, tags, lengths) / lengths).sum())
        rows = zip(tags.tolist(), lengths.tolist(), strict=True)
        gold += [[TAGS[tag] for tag in row[:length]] for row, length in rows]
        predicted += [[TAGS[tag] for tag in path] for path in layer.sequence.decode(emissions, lengths)]
    return span_figures(gold, predicted)["f1"], loss / len(encoded.lengths)


def _batches(
    layer: TagLayer, vectors: Tensor | WordVectors, encoded: EncodedSet, batch_size: int
) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor]]:
    """Sentences of like length together: their numbers, emissions [B, T, C], gold tags [B, T] and lengths [B]."""
    layer.eval()
    device = layer.linear.weight.device
    order = np.argsort(encoded.lengths.numpy(), kind="stable")
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        words, lengths = encoded.words(chosen), encoded.lengths[torch.from_numpy(chosen)].to(device)
        emissions = layer.emissions(vectors[words].to(device), lengths)
        yield chosen.tolist(), emissions, unpacked(encoded.tags[words].to(device), lengths), lengths


def write_predictions(path: Path, sentences: Sequence[Sentence], annotations: Sequence[Annotation]) -> None:
    """One JSON object a line: id, words, gold, predicted, gold_logprob (docs/design.md)."""
    lines = []
    for sentence, annotation in zip(sentences, annotations, strict=True):
        values = {
            "id": sentence.id,
            "words": sentence.words,
            "gold": sentence.tags,
            "predicted": annotation.predicted,
            "gold_logprob": [round(value, 6) for value in annotation.gold_logprob],
        }
        lines.append(json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n")
    write_atomically(path, "".join(lines))
