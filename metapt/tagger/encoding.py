"""Words to subwords, sentences to batches of windows, and the word features of a frozen decoder.

Each word is tokenized on its own. The subwords of a word therefore do not depend on its neighbours, and each distinct
word is tokenized once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from metapt import randomness
from metapt.data.iob2 import Sentence
from metapt.data.word_subwords import Offsets, WordSubwords, split_words
from metapt.errors import UserError, first_line
from metapt.tagger.model import SubwordBatch, Tagger
from metapt.tagger.windows import SubwordWindow, split_into_windows

if TYPE_CHECKING:
    from accelerate import Accelerator

MAX_CACHED_WORDS = 200_000  # bounds the memory for endless input
BATCHES_PER_POOL = 64  # batches whose sentences are sorted by length together
UNKNOWN_TAG = -1


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder.

    Raises:
        UserError: the folder has no tokenizer that can be loaded.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        if not (folder / "tokenizer.json").is_file():
            raise UserError(
                f"{folder}: contains no tokenizer.json; save the model's tokenizer there"
            ) from None
        raise UserError(f"{folder}: no tokenizer could be loaded ({first_line(error)})") from None


class WordTokenizer:
    """Splits words into subwords, each word on its own (metapt/data/word_subwords.py), and caches the result.

    A word without any subword (a lone control character, for example) gets the end-of-text or unknown token, so that
    every word has a hidden state. A word that spells a special token is treated as plain text.

    Args:
        tokenizer: tokenizer of the decoder.
        prefix_space: tokenize ` word` instead of `word`, as inside a text, unless the space would not become a part of
            the word's first subword.
        max_subwords: longer words are truncated to this many subwords.
        special_tokens: token ids before and after each window (see `special_tokens`); none for a decoder.
    Raises:
        UserError: the tokenizer has neither an end-of-text nor an unknown token, or does not report the characters of
            its subwords (only the tokenizers of the Rust library do).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prefix_space: bool,
        max_subwords: int,
        special_tokens: tuple[Sequence[int], Sequence[int]] = ((), ()),
    ):
        self.special_tokens = special_tokens
        self._tokenizer, self._max_subwords = tokenizer, max_subwords
        self._prefix_space = prefix_space
        if not tokenizer.is_fast:
            raise UserError(
                f"{type(tokenizer).__name__} has no tokenizer.json (no fast tokenizer), so the characters of its subwords "
                "are not known; use another model"
            )
        fallback = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.unk_token_id
        if fallback is None:
            raise UserError("the tokenizer has neither an eos_token nor an unk_token")
        self._fallback = WordSubwords([int(fallback)], 0, holds_character=False)
        self._cache: dict[str, WordSubwords] = {}

    def __call__(self, words: Sequence[str]) -> list[WordSubwords]:
        """Return the subwords of each word: at least one, at most `max_subwords`."""
        if len(self._cache) > MAX_CACHED_WORDS:
            self._cache.clear()
        new = list(dict.fromkeys(word for word in words if word not in self._cache))
        for word, found in zip(new, split_words(new, self._encode, self._prefix_space), strict=True):
            self._cache[word] = self._truncated(found) if found.ids else self._fallback
        return [self._cache[word] for word in words]

    def _encode(self, texts: list[str]) -> Iterable[tuple[list[int], Offsets]]:
        encoded = self._tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_offsets_mapping=True,
        )
        return zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)

    def _truncated(self, word: WordSubwords) -> WordSubwords:
        kept = word.ids[: self._max_subwords]
        reaches_character = word.first < len(kept)
        return WordSubwords(kept, min(word.first, len(kept) - 1), word.holds_character and reaches_character)


