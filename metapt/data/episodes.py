"""Episodes of subset masked language modelling tasks (SMLMT, Bansal et al. 2020, section 3.1), sampled from a corpus.

An episode has N classes, each a token type. The corpus is divided into windows on a fixed grid. For each class, K support
and Q query windows that contain the class token are sampled; all N (K + Q) windows are different. In a window all
occurrences of the class token are masked. The classifier predicts the class from the hidden state at the last of them,
where a causal decoder has seen the most context (`meta.prediction_position=end`: at the end of the window). Class numbers
are shuffled.

An episode is a function of (seed, step, task) alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from metapt import atomic_folders, randomness
from metapt.config import MetaConfig, PretrainConfig
from metapt.data.shards import evenly_spread
from metapt.errors import UserError
from metapt.leases import Lease

if TYPE_CHECKING:
    from metapt.data.corpus import Corpus, TokenStream

INDEX_CHUNK = 2**16  # windows that are read at a time when an index is built
MAX_CANDIDATES = 4096  # windows of a frequent token type that are considered for an episode


@dataclass(frozen=True)
class LabelledWindows:
    """The support or the query set of an episode: n windows of W tokens.

    tokens: int64 [n, W], with the class token masked; positions: int64 [n], the prediction position in each window;
    labels: int64 [n] in [0, N); windows: int64 [n], window numbers on the grid of the corpus.
    """

    tokens: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    windows: np.ndarray


@dataclass(frozen=True)
class Episode:
    support: LabelledWindows
    query: LabelledWindows
    classes: np.ndarray
    """int64 [N]: the class of each label among all classes of the task; the token type in SMLMT."""


@dataclass(frozen=True)
class WindowIndex:
    """For every token type, the windows in which it occurs after enough context.

    Type t occurs in `windows[offsets[t]:offsets[t + 1]]` (ascending); its last position in each of them is in the same
    slice of `last_positions`.
    """

    offsets: np.ndarray
    windows: np.ndarray
    last_positions: np.ndarray
    num_windows: int

    @classmethod
    def build(cls, tokens: np.ndarray, vocab_size: int, window: int, min_context: int) -> WindowIndex:
        """Index a token sequence.

        Args:
            tokens: [T] token ids below vocab_size; the tokens after the last complete window are ignored.
            window: tokens per window.
            min_context: minimum number of tokens of the window that must precede an occurrence.
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
        last_positions = (order[keep] % window).astype(np.int32)
        return cls(offsets, number[keep].astype(np.int64), last_positions, num_windows)

    @property
    def counts(self) -> np.ndarray:
        """Number of windows of each type. int64 [vocab_size]."""
        return np.diff(self.offsets)

    def save(self, folder: Path) -> None:
        staging = atomic_folders.staging(folder)
        for name in ("offsets", "windows", "last_positions", "num_windows"):
            np.save(staging / f"{name}.npy", getattr(self, name))
        atomic_folders.commit(staging, folder)

    @classmethod
    def load(cls, folder: Path) -> WindowIndex:
        """Load an index. The arrays stay on disk, memory-mapped."""
        offsets, windows, last_positions = (
            np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))
            for name in ("offsets", "windows", "last_positions")
        )
        return cls(offsets, windows, last_positions, int(np.load(folder / "num_windows.npy")))


