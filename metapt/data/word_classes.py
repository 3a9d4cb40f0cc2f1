"""Word classes: clusters of a corpus' frequent words by the words around them, made without labels.

The most frequent word types are described by their positive pointwise mutual information (PPMI) with frequent units within two
places, left and right apart; a truncated SVD turns this into dense vectors, and k-means into classes. Several partitions, coarse and
fine, are the pseudo-labels of meta-pretraining on classes of visible words.

    counts      C[w, (c, side)]: how often unit c occurs within two places on that side of word type w
    PPMI        max(0, log(p(w, c) / (p(w) q(c)))), q(c) proportional to count(c)^0.75 (Levy et al. 2015, TACL 3)
    vectors     rows of U sqrt(S) of the SVD to 50 dimensions, scaled to length 1
    partitions  mini-batch k-means (Sculley 2010); every partition after the first of its size sees the dimensions scaled
                by random factors, as in CACTUs (Hsu et al. 2019)

The last partition, and a tenth of the word types, take part in no training: accuracy on them separates classes that were learned from
classes that were memorised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits

from metapt import randomness
from metapt.data.corpus_words import find_units, token_kinds
from metapt.errors import UserError

if TYPE_CHECKING:
    from metapt.data.shards import TokenStream

SEED = 0  # classes are a property of the corpus, not of a run
SMOOTHING = 0.75
REACH = 2  # units to the left, and to the right, that are contexts
MIN_COUNT = 8  # occurrences of a word type
WORDS_PER_CLASS = 4  # at least, on average
HELD_OUT_ONE_IN = 10  # word types
STRETCH_TOKENS = 4_000_000  # counted at a time
LEAST_STRETCHES = 16  # of a part of a corpus


@dataclass(frozen=True)
class ClassSettings:
    """How word classes are made.

    tokens: tokens of the corpus that are counted, in evenly spread stretches;
    words: number of most frequent word types that get classes; contexts: number of most frequent units that describe them;
    dimensions: of the vectors; sizes: number of classes of each partition, the last of which is held out of training;
    scales: bounds of the uniform random factors of the dimensions;
    shuffle_band: number of words of like frequency that exchange their classes at random, 0 for none.
    """

    tokens: int = 50_000_000
    words: int = 20_000
    contexts: int = 2_000
    dimensions: int = 50
    sizes: tuple[int, ...] = (64, 256, 512, 64, 256, 512, 256)
    scales: tuple[float, float] = (0.5, 1.5)
    shuffle_band: int = 0


@dataclass(frozen=True)
class WordClasses:
    """The word types of a corpus, and a class for each in every partition.

    keys: uint64 [W], ascending (`corpus_words.Units.keys`); counts: int64 [W]; partitions: int16 [P, W]; texts: of each word type.
    """

    keys: np.ndarray
    counts: np.ndarray
    partitions: np.ndarray
    texts: tuple[str, ...]

    @property
    def sizes(self) -> list[int]:
        """Number of classes of each partition."""
        return [int(partition.max()) + 1 for partition in self.partitions]

    @cached_property
    def is_held_out(self) -> np.ndarray:
        """Whether a word type is kept out of training: a function of the word alone. bool [W]."""
        with np.errstate(over="ignore"):
            mixed = (self.keys ^ (self.keys >> np.uint64(31))) * np.uint64(0xD6E8FEB86659FD93)
        return (mixed >> np.uint64(32)) % np.uint64(HELD_OUT_ONE_IN) == 0

    @cached_property
    def sha256(self) -> str:
        """Checksum of all that decides a label; part of the identity of a run that uses the classes."""
        digest = hashlib.sha256()
        for array in (self.keys, self.partitions):
            digest.update(f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def types_of(self, keys: np.ndarray) -> np.ndarray:
        """The number of the word type of each unit, -1 where it is none. int64, in the shape of `keys`."""
        return _index_of(keys, self.keys)

    def members(self, partition: int, label: int, limit: int) -> list[str]:
        """The most frequent word types of a class, as text, with a leading space where it belongs to the word."""
        (types,) = np.nonzero(self.partitions[partition] == label)
        order = np.argsort(-self.counts[types], kind="stable")[:limit]
        return [self.texts[number] for number in types[order]]


@dataclass(frozen=True)
class WordExamples:
    """The labelled words of sequences. rows, positions: int64 [n], the sequence and the position of each word's first subword; types: int64 [n]."""

    rows: np.ndarray
    positions: np.ndarray
    types: np.ndarray


