"""The tagger: a decoder (or encoder) reads the subwords, one feature vector represents a word, a sequence head tags the words.

    subwords [N, P] -> decoder -> a feature vector per word [M, d] -> dropout -> linear -> emissions [B, T, C] -> CRF or softmax

Words are packed: the M words of B sentences one after the other, with `lengths` [B] saying where each ends. The
part after the word features is a module of its own (`TagLayer`), since it is all that a frozen decoder needs trained.
Saving and loading: metapt/tagger/serialization.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from metapt.errors import UserError
from metapt.tagger.crf import LinearChainCRF, SoftmaxHead, iob2_transitions


@dataclass(frozen=True)
class SubwordBatch:
    """N stretches of text in subwords, and where in them the M words stand that are to be read.

    subwords: int64 [N, P], padded on the right; sizes: int64 [N], those that are no padding; rows, firsts, lasts: int64 [M], a word's row and its first and last subword.
    """

    subwords: Tensor
    sizes: Tensor
    rows: Tensor
    firsts: Tensor
    lasts: Tensor

    def to(self, device: torch.device) -> SubwordBatch:
        return SubwordBatch(*(getattr(self, item.name).to(device) for item in fields(self)))


class TagLayer(nn.Module):
    """From word features to tags: dropout, a linear layer, and the sequence head.

    Args:
        width: of a feature vector.
        tags: IOB2 tags; their order is that of the emissions.
        head: `crf` or `softmax`.
        dropout: on the word features.
    """

    def __init__(self, width: int, tags: Sequence[str], head: str, dropout: float):
        super().__init__()
        self.tags = tuple(tags)
        self.head_name = head
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, len(self.tags))
        self.sequence = LinearChainCRF(*iob2_transitions(self.tags)) if head == "crf" else SoftmaxHead()

    def emissions(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Scores per word and tag, in fp32 also under autocast. [M, d], [B] to [B, T, C]."""
        with torch.autocast(features.device.type, enabled=False):
            return unpacked(self.linear(self.dropout(features.float())), lengths)

    def forward(self, features: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """Negative log-likelihood per word of each sentence, in nats.

        Args:
            features: [M, d], packed.
            tags: int64 [M], packed.
            lengths: int64 [B], words of each sentence, at least 1.
        Returns: fp32 [B].
        """
        with torch.autocast(features.device.type, enabled=False):
            emissions = self.emissions(features, lengths)
            return -self.sequence.log_likelihood(emissions, unpacked(tags, lengths), lengths) / lengths


class Tagger(nn.Module):
    """A decoder under a TagLayer. An encoder does as well: it is told by a mask where padding begins.

    Args:
        decoder: a base model, such as LlamaModel or XLMRobertaModel; a pooling layer, of which no word is read, is taken off.
        layer: what tags the words.
        subword_pooling: which of a word's subwords stands for it: `first`, `last`, or their `mean`.
    """

    def __init__(self, decoder: PreTrainedModel, layer: TagLayer, subword_pooling: str):
        super().__init__()
        if getattr(decoder, "pooler", None) is not None:
            decoder.pooler = None
        self.decoder = decoder
        self.layer = layer
        self.subword_pooling = subword_pooling
        self.causal = is_causal(decoder)

    def word_features(self, batch: SubwordBatch) -> Tensor:
        """The decoder's last hidden states, one for each word. fp32 [M, d]."""
        if self.causal:  # what stands to the right, padding too, changes nothing
            options: dict[str, Any] = {"use_cache": False}
        else:
            places = torch.arange(batch.subwords.shape[1], device=batch.subwords.device)
            options = {"attention_mask": (places < batch.sizes[:, None]).long()}
        hidden = self.decoder(input_ids=batch.subwords, **options).last_hidden_state.float()
        flat, row_starts = hidden.flatten(0, 1), batch.rows * hidden.shape[1]
        if self.subword_pooling != "mean":
            return flat.index_select(
                0, row_starts + (batch.firsts if self.subword_pooling == "first" else batch.lasts)
            )
        counts = batch.lasts - batch.firsts + 1
        word = torch.repeat_interleave(counts)
        within = torch.arange(len(word), device=word.device) - (counts.cumsum(0) - counts)[word]
        subwords = flat.index_select(0, (row_starts + batch.firsts)[word] + within)
        return flat.new_zeros(len(counts), flat.shape[1]).index_add(0, word, subwords) / counts[:, None]

    def forward(self, batch: SubwordBatch, tags: Tensor, lengths: Tensor) -> Tensor:
        """Negative log-likelihood per word of each sentence, as in TagLayer. [B]."""
        return self.layer(self.word_features(batch), tags, lengths)


def load_base(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The decoder or encoder of a model folder without its output layer, from safetensors.

    Raises:
        UserError: it cannot be loaded.
    """
    transformers_logging.set_verbosity_error()  # it would warn that the output layer is left out, as is meant
    transformers_logging.disable_progress_bar()
    try:
        return AutoModel.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be loaded as a model ({str(error).splitlines()[0]})") from None


def is_causal(model: PreTrainedModel) -> bool:
    """Whether the first of two states is no function of the second subword: its derivative is exactly 0 then."""
    training = model.training
    with torch.enable_grad():
        features = model.get_input_embeddings()(torch.zeros(1, 2, dtype=torch.long, device=model.device))
        features = features.detach().requires_grad_()
        first = model.eval()(inputs_embeds=features).last_hidden_state[0, 0].float()
        model.train(training)
        some = first @ torch.linspace(0, 1, len(first), device=first.device)  # a plain sum may be constant
        (gradient,) = torch.autograd.grad(some, features)
    return not gradient[0, 1].any()


def unpacked(values: Tensor, lengths: Tensor) -> Tensor:
    """Packed rows [M, ...] as right-padded sentences [B, T, ...], zeros in the padding."""
    inside = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
    padded = values.new_zeros(*inside.shape, *values.shape[1:])
    padded[inside] = values
    return padded
