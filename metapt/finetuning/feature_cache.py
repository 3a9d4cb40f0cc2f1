"""Word features of frozen decoders on disk: computed once, read through memory maps, by any number of jobs at once.

    DIR/<key>/features.npy     fp32 [M, d]
    DIR/<key>/key.json        what they were made from
    DIR/<key>/manifest.json   sizes and checksums (metapt.atomic_folders), looked at whenever an entry is opened
    DIR/<key>.lock            held by the job that looks for the entry, and makes it if it is not there
    DIR/writing.lock          held by the job that writes or deletes

A key is a digest of everything that the features are a function of, so an entry is never stale: it is not found any more. Whoever
reads an entry holds a shared lock on its file for as long as the array lives, and only what nobody reads is deleted:
a deleted file stays readable through its map on a local disk, but not on NFS. All locks go with their process.
The folder may be deleted when no job runs.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from metapt import atomic_folders
from metapt.files import write_json

FORMAT = 1  # part of every key: raise it when the same key would mean other features
FEATURES_FILE, KEY_FILE = "features.npy", "key.json"


class FeatureCache:
    """A folder of word features that stays below a size; what was not used for longest goes first.

    Args:
        folder: made if it is not there.
        gigabytes: 10^9 bytes that all entries together may take.
    """

    def __init__(self, folder: str | Path, gigabytes: float):
        self.folder, self._most = Path(folder).expanduser(), int(gigabytes * 1e9)

    def get(self, key: Mapping[str, Any], compute: Callable[[], Tensor]) -> Tensor:
        """The features of a key, on the CPU, the same bits as `compute` gives. Writing into them changes no file.

        One job computes them while others that want them wait. What finds no room, because the cache is too small or its
        entries are all in use, or cannot be written, is not kept; the run goes on with what it has computed.

        Args:
            key: JSON values; everything that the features depend on.
            compute: gives fp32 [M, d].
        """
        key = {"format": FORMAT, **key}
        entry = self.folder / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._making(entry):
            problem = atomic_folders.problem(entry)
            if problem is not None:
                if entry.exists():
                    _say(f"cached word features are damaged and computed again: {problem}")
                features = compute()
                if not self._store(entry, key, features):
                    return features
            return _mapped(entry / FEATURES_FILE)

    def _making(self, entry: Path, timeout: float = -1) -> FileLock:
        return FileLock(entry.with_name(f"{entry.name}.lock"), timeout=timeout)

    def _store(self, entry: Path, key: Mapping[str, Any], features: Tensor) -> bool:
        """Writes an entry, whole or not at all, if there is room for it. Its lock is held."""
        with FileLock(self.folder / "writing.lock"):
            self._sweep()
            try:
                atomic_folders.remove(entry)  # if it is damaged
                if not self._make_room(features.numel() * features.element_size()):
                    _say(
                        f"{self.folder}: no room for {features.shape[0]} word features (ner.cache_gb); not kept"
                    )
                    return False
                staging = atomic_folders.staging(entry)
                np.save(staging / FEATURES_FILE, features.numpy())
                write_json(staging / KEY_FILE, key)
                atomic_folders.commit(staging, entry)
            except OSError as error:
                self._sweep()
                _say(f"{self.folder}: word features cannot be kept ({error.strerror or error})")
                return False
        return True

    def _sweep(self) -> None:
        """Removes what a killed job has left; nobody else is writing."""
        for pattern in ("*.tmp", "*.deleted"):
            for folder in self.folder.glob(pattern):
                shutil.rmtree(folder, ignore_errors=True)

    def _make_room(self, size: int) -> bool:
        """Deletes entries that nobody uses, oldest use first, until `size` bytes more fit; whether they do."""
        entries = sorted(self._entries(), key=lambda found: found[0])
        free = self._most - size - sum(taken for _, taken, _ in entries)
        for _, taken, entry in entries if size <= self._most else []:
            if free >= 0:
                break
            if self._delete(entry):
                free += taken
        return free >= 0

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """When each entry was last used, its bytes, and its folder."""
        for file in self.folder.glob(f"*/{FEATURES_FILE}"):
            status = file.stat()
            yield status.st_mtime, status.st_size, file.parent

    def _delete(self, entry: Path) -> bool:
        """Deletes an entry, unless a job uses it or is about to."""
        try:
            with self._making(entry, timeout=0), (entry / FEATURES_FILE).open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                atomic_folders.remove(entry)
        except (Timeout, BlockingIOError):
            return False
        return True


def _mapped(path: Path) -> Tensor:
    """The array of a file, whose shared lock is held until the last view of it is gone; the file counts as used now."""
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    os.utime(path)
    array = np.load(path, mmap_mode="c")  # copy on write: torch wants an array that could be written to
    weakref.finalize(array, os.close, descriptor)
    return torch.from_numpy(array)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
