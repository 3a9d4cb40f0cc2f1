"""Tags for the sentences of a set by a tagger, and its dev score."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from metapt.data.iob2 import TAGS
from metapt.evaluation.predictions import Annotation
from metapt.evaluation.span_f1 import span_scores
from metapt.tagger.encoding import EncodedSet, WordFeatures
from metapt.tagger.model import TagLayer, unpacked


@torch.no_grad()
def annotate(
    layer: TagLayer, features: Tensor | WordFeatures, encoded: EncodedSet, batch_size: int
) -> list[Annotation]:
    """Tags every sentence of a set.

    Args:
        layer: on any device.
        features: [M, d], the words of the set (`features.word_features`).
        batch_size: sentences.
    """
    found: dict[int, Annotation] = {}
    for numbers, emissions, tags, lengths in batches(layer, features, encoded, batch_size):
        decoded = layer.sequence.decode(emissions, lengths)
        gold = (
            layer.sequence.log_marginals(emissions, lengths).gather(2, tags[:, :, None]).squeeze(2).tolist()
        )
        for number, path, logprobs in zip(numbers, decoded, gold, strict=True):
            found[number] = Annotation([TAGS[tag] for tag in path], logprobs[: len(path)])
    return [found[number] for number in range(len(found))]


@torch.no_grad()
def dev_scores(
    layer: TagLayer, features: Tensor | WordFeatures, encoded: EncodedSet, batch_size: int
) -> tuple[float, float]:
    """Micro-F1, and the mean over sentences of the negative log-likelihood per word in nats; arguments as above."""
    gold: list[list[str]] = []
    predicted: list[list[str]] = []
    loss = 0.0
    for _, emissions, tags, lengths in batches(layer, features, encoded, batch_size):
        loss -= float((layer.sequence.log_likelihood(emissions, tags, lengths) / lengths).sum())
        rows = zip(tags.tolist(), lengths.tolist(), strict=True)
        gold += [[TAGS[tag] for tag in row[:length]] for row, length in rows]
        predicted += [[TAGS[tag] for tag in path] for path in layer.sequence.decode(emissions, lengths)]
    return span_scores(gold, predicted)["f1"], loss / len(encoded.lengths)


def batches(
    layer: TagLayer, features: Tensor | WordFeatures, encoded: EncodedSet, batch_size: int
) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor]]:
    """Sentences of like length together: their numbers, emissions [B, T, C], gold tags [B, T] and lengths [B]."""
    layer.eval()
    device = layer.linear.weight.device
    order = np.argsort(encoded.lengths.numpy(), kind="stable")
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        words, lengths = encoded.words(chosen), encoded.lengths[torch.from_numpy(chosen)].to(device)
        emissions = layer.emissions(features[words].to(device), lengths)
        yield chosen.tolist(), emissions, unpacked(encoded.tags[words].to(device), lengths), lengths
