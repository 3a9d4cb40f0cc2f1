"""The records of the last report, in one MessagePack file: only runs that changed, or were broken, are read again.

A cache that cannot be read is ignored: it is damaged, or other code wrote it. MessagePack holds data only, so that a
cache file from elsewhere cannot run code.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from metapt import provenance, runs
from metapt.data import documents, iob2
from metapt.evaluation import bootstrap, span_f1, span_matching
from metapt.files import write_bytes_atomically

from ..parallel import pool
from .records import ExcludedRun, GoldSet, Record, gold_set
from .run_reader import BROKEN, Fingerprint, fingerprint, read_run

USED = (provenance, runs, documents, iob2, bootstrap, span_f1, span_matching)
"""the modules of metapt that make records, beside those of this package"""
CHUNK = 50  # run folders that a process reads at a time
Version = tuple[str, Fingerprint]
"""the path of a run folder and the fingerprint of its files"""
GoldContent = tuple[
    str,
    tuple[str, ...],
    tuple[tuple[str, ...], ...],
    tuple[tuple[tuple[str, int, int], ...], ...],
    tuple[str, ...],
]


class CacheFile(msgspec.Struct):
    """The cache: records as MessagePack by the real path of the run folder, which refer to gold sets by their index."""

    code: str
    gold_sets: list[GoldContent]
    runs: dict[str, tuple[Version, bytes]]


def read_runs(folders: Mapping[Path, str], targets: Sequence[str], file: Path | None = None) -> list[Record]:
    """Return the record of each run folder, in their order.

    Args:
        folders: the path of each folder, and its real path with all links resolved.
        targets: the sets or languages of which probabilities are kept.
        file: the cache; None to read every run.
    """
    code = _code_version(targets)
    versions = {real: (str(path), fingerprint(path)) for path, real in folders.items()}
    cached = _load(file, code) if file else {}
    known = {real: record for real, (version, record) in cached.items() if versions.get(real) == version}
    changed = [path for path, real in folders.items() if real not in known]
    new = zip((folders[path] for path in changed), _read_all(changed, targets), strict=True)
    records = known | dict(new)
    lasting = {real: (versions[real], record) for real, record in records.items() if not _is_broken(record)}
    if file and not lasting.keys() == known.keys() == cached.keys():
        _save(file, code, lasting)
    return [records[real] for real in folders.values()]


def _is_broken(record: Record) -> bool:
    """Whether a folder could not be read, perhaps because of an error that passes."""
    return isinstance(record, ExcludedRun) and record.state == BROKEN


def _read_all(paths: Sequence[Path], targets: Sequence[str]) -> list[Record]:
    if len(paths) <= CHUNK:
        return [read_run(path, targets) for path in paths]
    return list(pool().map(read_run, paths, repeat(targets), chunksize=CHUNK))


def _load(file: Path, code: str) -> dict[str, tuple[Version, Record]]:
    try:
        content = msgspec.msgpack.decode(file.read_bytes(), type=CacheFile)
        if content.code != code:
            return {}
        gold_sets = [gold_set(*parts) for parts in content.gold_sets]

        def decode_value(kind: type, value: Any) -> Any:
            if kind is GoldSet:
                return gold_sets[value]
            if kind is np.ndarray:
                dtype, shape, data = value
                return np.frombuffer(data, dtype).reshape(shape)
            return kind(value)  # a path

        decoder = msgspec.msgpack.Decoder(Record, dec_hook=decode_value)
        return {real: (version, decoder.decode(record)) for real, (version, record) in content.runs.items()}
    except (OSError, ValueError, LookupError):  # msgspec's errors are ValueErrors
        return {}


def _save(file: Path, code: str, runs: Mapping[str, tuple[Version, Record]]) -> None:
    """Write the cache. If that fails, print a warning: the next report reads every run."""
    gold_sets: dict[GoldSet, int] = {}

    def encode_value(value: Any) -> Any:
        if isinstance(value, GoldSet):
            return gold_sets.setdefault(value, len(gold_sets))
        if isinstance(value, np.ndarray):
            return (value.dtype.str, value.shape, value.tobytes())
        return str(value)  # a path

    encoder = msgspec.msgpack.Encoder(enc_hook=encode_value)
    records = {real: (version, encoder.encode(record)) for real, (version, record) in runs.items()}
    content = CacheFile(code, [gold.content for gold in gold_sets], records)
    try:
        write_bytes_atomically(file, msgspec.msgpack.encode(content))
    except OSError as error:
        print(f"{file} cannot be written ({error}); the next report reads every run again", file=sys.stderr)


def _code_version(targets: Sequence[str]) -> str:
    """Return a hash of the code that makes records, and of the targets, of which more is kept."""
    files = [*(module.__file__ for module in USED), *sorted(Path(__file__).parent.glob("*.py"))]
    content = b"".join(Path(str(file)).read_bytes() for file in files)
    return hashlib.sha256(content + repr(tuple(targets)).encode()).hexdigest()