def label_words(sequences: np.ndarray, kinds: np.ndarray, classes: WordClasses) -> WordExamples:
    """The words of known type in sequences; a word that the edge of its sequence may have cut has no label.

    Args:
        sequences: token ids [n, T].
        kinds: `token_kinds` of the vocabulary.
    """
    found = []
    for row, tokens in enumerate(sequences):
        units = find_units(tokens, kinds)
        whole = units.is_word.copy()
        whole[[0, -1]] = False
        types = np.where(whole, classes.types_of(units.keys), -1)
        known = types >= 0
        found.append((np.full(known.sum(), row), units.starts[known], types[known]))
    return WordExamples(*(np.concatenate(parts).astype(np.int64) for parts in zip(*found, strict=True)))


def make_word_classes(stream: TokenStream, texts: Sequence[str], settings: ClassSettings) -> WordClasses:
    """Counts a corpus' words and clusters them. The same bits at any number of threads.

    Args:
        stream: the training split alone.
        texts: `corpus_words.token_texts` of the tokenizer.
    Raises:
        UserError: the corpus has too few frequent words for the partitions, or no words that spaces separate.
    """
    kinds = token_kinds(list(texts))

    def stretches() -> Iterator[tuple[int, np.ndarray]]:
        return evenly_spread_stretches(stream, settings.tokens)

    units = _count_units(stretches, kinds)
    is_frequent = units.is_word & (units.counts >= MIN_COUNT)
    words = _most_frequent(np.flatnonzero(is_frequent), units.counts, settings.words)
    contexts = _most_frequent(np.flatnonzero(units.keys != 0), units.counts, settings.contexts)
    _check_size(len(words), units, settings)
    counts = _count_contexts(stretches, kinds, units.keys[words], units.keys[contexts])
    with threadpool_limits(limits=1):
        vectors = _vectors(_ppmi(counts), settings.dimensions)
        partitions = [_partition(vectors, number, settings) for number in range(len(settings.sizes))]
    if settings.shuffle_band:
        frequencies, band = units.counts[words], settings.shuffle_band
        partitions[:-1] = [
            shuffled(partition, frequencies, band, number) for number, partition in enumerate(partitions[:-1])
        ]
    shown = tuple(_text(stream, texts, int(units.places[word]), int(units.lengths[word])) for word in words)
    return WordClasses(units.keys[words], units.counts[words], np.stack(partitions), shown)


@dataclass(frozen=True)
class _UnitCounts:
    """Distinct units, by ascending key: how often each occurs, whether it is a word, and where an occurrence begins; all [n]."""

    keys: np.ndarray
    counts: np.ndarray
    is_word: np.ndarray
    places: np.ndarray
    lengths: np.ndarray


