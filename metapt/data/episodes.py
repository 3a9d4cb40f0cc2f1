"""Subset-masked language-model tasks (SMLMT, Bansal et al. 2020, section 3.1), drawn from an index of the corpus.

An episode has N classes, each a token type. The corpus is cut into windows on a fixed grid; for each class K
support and Q query windows that hold the class token are drawn, all N (K + Q) of them different. In its window
every occurrence of the class token is masked, and the classifier reads the state at the last of them, where a
causal decoder has seen most (`meta.prediction_position=end`: at the window's end). Class numbers are shuffled.

Everything is a function of (seed, step, task).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock

from metapt import atomic_folders, randomness
from metapt.config import MetaConfig
from metapt.errors import UserError

if TYPE_CHECKING:
    from metapt.data.corpus import Corpus, TokenStream


@dataclass(frozen=True)
class Examples:
    """One side of an episode: n windows of W tokens.

    tokens: int64 [n, W], with the class token masked; positions: int64 [n], the state to read;
    labels: int64 [n] in [0, N); windows: int64 [n], their numbers on the corpus grid.
    """

    tokens: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    windows: np.ndarray


@dataclass(frozen=True)
class Episode:
    support: Examples
    query: Examples
    classes: np.ndarray
    """int64 [N]: the token type of each label."""


@dataclass(frozen=True)
class WindowIndex:
    """For every token type the windows in which it occurs late enough to be read.

    Type t occurs in `windows[offsets[t]:offsets[t + 1]]` (ascending), last at `last[...]` in each.
    """

    offsets: np.ndarray
    windows: np.ndarray
    last: np.ndarray
    num_windows: int

    @classmethod
    def build(cls, tokens: np.ndarray, vocab_size: int, window: int, min_context: int) -> WindowIndex:
        """Indexes a token sequence.

        Args:
            tokens: [T] token ids below vocab_size; the tail that fills no window is left out.
            window: tokens of a window.
            min_context: an occurrence counts only if at least so many tokens of its window precede it.
        """
        num_windows = len(tokens) // window
        tokens = np.asarray(tokens[: num_windows * window])
        order = np.argsort(tokens, kind="stable")  # occurrences by type, and by position within a type
        types, number = tokens[order], order // window
        is_last = np.ones(len(order), dtype=bool)
        is_last[:-1] = (types[1:] != types[:-1]) | (number[1:] != number[:-1])
        keep = is_last & (order % window >= min_context)
        counts = np.bincount(types[keep], minlength=vocab_size)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(
            offsets, number[keep].astype(np.int64), (order[keep] % window).astype(np.int32), num_windows
        )

    @property
    def counts(self) -> np.ndarray:
        """Windows per type. int64 [vocab_size]."""
        return np.diff(self.offsets)

    def save(self, folder: Path) -> None:
        staging = atomic_folders.staging(folder)
        for name in ("offsets", "windows", "last"):
            np.save(staging / f"{name}.npy", getattr(self, name))
        np.save(staging / "num_windows.npy", self.num_windows)
        atomic_folders.commit(staging, folder)

    @classmethod
    def load(cls, folder: Path) -> WindowIndex:
        """The arrays stay on disk, memory-mapped."""
        offsets, windows, last = (
            np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))
            for name in ("offsets", "windows", "last")
        )
        return cls(offsets, windows, last, int(np.load(folder / "num_windows.npy")))


def corpus_index(corpus: Corpus, meta: MetaConfig) -> WindowIndex:
    """The index of a corpus' training split for the windows of `meta`, made once and kept beside the shards."""
    size = min(len(corpus.train), meta.index_tokens)
    folder = corpus.folder / f"index_w{meta.window}_c{meta.min_context}_n{size}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            tokens = corpus.train.tokens(0, size)
            WindowIndex.build(tokens, corpus.tokenizer.size, meta.window, meta.min_context).save(folder)
    return WindowIndex.load(folder)


class EpisodeSampler:
    """Draws episodes from an index.

    Raises:
        UserError: the corpus has too few classes within the bounds, or too few windows for N (K + Q).
    """

    def __init__(
        self, stream: TokenStream, index: WindowIndex, meta: MetaConfig, seed: int, mask_id: int, eos_id: int
    ):
        self.stream, self.index, self.meta, self.seed, self.mask_id = stream, index, meta, seed, mask_id
        counts = index.counts
        self.per_class = meta.k_shot + meta.q_query
        self.fewest = max(meta.min_windows, self.per_class)
        self.most = max(self.fewest, int(meta.max_window_fraction * index.num_windows))
        within = (counts >= self.fewest) & (counts <= self.most)
        within[[mask_id, eos_id]] = False
        self.eligible = np.flatnonzero(within)
        needed = meta.n_way * self.per_class
        if len(self.eligible) < meta.n_way or index.num_windows < needed:
            raise UserError(
                f"the corpus is too small for {meta.n_way}-way episodes with {meta.k_shot} support and {meta.q_query} "
                f"query windows: {needed} windows of {meta.window} tokens are needed, there are {index.num_windows}; "
                f"{meta.n_way} token types must occur in {self.fewest} to {self.most} of them, "
                f"and {len(self.eligible)} do. Lower meta.n_way, meta.k_shot, meta.window or meta.min_windows, raise "
                "meta.max_window_fraction, or give more text"
            )

    def episode(self, step: int, task: int) -> Episode:
        """Episode number `task` of outer step `step`."""
        draw = randomness.generator(self.seed, "episode", step, task)
        classes, windows, last = self._draw_classes(draw)
        masked = self.stream.windows(windows.ravel() * self.meta.window, self.meta.window)
        labels = np.repeat(np.arange(self.meta.n_way), self.per_class)
        masked[masked == classes[labels][:, None]] = self.mask_id
        positions = (
            last if self.meta.prediction_position == "mask" else np.full_like(last, self.meta.window - 1)
        )
        is_support = np.tile(np.arange(self.per_class) < self.meta.k_shot, self.meta.n_way)

        def side(chosen: np.ndarray) -> Examples:
            return Examples(
                masked[chosen], positions.ravel()[chosen], labels[chosen], windows.ravel()[chosen]
            )

        return Episode(side(is_support), side(~is_support), classes)

    def _draw_classes(self, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Types [N], windows [N, K + Q] and positions of the mask [N, K + Q]; no window twice.

        Types come in random order, which is the shuffle of the class numbers. A type whose windows are mostly
        taken by the classes before it is passed over.
        """
        classes: list[int] = []
        windows: list[np.ndarray] = []
        last: list[np.ndarray] = []
        taken: set[int] = set()
        for kind in draw.permutation(self.eligible):
            start, stop = self.index.offsets[kind], self.index.offsets[kind + 1]
            tries = (
                draw.permutation(stop - start)
                if stop - start <= 4096
                else draw.choice(stop - start, 4096, False)
            )
            tries = tries[: self.per_class + len(taken)]
            found = self.index.windows[start + tries].tolist()
            free = [place for place, window in zip(tries, found, strict=True) if window not in taken]
            if len(free) < self.per_class:
                continue
            places = start + np.asarray(free[: self.per_class])
            classes.append(int(kind))
            windows.append(np.asarray(self.index.windows[places]))
            last.append(np.asarray(self.index.last[places], dtype=np.int64))
            taken.update(windows[-1].tolist())
            if len(classes) == self.meta.n_way:
                return np.asarray(classes), np.stack(windows), np.stack(last)
        raise UserError(
            f"only {len(classes)} of meta.n_way={self.meta.n_way} classes could be given {self.per_class} windows of "
            "their own; lower meta.n_way or meta.k_shot, or give more text"
        )
