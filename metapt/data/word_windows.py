"""Episodes of word classes on windows: a window ends with a visible word, whose class is predicted.

An episode takes one training partition of the corpus' words into classes (metapt/data/word_classes.py) and samples N classes; for each
class K + Q different word types, and an occurrence of each. A window is `meta.window` tokens of running text that end with the first
subword of the word; in a fraction of the windows this subword is masked, so that its class is predicted from the context. Word types
that are held out of training never occur as examples.

An episode is a function of (seed, step, task) alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metapt import atomic_folders, randomness
from metapt.config import MetaConfig, PretrainConfig
from metapt.data.corpus_classes import corpus_classes, corpus_token_kinds
from metapt.data.corpus_words import find_units
from metapt.data.episodes import Episode, LabelledWindows
from metapt.data.word_classes import WordClasses, evenly_spread_stretches
from metapt.errors import UserError
from metapt.leases import Lease

if TYPE_CHECKING:
    from metapt.data.corpus import Corpus, TokenStream

ARRAYS = ("offsets", "starts")


@dataclass(frozen=True)
class WordIndex:
    """Where words occur: type t begins at `starts[offsets[t]:offsets[t + 1]]`, positions in the training split, ascending."""

    offsets: np.ndarray
    starts: np.ndarray

    @classmethod
    def build(
        cls, stream: TokenStream, kinds: np.ndarray, classes: WordClasses, window: int, limit: int
    ) -> WordIndex:
        """Index the words that are not held out.

        Args:
            kinds: `corpus_words.token_kinds` of the vocabulary.
            window: tokens of a window; words with fewer tokens before them are left out.
            limit: number of tokens that are read, in evenly spread stretches.
        """
        types, starts = [], []
        for begin, tokens in evenly_spread_stretches(stream, limit):
            units = find_units(tokens, kinds)
            found = np.where(units.is_word, classes.types_of(units.keys), -1)
            found[[0, -1]] = -1  # the edge of the stretch may have cut them
            places = begin + units.starts
            chosen = (found >= 0) & (places >= window - 1)
            chosen[chosen] = ~classes.is_held_out[found[chosen]]
            types.append(found[chosen])
            starts.append(places[chosen])
        every = np.concatenate(types)
        order = np.argsort(every, kind="stable")
        counts = np.bincount(every, minlength=len(classes.keys))
        return cls(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), np.concatenate(starts)[order])

    @property
    def counts(self) -> np.ndarray:
        """Number of occurrences of each type. int64 [W]."""
        return np.diff(self.offsets)

    def save(self, folder: Path) -> None:
        staging = atomic_folders.staging(folder)
        for name in ARRAYS:
            np.save(staging / f"{name}.npy", getattr(self, name))
        atomic_folders.commit(staging, folder)

    @classmethod
    def load(cls, folder: Path) -> WordIndex:
        """Load an index. The positions stay on disk, memory-mapped."""
        return cls(*(np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in ARRAYS))


def corpus_word_index(corpus: Corpus, classes: WordClasses, meta: MetaConfig) -> WordIndex:
    """The index of the training split's words, built once and stored in the corpus folder."""
    name = (
        f"words_{classes.sha256[:12]}_window{meta.window}_spread{min(meta.index_tokens, len(corpus.train))}"
    )
    folder = corpus.folder / name
    with Lease(folder.with_name(f"{folder.name}.lock")).held(timeout=None):
        if not folder.exists():
            kinds = corpus_token_kinds(corpus)
            WordIndex.build(corpus.train, kinds, classes, meta.window, meta.index_tokens).save(folder)
    return WordIndex.load(folder)


class WordWindowSampler:
    """Samples episodes with the help of an index.

    Raises:
        UserError: a training partition has fewer than N classes with K + Q word types.
    """

    def __init__(
        self,
        stream: TokenStream,
        index: WordIndex,
        classes: WordClasses,
        meta: MetaConfig,
        seed: int,
        mask_id: int,
    ):
        self.stream, self.index, self.meta, self.seed, self.mask_id = stream, index, meta, seed, mask_id
        self.types_per_class = meta.k_shot + meta.q_query
        occurs = index.counts > 0
        self.members = [
            _members(partition, occurs, self.types_per_class) for partition in classes.partitions[:-1]
        ]
        self.first_class = np.concatenate([[0], np.cumsum(classes.sizes[:-1])])
        fewest = min(map(len, self.members))
        if fewest < meta.n_way:
            raise UserError(
                f"word classes: meta.n_way={meta.n_way} classes with {self.types_per_class} word types (meta.k_shot + meta.q_query) are "
                f"needed in every partition, and one has {fewest}; lower meta.n_way or meta.k_shot, set smaller classes.sizes, or give more text"
            )

    @classmethod
    def of(cls, config: PretrainConfig, corpus: Corpus) -> WordWindowSampler:
        """The sampler of a run; classes and index are made if they do not exist."""
        classes = corpus_classes(corpus, config.classes)
        index = corpus_word_index(corpus, classes, config.meta)
        return cls(corpus.train, index, classes, config.meta, config.train.seed, corpus.tokenizer.mask_id)

    def episode(self, step: int, task: int) -> Episode:
        """Sample episode number `task` of outer step `step`."""
        draw, meta = randomness.generator(self.seed, "word window episode", step, task), self.meta
        partition = int(draw.integers(len(self.members)))
        members = self.members[partition]
        eligible = np.fromiter(members, dtype=np.int64, count=len(members))
        classes = draw.permutation(eligible)[: meta.n_way]
        types = np.stack(
            [draw.choice(members[label], self.types_per_class, replace=False) for label in classes.tolist()]
        )
        first, count = self.index.offsets[types], self.index.counts[types]
        starts = np.asarray(self.index.starts[first + draw.integers(0, count)], dtype=np.int64).ravel()
        tokens = self.stream.windows(starts - (meta.window - 1), meta.window)
        tokens[draw.random(len(starts)) < meta.mask_fraction, -1] = self.mask_id
        labels = np.repeat(np.arange(meta.n_way), self.types_per_class)
        is_support = np.tile(np.arange(self.types_per_class) < meta.k_shot, meta.n_way)
        support, query = (
            LabelledWindows(
                tokens[rows], np.full(int(rows.sum()), meta.window - 1), labels[rows], starts[rows]
            )
            for rows in (is_support, ~is_support)
        )
        return Episode(support, query, self.first_class[partition] + classes)


def _members(partition: np.ndarray, occurs: np.ndarray, needed: int) -> dict[int, np.ndarray]:
    """The word types of each class of a partition that has enough of them."""
    found = {int(label): np.flatnonzero((partition == label) & occurs) for label in np.unique(partition)}
    return {label: types for label, types in found.items() if len(types) >= needed}