def evenly_spread_stretches(stream: TokenStream, limit: int) -> Iterator[tuple[int, np.ndarray]]:
    """First position and tokens of stretches that hold about `limit` tokens together, all of them if there are no more.

    A part of a stream is at least LEAST_STRETCHES stretches: with one, it would be the beginning.
    """
    total = min(limit, len(stream))
    number = -(-total // STRETCH_TOKENS)
    if total < len(stream):
        number = min(max(number, LEAST_STRETCHES), total)
    length = -(-total // number)
    for index in range(number):
        start = (len(stream) - length) * index // max(1, number - 1)
        yield start, stream.tokens(start, start + length)


def _count_units(stretches: Callable[[], Iterator[tuple[int, np.ndarray]]], kinds: np.ndarray) -> _UnitCounts:
    parts: list[tuple[np.ndarray, ...]] = []
    for begin, tokens in stretches():
        units = find_units(tokens, kinds)
        keys, first, counts = np.unique(units.keys, return_index=True, return_counts=True)
        parts.append((keys, counts, units.is_word[first], begin + units.starts[first], units.lengths[first]))
    keys, counts, *rest = (np.concatenate(column) for column in zip(*parts, strict=True))
    distinct, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    totals = np.bincount(inverse, weights=counts).astype(np.int64)
    return _UnitCounts(distinct, totals, *(column[first] for column in rest))


def _most_frequent(candidates: np.ndarray, counts: np.ndarray, limit: int) -> np.ndarray:
    """Those of the candidates with the highest counts (equal ones by key), in ascending order of their keys."""
    order = np.argsort(-counts[candidates], kind="stable")[:limit]
    return np.sort(candidates[order])


def _check_size(words: int, units: _UnitCounts, settings: ClassSettings) -> None:
    needed = WORDS_PER_CLASS * max(settings.sizes)
    if words < max(needed, settings.dimensions + 1):
        long_runs = units.counts[units.keys == 0].sum() / units.counts.sum()
        raise UserError(
            f"word classes: {words:,} word types occur at least {MIN_COUNT} times, and partitions of {max(settings.sizes)} classes "
            f"need {needed:,}; set smaller classes.sizes or give more text"
            + (
                f" ({long_runs:.0%} of its units are runs of letters without spaces)"
                if long_runs > 0.1
                else ""
            )
        )


def _count_contexts(
    stretches: Callable[[], Iterator[tuple[int, np.ndarray]]],
    kinds: np.ndarray,
    words: np.ndarray,
    contexts: np.ndarray,
) -> sparse.csr_matrix:
    """C [W, 2 C]: contexts to the left in the first half of the columns, contexts to the right in the second."""
    total = sparse.csr_matrix((len(words), 2 * len(contexts)), dtype=np.int64)
    for _, tokens in stretches():
        keys = find_units(tokens, kinds).keys
        rows, columns = _index_of(keys, words), _index_of(keys, contexts)
        for distance in range(1, REACH + 1):
            total += _pairs(rows[distance:], columns[:-distance], total.shape)
            total += _pairs(rows[:-distance], columns[distance:], total.shape, shift=len(contexts))
    return total


def _index_of(keys: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The place of each key among ascending known keys, -1 where it is none of them. int64, in the shape of `keys`."""
    places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[places] == keys, places, -1)


def _pairs(
    rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int], shift: int = 0
) -> sparse.csr_matrix:
    both = (rows >= 0) & (columns >= 0)
    ones = np.ones(int(both.sum()), dtype=np.int64)
    return sparse.coo_matrix((ones, (rows[both], columns[both] + shift)), shape=shape).tocsr()


def _ppmi(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """PPMI [W, 2 C] with the smoothed distribution of contexts."""
    rows, columns = (np.asarray(counts.sum(axis=axis), dtype=np.float64).ravel() for axis in (1, 0))
    smoothed = columns**SMOOTHING
    found = counts.tocoo()
    expected = rows[found.row] * (smoothed / smoothed.sum())[found.col]
    values = np.maximum(np.log(found.data / expected), 0.0)
    matrix = sparse.csr_matrix((values, (found.row, found.col)), shape=counts.shape)
    matrix.eliminate_zeros()
    return matrix


def _vectors(matrix: sparse.csr_matrix, dimensions: int) -> np.ndarray:
    """Rows of U sqrt(S), of length 1. fp64 [W, dimensions]; signs are fixed by the largest entry of each column."""
    start = randomness.generator(SEED, "word classes: start of the SVD").standard_normal(min(matrix.shape))
    left, values, _ = svds(matrix, k=dimensions, v0=start)
    vectors = (left * np.sqrt(values))[:, ::-1]
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.sign(vectors[largest, np.arange(dimensions)])
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _partition(vectors: np.ndarray, number: int, settings: ClassSettings) -> np.ndarray:
    """The class of each word type in partition `number`. int16 [W]."""
    size = settings.sizes[number]
    if size in settings.sizes[:number]:
        scales = randomness.generator(SEED, "word classes: scales", number).uniform(
            *settings.scales, vectors.shape[1]
        )
        vectors = vectors * scales
    seed = randomness.key(SEED, "word classes: k-means", number) % 2**32
    model = MiniBatchKMeans(size, n_init=1, random_state=seed, batch_size=1024)
    labels = model.fit_predict(vectors)
    _, dense = np.unique(labels, return_inverse=True)  # classes that lost all their words have no number
    return dense.astype(np.int16)


def shuffled(partition: np.ndarray, counts: np.ndarray, band: int, number: int) -> np.ndarray:
    """The classes of a partition, exchanged at random among words of like frequency, so that sizes stay and meanings go.

    Args:
        partition: class of each word type, [W].
        counts: occurrences of each word type, [W]; the `band` most frequent exchange their classes, then the next ones.
        number: of the partition, which keys the exchange.
    """
    draw = randomness.generator(SEED, "word classes: shuffle", number)
    order, exchanged = np.argsort(-counts, kind="stable"), partition.copy()
    for start in range(0, len(order), band):
        members = order[start : start + band]
        exchanged[members] = partition[draw.permutation(members)]
    return exchanged


def _text(stream: TokenStream, texts: Sequence[str], place: int, length: int) -> str:
    return "".join(texts[token] for token in stream.tokens(place, place + length).tolist())
