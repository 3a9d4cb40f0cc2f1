"""Words to subwords, sentences to windows, windows to batches, and word features of a frozen decoder.

Every word is tokenised by itself, so a word's subwords do not depend on its neighbours and each distinct word is
tokenised once. A causal decoder sees only what stands to the left, so in evaluation each word of a sentence that
is longer than a window is read in the window that gives it most left context; windows advance by half.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from metapt import randomness
from metapt.data.iob2 import TAGS, Sentence
from metapt.errors import UserError
from metapt.tagger.model import SubwordBatch, Tagger

REMEMBERED = 200_000  # words, so that a stream of text without end fills no memory
POOL_BATCHES = 64  # so many batches are sorted by length together, and then shuffled
TAG_INDEX = {tag: index for index, tag in enumerate(TAGS)}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    Raises:
        UserError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: no tokenizer could be loaded ({str(error).splitlines()[0]})") from None


class WordTokenizer:
    """Pieces of words, each word by itself; remembers the words it has seen.

    A word without a subword (a lone control character, say) gets the end-of-text or unknown subword, so that there is
    always a state to read for it. A word that spells a special token is text like any other.

    Args:
        tokenizer: of the decoder.
        prefix_space: tokenise ` word` in place of `word`, as a byte-level BPE sees words inside a text.
        most: a word's subwords beyond so many are left out.
        frame: special tokens that stand before and after each window (`special_tokens`); a decoder has none.
    Raises:
        UserError: the tokenizer has neither an end-of-text nor an unknown subword.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prefix_space: bool,
        most: int,
        frame: tuple[Sequence[int], Sequence[int]] = ((), ()),
    ):
        self.frame = frame
        self._tokenizer, self._prefix, self._most = tokenizer, " " if prefix_space else "", most
        fallback = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.unk_token_id
        if fallback is None:
            raise UserError("the tokenizer names neither an eos_token nor an unk_token")
        self._fallback = [int(fallback)]
        self._known: dict[str, list[int]] = {}

    def __call__(self, words: Sequence[str]) -> list[list[int]]:
        """The subwords of each word: at least one, at most `most`."""
        if len(self._known) > REMEMBERED:
            self._known.clear()
        new = list(dict.fromkeys(word for word in words if word not in self._known))
        if new:
            texts = [self._prefix + word for word in new]
            found = self._tokenizer(
                texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False
            )["input_ids"]
            for word, subwords in zip(new, found, strict=True):
                self._known[word] = subwords[: self._most] or self._fallback
        return [self._known[word] for word in words]


