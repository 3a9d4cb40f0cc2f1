"""The tagger: a decoder (or encoder), one feature vector per word, and an NER head that tags the words.

    subwords [N, P] -> decoder -> word features [M, d] -> dropout -> linear -> emissions [B, T, C] -> CRF or softmax

Words are packed: the M words of B sentences are concatenated, and `lengths` [B] holds the number of words of each
sentence. Everything after the word features is a module of its own (`TagLayer`), because it is all that is trained
when the decoder is frozen. metapt/tagger/serialization.py saves and loads taggers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from metapt.models.base_model import is_causal
from metapt.tagger.crf import LinearChainCRF, SoftmaxHead, iob2_transitions


@dataclass(frozen=True)
class SubwordBatch:
    """N windows of subwords, and the positions of the M words to be represented.

    Attributes:
        subwords: int64 [N, P], padded on the right.
        sizes: int64 [N], number of subwords of each window without padding.
        rows: int64 [M], the window of each word.
        firsts: int64 [M], position in its window of the first subword of each word that completes a character of the
            word; white space before the word and the first bytes of a character come before it.
        lasts: int64 [M], position of the last subword of each word.
    """

    subwords: Tensor
    sizes: Tensor
    rows: Tensor
    firsts: Tensor
    lasts: Tensor

    def to(self, device: torch.device) -> SubwordBatch:
        return SubwordBatch(*(getattr(self, item.name).to(device) for item in fields(self)))


class TagLayer(nn.Module):
    """Maps word features to tags: dropout, a linear layer, and the NER head.

    Args:
        feature_size: dimensions of a word feature.
        tags: IOB2 tags, in the order of the emissions.
        head: `crf` or `softmax`.
        dropout: dropout probability on the word features.
    """

    def __init__(self, feature_size: int, tags: Sequence[str], head: str, dropout: float):
        super().__init__()
        self.tags = tuple(tags)
        self.head_name = head
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(feature_size, len(self.tags))
        self.ner_head = LinearChainCRF(*iob2_transitions(self.tags)) if head == "crf" else SoftmaxHead()

    def emissions(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Compute the score of each tag at each word, in fp32 even under autocast. [M, d], [B] to [B, T, C]."""
        with torch.autocast(features.device.type, enabled=False):
            return pad_packed(self.linear(self.dropout(features.float())), lengths)

    def forward(self, features: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """Compute the negative log-likelihood per word of each sentence, in nats.

        Args:
            features: [M, d], packed.
            tags: int64 [M], packed.
            lengths: int64 [B], words of each sentence, at least 1.
        Returns: fp32 [B].
        """
        with torch.autocast(features.device.type, enabled=False):
            emissions = self.emissions(features, lengths)
            return -self.ner_head.log_likelihood(emissions, pad_packed(tags, lengths), lengths) / lengths


class Tagger(nn.Module):
    """A decoder with a TagLayer on top. An encoder works too: it gets an attention mask that hides the padding.

    Args:
        decoder: a base model such as LlamaModel or XLMRobertaModel; its pooling layer, if any, is removed, because the
            tagger does not use it.
        layer: tags the words.
        subword_pooling: how the subwords of a word, from `SubwordBatch.firsts` to `lasts`, become its feature: the
            `first`, the `last`, or their `mean`.
    """

    def __init__(self, decoder: PreTrainedModel, layer: TagLayer, subword_pooling: str):
        super().__init__()
        if getattr(decoder, "pooler", None) is not None:
            decoder.pooler = None
        self.decoder = decoder
        self.layer = layer
        self.subword_pooling = subword_pooling
        self.is_causal = is_causal(decoder)

    @property
    def width(self) -> int:
        """Dimensions of a hidden state."""
        return self.layer.linear.in_features

    def word_features(self, batch: SubwordBatch) -> Tensor:
        """Pool the last hidden states of the decoder over the subwords of each word. fp32 [M, d]."""
        if self.is_causal:  # nothing to the right of a subword, padding included, changes its hidden state
            options: dict[str, Any] = {"use_cache": False}
        else:
            positions = torch.arange(batch.subwords.shape[1], device=batch.subwords.device)
            options = {"attention_mask": (positions < batch.sizes[:, None]).long()}
        hidden = self.decoder(input_ids=batch.subwords, **options).last_hidden_state.float()
        flat, row_starts = hidden.flatten(0, 1), batch.rows * hidden.shape[1]
        if self.subword_pooling != "mean":
            positions = batch.firsts if self.subword_pooling == "first" else batch.lasts
            return flat.index_select(0, row_starts + positions)
        counts = batch.lasts - batch.firsts + 1
        word = torch.repeat_interleave(counts)
        within = torch.arange(len(word), device=word.device) - (counts.cumsum(0) - counts)[word]
        subwords = flat.index_select(0, (row_starts + batch.firsts)[word] + within)
        return flat.new_zeros(len(counts), flat.shape[1]).index_add(0, word, subwords) / counts[:, None]

    def forward(self, batch: SubwordBatch, tags: Tensor, lengths: Tensor) -> Tensor:
        """Compute the negative log-likelihood per word of each sentence, as TagLayer does. [B]."""
        return self.layer(self.word_features(batch), tags, lengths)


def pad_packed(values: Tensor, lengths: Tensor) -> Tensor:
    """Arrange packed rows [M, ...] as right-padded sentences [B, T, ...], with zeros in the padding."""
    mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
    padded = values.new_zeros(*mask.shape, *values.shape[1:])
    padded[mask] = values
    return padded