@dataclass(frozen=True)
class EncodingSettings:
    """How a tagger turns words into windows.

    Attributes:
        prefix_space: as in NerConfig.
        max_len: as in NerConfig, subwords of a window including special tokens.
        prefix_tokens, suffix_tokens: ids of the special tokens before and after each window.
    """

    prefix_space: bool
    max_len: int
    prefix_tokens: tuple[int, ...] = ()
    suffix_tokens: tuple[int, ...] = ()

    def word_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> WordTokenizer:
        """Create the word tokenizer. A word gets at most half a window."""
        room = self.max_len - len(self.prefix_tokens) - len(self.suffix_tokens)
        frame = (self.prefix_tokens, self.suffix_tokens)
        return WordTokenizer(tokenizer, self.prefix_space, room // 2, frame)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the special tokens that a tokenizer puts before and after a text, such as [CLS] and [SEP]."""
    plain, full = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    begin = next(start for start in range(len(full)) if full[start : start + len(plain)] == plain)
    return full[:begin], full[begin + len(plain) :]


@dataclass(frozen=True)
class EncodedSet:
    """Labelled sentences as the tagger processes them. Words are packed: the M words of S units in one sequence.

    A unit is a sentence. In a set that was split for training, each window of a longer sentence is a unit of its own.

    Attributes:
        windows: in the order of their words (one window per unit in a set that was split).
        tags: int64 [M], indices into the tags of the tagger; UNKNOWN_TAG for a tag that it does not have.
        lengths: int64 [S], words of each unit.
        sentences: number of sentences.
        sentences_split: number of sentences that are longer than a window.
        words_without_character: number of the M words none of whose subwords holds one of their characters.
    """

    windows: list[SubwordWindow]
    tags: Tensor
    lengths: Tensor
    sentences: int
    sentences_split: int
    words_without_character: int

    @property
    def pooled_character_fraction(self) -> float:
        """The fraction of the words whose pooled subword holds a character of the word."""
        return 1 - self.words_without_character / max(1, len(self.tags))

    def word_rows(self, units: np.ndarray) -> Tensor:
        """Return the row numbers of all words of some units, in their order. int64 [sum of their lengths]."""
        chosen = torch.from_numpy(units)
        lengths = self.lengths[chosen]
        begins = (self.lengths.cumsum(0) - self.lengths)[chosen]
        shift = begins - (lengths.cumsum(0) - lengths)
        return torch.arange(int(lengths.sum())) + torch.repeat_interleave(shift, lengths)

    def sha256(self) -> str:
        """Hash everything that the word features depend on: the subwords, and the positions of the words among them."""
        digest = hashlib.sha256()
        for window in self.windows:
            for values in (window.subwords, window.firsts, window.lasts):
                digest.update(np.array([len(values), *values], dtype="<i8").tobytes())
        return digest.hexdigest()

    @staticmethod
    def concatenate(parts: Sequence[EncodedSet]) -> EncodedSet:
        """Concatenate several sets into one."""
        return EncodedSet(
            windows=[window for part in parts for window in part.windows],
            tags=torch.cat([part.tags for part in parts]),
            lengths=torch.cat([part.lengths for part in parts]),
            sentences=sum(part.sentences for part in parts),
            sentences_split=sum(part.sentences_split for part in parts),
            words_without_character=sum(part.words_without_character for part in parts),
        )


class WordFeatures:
    """Several matrices of word features that are indexed by row like one matrix; they may be memory maps.

    Args:
        parts: fp32 [M_i, d] each.
    """

    def __init__(self, parts: Sequence[Tensor]):
        self._parts = parts
        self._ends = torch.tensor([len(part) for part in parts]).cumsum(0)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Gather rows. int64 [n] to fp32 [n, d]."""
        gathered = torch.empty(len(rows), self._parts[0].shape[1])
        owners = torch.bucketize(rows, self._ends, right=True)
        for owner in owners.unique().tolist():
            here, part = owners == owner, self._parts[owner]
            gathered[here] = part[rows[here] - (self._ends[owner] - len(part))]
        return gathered


def encode(
    sentences: Sequence[Sentence],
    word_tokenizer: WordTokenizer,
    max_len: int,
    tags: Sequence[str],
    *,
    split: bool,
) -> EncodedSet:
    """Encode sentences.

    Args:
        max_len: subwords of a window, including special tokens.
        tags: all tags of the tagger.
        split: make each window a unit of its own, for training, where the windows of a long text do not fit into memory
            together. Windows overlap: a word has the left context of its window, also where its unit begins.
    """
    prefix, suffix = word_tokenizer.special_tokens
    room = max_len - len(prefix) - len(suffix)
    tag_index = {tag: index for index, tag in enumerate(tags)}
    word_tokenizer([word for sentence in sentences for word in sentence.words])  # fills the cache in one call
    windows: list[SubwordWindow] = []
    tag_numbers: list[int] = []
    lengths: list[int] = []
    without_character = sentences_split = 0
    for sentence in sentences:
        words = word_tokenizer(sentence.words)
        own = split_into_windows(words, room, sentence.tags if split else ())
        windows += [_with_special_tokens(window, prefix, suffix) for window in own]
        sizes = [len(window.firsts) for window in own] if split else [len(words)]
        lengths += sizes
        sentences_split += len(own) > 1
        for end, size in zip(np.cumsum(sizes), sizes, strict=True):
            tag_numbers += [
                tag_index.get(tag, UNKNOWN_TAG) for tag in _as_unit(sentence.tags[end - size : end])
            ]
        without_character += sum(not word.holds_character for word in words)
    return EncodedSet(
        windows,
        torch.tensor(tag_numbers),
        torch.tensor(lengths),
        sentences=len(sentences),
        sentences_split=sentences_split,
        words_without_character=without_character,
    )


def _as_unit(tags: Sequence[str]) -> Sequence[str]:
    """The tags of a unit. The rest of an entity that is longer than a window begins an entity, as valid IOB2 must."""
    return [f"B-{tags[0][2:]}", *tags[1:]] if tags[0].startswith("I-") else tags


def _with_special_tokens(
    window: SubwordWindow, prefix: Sequence[int], suffix: Sequence[int]
) -> SubwordWindow:
    if not prefix and not suffix:
        return window
    subwords = np.concatenate([prefix, window.subwords, suffix]).astype(np.int64)
    return SubwordWindow(subwords, window.firsts + len(prefix), window.lasts + len(prefix))


def collate(windows: Sequence[SubwordWindow]) -> SubwordBatch:
    """Combine windows into a batch, padded on the right with subword 0, whose hidden states are never used."""
    sizes = np.array([len(window.subwords) for window in windows])
    subwords = np.zeros((len(windows), sizes.max()), dtype=np.int64)
    for row, window in enumerate(windows):
        subwords[row, : len(window.subwords)] = window.subwords
    rows = np.repeat(np.arange(len(windows)), [len(window.firsts) for window in windows])
    firsts = np.concatenate([window.firsts for window in windows])
    lasts = np.concatenate([window.lasts for window in windows])
    return SubwordBatch(*map(torch.from_numpy, (subwords, sizes, rows, firsts, lasts)))


def epoch_batches(encoded: EncodedSet, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Split an epoch into batches of units of similar length, as a function of (seed, epoch).

    Units are shuffled and sorted by length within pools of BATCHES_PER_POOL batches; then the batches are
    shuffled. Each unit occurs once.

    Args:
        encoded: a set that was split, so that a unit is one window.
    Returns: unit numbers of each batch.
    """
    rng = randomness.generator(seed, "fine-tuning order", epoch)
    sizes = np.array([len(window.subwords) for window in encoded.windows])
    order = rng.permutation(len(sizes))
    pool_size = batch_size * BATCHES_PER_POOL
    pools = [order[start : start + pool_size] for start in range(0, len(order), pool_size)]
    order = np.concatenate([pool[np.argsort(sizes[pool], kind="stable")] for pool in pools])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [batches[index] for index in rng.permutation(len(batches))]


@torch.no_grad()
def word_features(
    tagger: Tagger, encoded: EncodedSet, batch_size: int, accelerator: Accelerator | None = None
) -> Tensor:
    """Compute the word features of a set, in fp32 on the CPU. [M, d].

    Args:
        batch_size: windows.
        accelerator: provides mixed precision; without it the decoder computes in the dtype of its weights.
    """
    tagger.eval()
    sizes = np.array([len(window.subwords) for window in encoded.windows])
    counts = np.array([len(window.firsts) for window in encoded.windows])
    begins = np.cumsum(counts) - counts
    features = torch.empty(int(counts.sum()), tagger.decoder.config.hidden_size)
    order = np.argsort(sizes, kind="stable")
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collate([encoded.windows[index] for index in chosen]).to(tagger.decoder.device)
        with accelerator.autocast() if accelerator else nullcontext():
            computed = tagger.word_features(batch).cpu()
        rows = np.concatenate([np.arange(begins[index], begins[index] + counts[index]) for index in chosen])
        features[torch.from_numpy(rows)] = computed
    return features
