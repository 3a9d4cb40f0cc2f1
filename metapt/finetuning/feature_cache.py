"""A disk cache for the word features of frozen decoders, read through memory maps by any number of jobs at once.

    DIR/<key>/features.npy    fp32 [M, d]
    DIR/<key>/key.json        what the features were computed from
    DIR/<key>/manifest.json   sizes and checksums (metapt.atomic_folders), verified whenever an entry is opened
    DIR/<key>.lock            held by a job while it looks for the entry, and while it computes a missing one
    DIR/<key>.reader.*        held by each job that reads the entry
    DIR/writing.lock          held by a job while it writes or deletes

The key is a digest of everything that the features depend on, so an entry is never stale. A reader holds its lease
(metapt.leases) as long as the array lives, and entries in use are not deleted: a deleted file remains readable through its
memory map on a local disk, but not on NFS. The folder may be deleted when no job is running.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metapt import atomic_folders
from metapt.files import write_json
from metapt.leases import Lease, LeaseHeld, is_held
from metapt.training.progress_line import log

FORMAT = 1  # part of every key; increase it when the same key would mean other features
FEATURES_FILE, KEY_FILE, READER = "features.npy", "key.json", "reader"


class CacheEntry(NamedTuple):
    """Last use in seconds since the epoch, size in bytes, and folder of an entry."""

    last_used: float
    size: int
    folder: Path


class FeatureCache:
    """A folder of word features with a size limit; the least recently used entries are deleted first.

    Args:
        folder: created if it does not exist.
        gigabytes: limit on the total size of all entries, in 10^9 bytes.
    """

    def __init__(self, folder: str | Path, gigabytes: float):
        self.folder, self._max_bytes = Path(folder).expanduser(), int(gigabytes * 1e9)

    def get(self, key: Mapping[str, Any], compute: Callable[[], Tensor]) -> Tensor:
        """Return the features of a key, on the CPU, with the same bits that `compute` returns.

        One job computes them while other jobs that need them wait. Features that cannot be stored (the cache is too
        small, all entries are in use, or writing fails) are returned without being stored. Writing into the returned
        array does not change the file.

        Args:
            key: everything that the features depend on, as JSON values.
            compute: returns fp32 [M, d].
        """
        key = {"format": FORMAT, **key}
        entry = self.folder / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._entry_lock(entry).held(timeout=None):
            problem = atomic_folders.problem(entry)
            if problem is not None:
                if entry.exists():
                    log(f"warning: cached word features are damaged and will be recomputed: {problem}")
                features = compute()
                if not self._store(entry, key, features):
                    return features
            return _memory_map(entry)

    def _entry_lock(self, entry: Path) -> Lease:
        return Lease(entry.with_name(f"{entry.name}.lock"))

    def _store(self, entry: Path, key: Mapping[str, Any], features: Tensor) -> bool:
        """Write a complete entry, whose lock is held, and return whether that succeeded."""
        with Lease(self.folder / "writing.lock").held(timeout=None):
            atomic_folders.remove_leftovers(self.folder, "*")
            try:
                atomic_folders.remove(entry)  # a damaged one
                if not self._make_room(features.numel() * features.element_size()):
                    log(
                        f"warning: {self.folder}: no room for the features of {features.shape[0]} words, which are "
                        "not cached; raise ner.cache_gb"
                    )
                    return False
                staging = atomic_folders.staging(entry)
                np.save(staging / FEATURES_FILE, features.numpy())
                write_json(staging / KEY_FILE, key)
                atomic_folders.commit(staging, entry)
            except OSError as error:
                atomic_folders.remove_leftovers(self.folder, "*")
                log(f"warning: {self.folder}: cannot cache word features ({error.strerror or error})")
                return False
        return True

    def _make_room(self, size: int) -> bool:
        """Delete unused entries, least recently used first, until `size` more bytes fit; return whether they do."""
        entries = sorted(self._entries(), key=lambda entry: entry.last_used)
        free = self._max_bytes - size - sum(entry.size for entry in entries)
        for entry in entries if size <= self._max_bytes else []:
            if free >= 0:
                break
            if self._delete(entry.folder):
                free += entry.size
        return free >= 0

    def _entries(self) -> Iterator[CacheEntry]:
        for file in self.folder.glob(f"*/{FEATURES_FILE}"):
            status = file.stat()
            yield CacheEntry(status.st_mtime, status.st_size, file.parent)

    def _delete(self, entry: Path) -> bool:
        """Delete an entry and return True, unless a job is using it or about to use it."""
        try:
            with self._entry_lock(entry).held():
                readers = list(self.folder.glob(f"{entry.name}.{READER}.*"))
                if any(is_held(reader) for reader in readers):
                    return False
                atomic_folders.remove(entry)
                for reader in readers:  # of jobs that were killed
                    reader.unlink(missing_ok=True)
        except LeaseHeld:
            return False
        return True


def _memory_map(entry: Path) -> Tensor:
    """Map the array of an entry and mark it as used now; this process is its reader until the last view is gone."""
    reader = Lease(entry.with_name(f"{entry.name}.{READER}.{secrets.token_hex(8)}"), is_exclusive=False)
    reader.acquire()
    path = entry / FEATURES_FILE
    os.utime(path)
    array = np.load(path, mmap_mode="c")  # copy on write, because torch requires a writable array
    weakref.finalize(array, reader.release)
    return torch.from_numpy(array)