@dataclass(frozen=True)
class Reading:
    """How a tagger reads words: `prefix_space` and `max_len` of NerConfig, special tokens before and after each window."""

    prefix_space: bool
    max_len: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def word_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> WordTokenizer:
        """Pieces of words with the tagger's tokenizer; half a window at most for each."""
        room = self.max_len - len(self.before) - len(self.after)
        return WordTokenizer(tokenizer, self.prefix_space, room // 2, (self.before, self.after))


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after a text, such as [CLS] and [SEP]."""
    bare, framed = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    begin = next(start for start in range(len(framed)) if framed[start : start + len(bare)] == bare)
    return framed[:begin], framed[begin + len(bare) :]


@dataclass(frozen=True)
class Window:
    """Pieces that are read at once, and the words to be read from them.

    subwords: int64 [P]; firsts, lasts: int64 [m], first and last subword of each of the m words.
    """

    subwords: np.ndarray
    firsts: np.ndarray
    lasts: np.ndarray


def windows(word_subwords: Sequence[Sequence[int]], max_len: int) -> list[Window]:
    """Windows of at most `max_len` subwords, cut at word borders, from which together each word is read once, in order.

    A word is read in the earliest window that holds it whole. The next window goes back by at most max_len // 2
    subwords, so words beyond the first window have nearly that much context.

    Args:
        word_subwords: subwords of each word of a sentence, 1 to max_len // 2 of them.
    """
    borders = np.concatenate([[0], np.cumsum([len(subwords) for subwords in word_subwords])])
    flat = np.fromiter(
        (subword for subwords in word_subwords for subword in subwords), dtype=np.int64, count=borders[-1]
    )
    found, begin, done = [], 0, 0
    while done < len(word_subwords):
        stop = int(np.searchsorted(borders, borders[begin] + max_len, side="right")) - 1
        firsts, lasts = borders[done:stop] - borders[begin], borders[done + 1 : stop + 1] - 1 - borders[begin]
        found.append(Window(flat[borders[begin] : borders[stop]], firsts, lasts))
        begin, done = int(np.searchsorted(borders, borders[stop] - max_len // 2)), stop
    return found


@dataclass(frozen=True)
class EncodedSet:
    """Labelled sentences as the tagger reads them. Words are packed: numbered through, sentence after sentence.

    windows: in the order of the words they are read for (one for each sentence if `cut`);
    tags: int64 [M]; lengths: int64 [S], words of each sentence; num_cut: sentences that were shortened, and
    words_cut: words that they lost.
    """

    windows: list[Window]
    tags: Tensor
    lengths: Tensor
    num_cut: int
    words_cut: int

    def words(self, chosen: np.ndarray) -> Tensor:
        """Numbers of all words of the chosen sentences, in their order. int64 [sum of their lengths]."""
        lengths = self.lengths[torch.from_numpy(chosen)]
        begins = (self.lengths.cumsum(0) - self.lengths)[torch.from_numpy(chosen)]
        shift = begins - (lengths.cumsum(0) - lengths)
        return torch.arange(int(lengths.sum())) + torch.repeat_interleave(shift, lengths)

    def sha256(self) -> str:
        """Of all that the decoder's word features are a function of: the subwords, and where the words stand among them."""
        digest = hashlib.sha256()
        for window in self.windows:
            for values in (window.subwords, window.firsts, window.lasts):
                digest.update(np.array([len(values), *values], dtype="<i8").tobytes())
        return digest.hexdigest()

    @staticmethod
    def joined(parts: Sequence[EncodedSet]) -> EncodedSet:
        """Several sets, one after the other, as one."""
        windows = [window for part in parts for window in part.windows]
        tags, lengths = (torch.cat([getattr(part, name) for part in parts]) for name in ("tags", "lengths"))
        cut = (sum(getattr(part, name) for part in parts) for name in ("num_cut", "words_cut"))
        return EncodedSet(windows, tags, lengths, *cut)


class WordFeatures:
    """Matrices of word features, one below the other, read by row as if they were one; they may be memory maps.

    Args:
        parts: fp32 [M_i, d].
    """

    def __init__(self, parts: Sequence[Tensor]):
        self._parts = parts
        self._ends = torch.tensor([len(part) for part in parts]).cumsum(0)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """int64 [n] to fp32 [n, d]."""
        found = torch.empty(len(rows), self._parts[0].shape[1])
        owners = torch.bucketize(rows, self._ends, right=True)
        for owner in owners.unique().tolist():
            here, part = owners == owner, self._parts[owner]
            found[here] = part[rows[here] - (self._ends[owner] - len(part))]
        return found


def encode(
    sentences: Sequence[Sentence], word_tokenizer: WordTokenizer, max_len: int, *, cut: bool
) -> EncodedSet:
    """Encodes sentences, longer ones in overlapping windows, or (`cut`) only the words that fit into one window.

    Args:
        max_len: subwords of a window, special ones among them.
    """
    before, after = word_tokenizer.frame
    room = max_len - len(before) - len(after)
    word_tokenizer(
        [word for sentence in sentences for word in sentence.words]
    )  # one call to the tokenizer for all
    found: list[Window] = []
    tags: list[int] = []
    lengths = []
    for sentence in sentences:
        mine = windows(word_tokenizer(sentence.words), room)
        mine = mine[:1] if cut else mine
        found += [_framed(window, before, after) for window in mine]
        lengths.append(sum(len(window.firsts) for window in mine))
        tags += [TAG_INDEX[tag] for tag in sentence.tags[: lengths[-1]]]
    lost = [len(sentence.words) - length for length, sentence in zip(lengths, sentences, strict=True)]
    return EncodedSet(
        found, torch.tensor(tags), torch.tensor(lengths), sum(words > 0 for words in lost), sum(lost)
    )


def _framed(window: Window, before: Sequence[int], after: Sequence[int]) -> Window:
    if not before and not after:
        return window
    subwords = np.concatenate([before, window.subwords, after]).astype(np.int64)
    return Window(subwords, window.firsts + len(before), window.lasts + len(before))


def collate(chosen: Sequence[Window]) -> SubwordBatch:
    """One batch of windows, padded on the right with subword 0, which nothing reads."""
    sizes = np.array([len(window.subwords) for window in chosen])
    subwords = np.zeros((len(chosen), sizes.max()), dtype=np.int64)
    for row, window in enumerate(chosen):
        subwords[row, : len(window.subwords)] = window.subwords
    rows = np.repeat(np.arange(len(chosen)), [len(window.firsts) for window in chosen])
    firsts = np.concatenate([window.firsts for window in chosen])
    lasts = np.concatenate([window.lasts for window in chosen])
    return SubwordBatch(*map(torch.from_numpy, (subwords, sizes, rows, firsts, lasts)))


def epoch_batches(encoded: EncodedSet, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Every sentence once, in batches of like length, as a function of (seed, epoch).

    Sentences are shuffled, sorted by length within pools of POOL_BATCHES batches, and the batches shuffled again.
    Sentences must be cut, that is one window each.
    """
    draw = randomness.generator(seed, "fine-tuning order", epoch)
    sizes = np.array([len(window.subwords) for window in encoded.windows])
    order = draw.permutation(len(sizes))
    pools = [
        order[start : start + batch_size * POOL_BATCHES]
        for start in range(0, len(order), batch_size * POOL_BATCHES)
    ]
    order = np.concatenate([pool[np.argsort(sizes[pool], kind="stable")] for pool in pools])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [batches[index] for index in draw.permutation(len(batches))]


@torch.no_grad()
def word_features(
    tagger: Tagger, encoded: EncodedSet, batch_size: int, accelerator: Accelerator | None = None
) -> Tensor:
    """The decoder's feature vector of every word of a set, in fp32 on the CPU. [M, d].

    Args:
        accelerator: for its mixed precision; absent: the decoder computes in the type that it has.
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
            found = tagger.word_features(batch).cpu()
        where = np.concatenate([np.arange(begins[index], begins[index] + counts[index]) for index in chosen])
        features[torch.from_numpy(where)] = found
    return features
