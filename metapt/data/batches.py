"""Batches of next-token training: the sequences of a step are a function of (seed, step) alone."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from metapt import randomness
from metapt.data.shards import evenly_spread
from metapt.errors import UserError

if TYPE_CHECKING:
    from metapt.data.corpus import TokenStream

BLOCK = 1024  # rows of the order computed together: 50x faster per row than four at a time


class Batches:
    """Sequences of a token stream in a seeded random order that any rank can compute for any step in O(1).

    The stream is divided into rows that overlap by one token, so that every token but the first is a target once.
    Sequence n of the training order is row `permutation(epoch)[n mod rows]`, with epoch = n // rows.
    """

    def __init__(self, stream: TokenStream, seq_len: int, seed: int):
        self.stream, self.seq_len, self.seed = stream, seq_len, seed
        self.num_rows = (len(stream) - 1) // seq_len
        if self.num_rows < 1:
            raise UserError(
                f"the corpus has {len(stream)} training tokens, too few for one sequence of train.seq_len={seq_len} tokens"
            )
        self._block = lru_cache(maxsize=2)(self._rows_of_block)

    def rows(self, first: int, count: int) -> np.ndarray:
        """Row numbers of sequences first to first + count - 1 of the training order. int64 [count]."""
        blocks = [self._block(number) for number in range(first // BLOCK, (first + count) // BLOCK + 1)]
        return np.concatenate(blocks)[first % BLOCK :][:count]

    def _rows_of_block(self, block: int) -> np.ndarray:
        number = np.arange(block * BLOCK, (block + 1) * BLOCK)
        rows = np.empty(BLOCK, dtype=np.int64)
        for epoch in np.unique(number // self.num_rows):
            in_epoch = number // self.num_rows == epoch
            rows[in_epoch] = randomness.permuted(
                number[in_epoch] % self.num_rows, self.num_rows, self.seed, "corpus order", int(epoch)
            )
        return rows

    def sequences(self, first: int, count: int) -> np.ndarray:
        """Tokens of sequences first to first + count - 1; inputs are [:, :-1], targets [:, 1:]. int64 [count, seq_len + 1]."""
        return self.stream.windows(self.rows(first, count) * self.seq_len, self.seq_len + 1)


def eval_sequences(stream: TokenStream, seq_len: int, limit: int) -> np.ndarray:
    """`limit` rows of the held-out split, evenly spread over all of it; all rows if there are no more.

    They depend on nothing but the split, `seq_len` and `limit`, so that perplexities of runs can be compared.

    Returns:
        int64 [n, length + 1] with n >= 1; length is `seq_len`, or less if the split is shorter than one row.
    Raises:
        UserError: the split has fewer than two tokens.
    """
    if len(stream) < 2:
        raise UserError(
            f"the held-out split has {len(stream)} tokens; raise data.eval_fraction or give more text"
        )
    length = min(seq_len, len(stream) - 1)
    rows = evenly_spread(limit, (len(stream) - 1) // length)
    return stream.windows(rows * length, length + 1)
