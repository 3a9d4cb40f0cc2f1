"""Predicted tags of labelled sets, and the scores on a dev set."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from metapt.evaluation.predictions import MIN_PROBABILITY, SentencePrediction
from metapt.evaluation.span_f1 import span_scores
from metapt.tagger.encoding import UNKNOWN_TAG, EncodedSet, WordFeatures
from metapt.tagger.model import TagLayer, pad_packed


@torch.no_grad()
def predict(
    layer: TagLayer, features: Tensor | WordFeatures, encoded: EncodedSet, batch_size: int
) -> list[SentencePrediction]:
    """Tag every sentence of a set.

    Args:
        layer: on any device.
        features: [M, d], the word features of the set (`metapt.tagger.encoding.word_features`).
        batch_size: sentences.
    """
    predictions: dict[int, SentencePrediction] = {}
    for numbers, emissions, tags, lengths in emission_batches(layer, features, encoded, batch_size):
        paths = layer.ner_head.decode(emissions, lengths)
        marginals = layer.ner_head.log_marginals(emissions, lengths)
        known = marginals.gather(2, tags.clamp(min=0)[:, :, None]).squeeze(2)
        gold_logprobs = known.masked_fill(tags == UNKNOWN_TAG, math.log(MIN_PROBABILITY)).tolist()
        for number, path, logprobs in zip(numbers, paths, gold_logprobs, strict=True):
            predictions[number] = SentencePrediction([layer.tags[tag] for tag in path], logprobs[: len(path)])
    return [predictions[number] for number in range(len(predictions))]


@torch.no_grad()
def dev_scores(
    layer: TagLayer, features: Tensor | WordFeatures, encoded: EncodedSet, batch_size: int
) -> tuple[float, float]:
    """Compute the micro-F1, and the mean over sentences of the negative log-likelihood per word in nats.

    Args: as in `predict`; every tag of the set is one of the tagger's.
    """
    gold: list[list[str]] = []
    predicted: list[list[str]] = []
    loss = 0.0
    for _, emissions, tags, lengths in emission_batches(layer, features, encoded, batch_size):
        loss -= float((layer.ner_head.log_likelihood(emissions, tags, lengths) / lengths).sum())
        rows = zip(tags.tolist(), lengths.tolist(), strict=True)
        gold += [[layer.tags[tag] for tag in row[:length]] for row, length in rows]
        predicted += [[layer.tags[tag] for tag in path] for path in layer.ner_head.decode(emissions, lengths)]
    return span_scores(gold, predicted)["f1"], loss / len(encoded.lengths)


def emission_batches(
    layer: TagLayer, features: Tensor | WordFeatures, encoded: EncodedSet, batch_size: int
) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor]]:
    """Yield batches of sentences of similar length.

    Each batch is: sentence numbers [B], emissions [B, T, C], gold tags [B, T], lengths [B].
    """
    layer.eval()
    device = layer.linear.weight.device
    order = np.argsort(encoded.lengths.numpy(), kind="stable")
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        rows, lengths = encoded.word_rows(chosen), encoded.lengths[torch.from_numpy(chosen)].to(device)
        emissions = layer.emissions(features[rows].to(device), lengths)
        yield chosen.tolist(), emissions, pad_packed(encoded.tags[rows].to(device), lengths), lengths
