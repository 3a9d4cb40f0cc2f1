"""Token streams on disk: a split is a sequence of flat binary files that memory maps present as one array."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

SHARD_TOKENS = 2**28
READ_BYTES = 2**24


class ShardWriter:
    """Writes one split to SPLIT_00000.bin, SPLIT_00001.bin, ...; all but the last have `shard_tokens` tokens."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype, shard_tokens: int = SHARD_TOKENS):
        self.tokens = self.documents = self.bytes = 0
        self.shards: list[dict[str, int | str]] = []
        self._folder, self._split, self._dtype, self._shard_tokens = folder, split, dtype, shard_tokens
        self._hash = hashlib.sha256()
        self._file: BinaryIO | None = None

    def add(self, ids: np.ndarray, text_bytes: int) -> None:
        """Append a document.

        Args:
            ids: its token ids, with the final end-of-text token.
            text_bytes: its size as text, in bytes.
        """
        ids = ids.astype(self._dtype)
        self.tokens += len(ids)
        self.documents += 1
        self.bytes += text_bytes
        while len(ids):
            ids = ids[self._write(ids) :]

    def position(self) -> dict[str, Any]:
        """What `restore` needs, after everything so far has been written to disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        counts = {"tokens": self.tokens, "documents": self.documents, "bytes": self.bytes}
        return {**counts, "shards": [dict(shard) for shard in self.shards]}

    def restore(self, position: Mapping[str, Any]) -> None:
        """Go on from a position of an earlier writer; what that wrote after it is cut off."""
        self.tokens, self.documents, self.bytes = (
            position[name] for name in ("tokens", "documents", "bytes")
        )
        self.shards = [dict(shard) for shard in position["shards"]]
        for shard in self.shards:
            path = self._folder / str(shard["file"])
            size = int(shard["tokens"]) * self._dtype.itemsize
            os.truncate(path, size)
            with path.open("rb") as file:
                while content := file.read(READ_BYTES):
                    self._hash.update(content)
        if self.shards and int(self.shards[-1]["tokens"]) < self._shard_tokens:
            self._file = (self._folder / str(self.shards[-1]["file"])).open("ab")

    def finish(self) -> dict[str, object]:
        """Flush everything to disk; return the manifest entry of the split."""
        self._close()
        return {
            "tokens": self.tokens,
            "documents": self.documents,
            "bytes": self.bytes,
            "sha256": self._hash.hexdigest(),
            "shards": self.shards,
        }

    def _write(self, ids: np.ndarray) -> int:
        """Write as many ids as fit into the current shard; return their number."""
        if self._file is None:
            name = f"{self._split}_{len(self.shards):05d}.bin"
            self._file = (self._folder / name).open("wb")
            self.shards.append({"file": name, "tokens": 0})
        shard = self.shards[-1]
        part = ids[: self._shard_tokens - int(shard["tokens"])]
        content = part.tobytes()
        self._file.write(content)
        self._hash.update(content)
        shard["tokens"] = int(shard["tokens"]) + len(part)
        if shard["tokens"] == self._shard_tokens:
            self._close()
        return len(part)

    def _close(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


def evenly_spread(count: int, total: int) -> np.ndarray:
    """`count` of the numbers 0 to total - 1, at equal distances, each in the middle of its part of the range.

    Returns:
        int64 [min(count, total)], ascending; all numbers if there are no more than `count`.
    """
    count = min(count, total)
    return (2 * np.arange(count, dtype=np.int64) + 1) * total // (2 * count)


class TokenStream:
    """The concatenated tokens of a split: documents in order, each followed by an end-of-text token."""

    def __init__(self, files: Sequence[Path], dtype: np.dtype):
        self._shards = [np.asarray(np.memmap(path, dtype=dtype, mode="r")) for path in files]
        self.dtype = dtype
        self._ends = np.cumsum([len(shard) for shard in self._shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Tokens start to stop - 1, in the stored type (uint16 or uint32).

        Raises:
            IndexError: unless 0 <= start <= stop <= len.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} of {len(self)}")
        parts = [np.empty(0, self.dtype)]
        for shard, end in zip(self._shards, self._ends.tolist(), strict=True):
            begin = end - len(shard)
            parts.append(shard[max(start - begin, 0) : max(stop - begin, 0)])
        return np.concatenate(parts)

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The `length` tokens from each start; windows may cross shards.

        Args:
            starts: integers [n].
            length: tokens per window.
        Returns:
            int64 [n, length].
        Raises:
            IndexError: a window is not inside the stream.
        """
        starts = np.asarray(starts, dtype=np.int64)
        if len(starts) and (starts.min() < 0 or starts.max() + length > len(self)):
            raise IndexError(
                f"windows of {length} from {starts.min()} to {starts.max()} in {len(self)} tokens"
            )
        windows = np.empty((len(starts), length), dtype=np.int64)
        owner = np.searchsorted(self._ends, starts, side="right")
        whole = starts + length <= self._ends[owner]
        for index in np.unique(owner[whole]):
            shard, rows = self._shards[index], whole & (owner == index)
            begin = self._ends[index] - len(shard)
            windows[rows] = shard[(starts[rows] - begin)[:, None] + np.arange(length)]
        for row in np.flatnonzero(~whole):
            windows[row] = self.tokens(starts[row], starts[row] + length)
        return windows
