"""The loss of a language model on text in nats per byte, which is comparable between tokenizers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from metapt.data.bad_input import BadInput
from metapt.data.text_files import Document
from metapt.data.text_sources import TextSource
from metapt.errors import UserError
from metapt.models.causal_lm import load_causal_lm, start_token
from metapt.models.device import torch_device
from metapt.models.pretrained import model_folder
from metapt.tagger.encoding import load_tokenizer

MAX_WINDOW = 2048  # tokens, for models that accept more or any number
BATCH_TOKENS = 4096  # bounds the memory of the logits
GROUP_DOCUMENTS = 200  # whose windows are sorted by length together


@dataclass(frozen=True)
class TextLoss:
    """The negative log-likelihood of documents.

    Attributes:
        nats: its sum over all tokens of the documents; the end-of-text token is not scored.
        altered: documents whose tokens do not decode to their text, so that the loss is that of another text.
    """

    nats: float
    tokens: int
    bytes: int
    documents: int
    altered: int

    @property
    def nats_per_byte(self) -> float:
        return self.nats / self.bytes

    def __str__(self) -> str:
        perplexity = math.exp(min(self.nats / self.tokens, 700.0))
        return (
            f"{self.nats_per_byte:.4f} nats per byte ({self.nats_per_byte / math.log(2):.4f} bits), perplexity "
            f"{perplexity:.4g} per token: {self.documents:,} documents, {self.bytes:,} bytes, {self.tokens:,} tokens"
        )


def text_loss(checkpoint: str | Path, text: str | Path, on_bad_input: str, device: str = "auto") -> TextLoss:
    """Score a causal language model on text files.

    Each document is preceded by the beginning-of-text token of the tokenizer, or else by its end-of-text token. A
    document that is longer than the model's window is scored in windows that overlap by half, so that every token has
    at least half a window of context.

    Args:
        checkpoint: a pretraining run, a checkpoint, a model folder, or hub:NAME.
        text: a file, or a folder of files, as for `data.text_dir`; a .txt file is one document.
    Raises:
        UserError: the model is not a causal language model, its tokenizer marks no beginning of a text, or the text
            cannot be read.
    """
    folder, place = model_folder(checkpoint), torch_device(device)
    model, tokenizer = load_causal_lm(folder).to(place), load_tokenizer(folder)
    start = start_token(tokenizer, folder)
    source = TextSource(Path(text).expanduser(), "file", on_bad_input)
    documents = (item for item in source.documents(BadInput(on_bad_input)) if isinstance(item, Document))
    length = min(getattr(model.config, "max_position_embeddings", None) or MAX_WINDOW, MAX_WINDOW)
    nats, tokens, size, count, altered = 0.0, 0, 0, 0, 0
    group: list[list[int]] = []
    for document in documents:
        ids = tokenizer.encode(document.text, add_special_tokens=False)
        altered += _decoded(tokenizer, ids) != document.text
        group.append([start, *ids])
        tokens, size, count = tokens + len(ids), size + document.bytes, count + 1
        if len(group) == GROUP_DOCUMENTS:
            nats += sequence_nats(model, group, length)
            group = []
    nats += sequence_nats(model, group, length)
    if not tokens:
        raise UserError(f"text={text}: no text to score")
    return TextLoss(nats, tokens, size, count, altered)


@torch.no_grad()
def sequence_nats(model: PreTrainedModel, sequences: Sequence[Sequence[int]], length: int) -> float:
    """The summed negative log-likelihood of all tokens but the first of each sequence, in nats.

    Args:
        length: of a window, in tokens.
    """
    windows = sorted((item for sequence in sequences for item in _windows(sequence, length)), key=_size)
    total = 0.0
    while windows:
        widest = len(windows[-1][0])
        count = max(1, BATCH_TOKENS // widest)
        batch, windows = windows[-count:], windows[:-count]
        padded = torch.tensor([[*ids, *[0] * (widest - len(ids))] for ids, _ in batch], device=model.device)
        # padding on the right: no token sees it
        logits = model(input_ids=padded, use_cache=False).logits[:, :-1].float()
        targets = padded[:, 1:]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        positions = torch.arange(1, widest, device=model.device)
        first = torch.tensor([[number] for _, number in batch], device=model.device)
        stop = torch.tensor([[len(ids)] for ids, _ in batch], device=model.device)
        is_scored = (positions >= first) & (positions < stop)
        total += float(losses.masked_fill(~is_scored, 0.0).cpu().double().sum())
    return total


def _windows(sequence: Sequence[int], length: int) -> Iterator[tuple[Sequence[int], int]]:
    """The windows of a sequence, with the position in each from which tokens are scored; each token is scored once."""
    scored = 1
    for start in range(0, len(sequence), max(1, length // 2)):
        window = sequence[start : start + length]
        if start + len(window) > scored:
            yield window, scored - start
            scored = start + len(window)


def _size(window: tuple[Sequence[int], int]) -> int:
    return len(window[0])


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