def corpus_index(corpus: Corpus, meta: MetaConfig) -> WindowIndex:
    """The index of the training split for the windows of `meta`. It is built once and stored in the corpus folder.

    If the split has more than `meta.index_tokens` tokens, evenly spread windows of it are indexed.
    """
    windows = evenly_spread(meta.index_tokens // meta.window, len(corpus.train) // meta.window)
    folder = corpus.folder / f"index_window{meta.window}_context{meta.min_context}_windows{len(windows)}"
    if not folder.exists():
        with Lease(folder.with_name(f"{folder.name}.lock")).held(timeout=None):
            if not folder.exists():
                _index_windows(corpus, windows, meta).save(folder)
    return WindowIndex.load(folder)


def _index_windows(corpus: Corpus, windows: np.ndarray, meta: MetaConfig) -> WindowIndex:
    """The index of some windows of the training split, by their numbers on the grid (int64 [n], ascending)."""
    stream = corpus.train
    tokens = np.empty((len(windows), meta.window), dtype=stream.dtype)
    for rows in np.array_split(np.arange(len(windows)), len(windows) // INDEX_CHUNK + 1):
        tokens[rows] = stream.windows(windows[rows] * meta.window, meta.window)
    index = WindowIndex.build(tokens.ravel(), corpus.tokenizer.size, meta.window, meta.min_context)
    return replace(index, windows=windows[index.windows])


class TaskSampler(Protocol):
    """Samples episodes of a task (`metapt.config.registry.TASKS`)."""

    @classmethod
    def of(cls, config: PretrainConfig, corpus: Corpus) -> TaskSampler:
        """The sampler of a run; what it needs is made once and kept beside the corpus."""

    def episode(self, step: int, task: int) -> Episode:
        """Episode number `task` of outer step `step`, a function of (seed, step, task)."""


class EpisodeSampler:
    """Samples episodes with the help of an index.

    Raises:
        UserError: the corpus has too few token types within the frequency limits, or fewer than N (K + Q) windows.
    """

    def __init__(
        self, stream: TokenStream, index: WindowIndex, meta: MetaConfig, seed: int, mask_id: int, eos_id: int
    ):
        self.stream, self.index, self.meta, self.seed, self.mask_id = stream, index, meta, seed, mask_id
        self.windows_per_class = meta.k_shot + meta.q_query
        min_windows = max(meta.min_windows, self.windows_per_class)
        max_windows = max(min_windows, int(meta.max_window_fraction * index.num_windows))
        is_eligible = (index.counts >= min_windows) & (index.counts <= max_windows)
        is_eligible[[mask_id, eos_id]] = False
        self.eligible_types = np.flatnonzero(is_eligible)
        needed = meta.n_way * self.windows_per_class
        if len(self.eligible_types) < meta.n_way or index.num_windows < needed:
            raise UserError(
                f"the corpus is too small for {meta.n_way}-way episodes with {meta.k_shot} support and {meta.q_query} "
                f"query windows: it has {index.num_windows} windows of {meta.window} tokens, {needed} are needed; "
                f"{len(self.eligible_types)} token types occur in {min_windows} to {max_windows} windows, "
                f"{meta.n_way} are needed. Lower meta.n_way, meta.k_shot, meta.window or meta.min_windows, raise "
                "meta.max_window_fraction, or give more text"
            )

    @classmethod
    def of(cls, config: PretrainConfig, corpus: Corpus) -> EpisodeSampler:
        """The sampler of a run; the index is made if it does not exist."""
        index, tokenizer = corpus_index(corpus, config.meta), corpus.tokenizer
        seed = config.train.seed
        return cls(corpus.train, index, config.meta, seed, tokenizer.mask_id, tokenizer.eos_id)

    def episode(self, step: int, task: int) -> Episode:
        """Sample episode number `task` of outer step `step`."""
        rng = randomness.generator(self.seed, "episode", step, task)
        classes, windows, last_positions = self._sample_classes(rng)
        masked = self.stream.windows(windows.ravel() * self.meta.window, self.meta.window)
        labels = np.repeat(np.arange(self.meta.n_way), self.windows_per_class)
        masked[masked == classes[labels][:, None]] = self.mask_id
        positions = last_positions.ravel()
        if self.meta.prediction_position == "end":
            positions = np.full_like(positions, self.meta.window - 1)
        is_support = np.tile(np.arange(self.windows_per_class) < self.meta.k_shot, self.meta.n_way)
        support, query = (
            LabelledWindows(masked[rows], positions[rows], labels[rows], windows.ravel()[rows])
            for rows in (is_support, ~is_support)
        )
        return Episode(support, query, classes)

    def _sample_classes(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sample token types and different windows for them.

        Types are visited in random order, which also shuffles the class numbers. A type is skipped if too many of its
        windows belong to earlier classes.

        Returns:
            types [N], windows [N, K + Q] and the last position of the type in each window [N, K + Q]; all int64.
        """
        classes: list[int] = []
        windows: list[np.ndarray] = []
        last_positions: list[np.ndarray] = []
        used: set[int] = set()
        for token_type in rng.permutation(self.eligible_types):
            entries = self._sample_entries(token_type, used, rng)
            if entries is None:
                continue
            classes.append(int(token_type))
            windows.append(np.asarray(self.index.windows[entries]))
            last_positions.append(np.asarray(self.index.last_positions[entries], dtype=np.int64))
            used.update(windows[-1].tolist())
            if len(classes) == self.meta.n_way:
                return np.asarray(classes), np.stack(windows), np.stack(last_positions)
        raise UserError(
            f"only {len(classes)} of meta.n_way={self.meta.n_way} classes have {self.windows_per_class} windows that no "
            "other class uses; lower meta.n_way or meta.k_shot, or give more text"
        )

    def _sample_entries(self, token_type: int, used: set[int], rng: np.random.Generator) -> np.ndarray | None:
        """Sample K + Q index entries of a type whose windows are not `used`; None if there are too few."""
        start, stop = self.index.offsets[token_type], self.index.offsets[token_type + 1]
        count = stop - start
        if count <= MAX_CANDIDATES:
            candidates = rng.permutation(count)
        else:
            candidates = rng.choice(count, MAX_CANDIDATES, replace=False)
        entries = start + candidates[: self.windows_per_class + len(used)]
        is_free = [window not in used for window in self.index.windows[entries].tolist()]
        free = entries[is_free][: self.windows_per_class]
        return free if len(free) == self.windows_per_class else None
