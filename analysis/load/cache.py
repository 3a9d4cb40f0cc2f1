"""The records of runs, kept between reports in one SQLite file: a run is read again only when one of its files changed.

A cache that cannot be read or written is done without. Its records are pickles; only the few classes that a record
consists of are admitted when they are read, so that a file from elsewhere can run no code.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from metapt.data import iob2
from metapt.evaluation import span_f1

from . import prediction_reader, records, run_reader, schema, span_matching
from .prediction_reader import Pool
from .records import GoldSet
from .run_reader import Record, read, stamp

Part = tuple[list[tuple[str, bytes]], dict[str, tuple[Any, ...]]]
PART = 100  # folders that a process reads at a time
# a record is a function of the run's files and of these
MADE_BY = (run_reader, schema, prediction_reader, span_matching, records, iob2, span_f1)
ADMITTED = {("numpy", "ndarray"), ("numpy", "dtype")}
ADMITTED |= {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
ADMITTED |= {(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")}
ADMITTED |= {("pathlib", "PosixPath"), ("pathlib", "WindowsPath"), ("pathlib._local", "PosixPath")}
ADMITTED |= {(schema.__name__, name) for name in ("Origin", "PretrainOrigin", "PretrainResult", "BaselineResult", "TunedResult", "EffectiveRanks", "Dynamics")}  # fmt: skip
ADMITTED |= {(records.__name__, name) for name in ("Setting", "Made", "Evaluation", "PretrainRun", "FinetuneRun", "LeftOut")}  # fmt: skip


class Cache:
    """Records by run folder; without a file, for this report only. Gold sets are kept once, under a name made from their content."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._gold: dict[str, GoldSet] = {}

    def records(self, keys: Mapping[Path, str]) -> list[Record]:
        """The record of each folder, in their order; what is read anew is kept at once, part by part.

        Args:
            keys: folder to where it truly is, whatever links lead there.
        """
        found: dict[Path, Record | None] = dict.fromkeys(keys)
        found |= self._known({key: path for path, key in keys.items()})
        for part, contents, gold in _read_all([path for path in keys if found[path] is None]):
            self._gold |= {name: GoldSet(*parts) for name, parts in gold.items() if name not in self._gold}
            found |= {path: _Unpickler.loads(content, self._gold) for path, (_, content) in zip(part, contents, strict=True)}  # fmt: skip
            self._keep([(keys[path], *content) for path, content in zip(part, contents, strict=True)], gold)  # fmt: skip
        return [record for record in found.values() if record is not None]

    def _keep(self, rows: Sequence[tuple[str, str, bytes]], gold: Mapping[str, tuple[Any, ...]]) -> None:
        """Writes what was read; where nothing can be written, it is told once and the report goes on."""
        if self._file is None:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._file)) as base, base:
                _prepare(base)
                sets = ((name, pickle.dumps(parts)) for name, parts in gold.items())
                base.executemany("INSERT OR IGNORE INTO gold VALUES (?, ?)", sets)
                base.executemany("INSERT OR REPLACE INTO run VALUES (?, ?, ?)", rows)
        except (sqlite3.Error, OSError) as error:
            print(f"{self._file} cannot be written ({error}); the next report reads everything again", file=sys.stderr)  # fmt: skip
            self._file = None

    def _known(self, paths: Mapping[str, Path]) -> dict[Path, Record]:
        """The records of those runs, given by key, whose files are as they were."""
        found: dict[Path, Record] = {}
        if self._file is None:
            return found
        try:
            with closing(sqlite3.connect(f"{self._file.absolute().as_uri()}?mode=ro", uri=True)) as base:
                if base.execute("SELECT made_by FROM version").fetchone() == (_made_by(),):
                    for name, content in base.execute("SELECT name, content FROM gold"):
                        self._gold[name] = GoldSet(*_Unpickler.loads(content, {}))
                    for key, then, content in base.execute("SELECT path, stamp, record FROM run"):
                        path = paths.get(key)
                        if path is not None and then == _stamp(path):
                            with suppress(Exception):  # damaged in whatever way: the run itself is read
                                found[path] = _Unpickler.loads(content, self._gold)
        except sqlite3.OperationalError:
            pass  # there is none yet
        except (sqlite3.DatabaseError, pickle.UnpicklingError):
            self._file.unlink()
        return found


def _stamp(path: Path) -> str:
    return repr((str(path), stamp(path)))


class _Reader:
    """Reads parts of the folders, in one process; what it has read serves the parts that follow."""

    def __init__(self) -> None:
        self._pool = Pool()
        self._names: dict[GoldSet, str] = {}

    def read(self, paths: Sequence[Path]) -> Part:
        """Each folder's stamp before it is read, and its pickled record; and the gold sets that were not among those of earlier parts, by name."""
        told = len(self._names)
        contents = [(_stamp(path), _Pickler.dumps(read(path, self._pool), self._name)) for path in paths]
        return contents, {name: _content(gold) for gold, name in islice(self._names.items(), told, None)}

    def _name(self, gold: GoldSet) -> str:
        if gold not in self._names:
            self._names[gold] = hashlib.sha256(repr(_content(gold)).encode()).hexdigest()
        return self._names[gold]


_reader = _Reader()
"""of this process, if it is one of several"""


def _begin() -> None:
    global _reader
    _reader = _Reader()


def _read_part(paths: Sequence[Path]) -> Part:
    return _reader.read(paths)


def _read_all(paths: Sequence[Path]) -> Iterator[tuple[Sequence[Path], *Part]]:
    """(paths, stamps and records, the gold sets that first occur here) of each part; several are shared out to processes.

    A process takes its parts in their order, so the one in which it tells a gold set comes before those that name it only.
    """
    parts = [paths[start : start + PART] for start in range(0, len(paths), PART)]
    if len(parts) > 1:
        with ProcessPoolExecutor(initializer=_begin) as processes:
            for part, (contents, gold) in zip(parts, processes.map(_read_part, parts), strict=True):
                yield part, contents, gold
    else:
        yield from ((part, *_Reader().read(part)) for part in parts)


class _Pickler(pickle.Pickler):
    """Writes the name of a gold set in its place."""

    name: Callable[[GoldSet], str]

    @classmethod
    def dumps(cls, record: Record, name: Callable[[GoldSet], str]) -> bytes:
        file = io.BytesIO()
        pickler = cls(file, protocol=5)
        pickler.name = name
        pickler.dump(record)
        return file.getvalue()

    def persistent_id(self, item: Any) -> str | None:
        return self.name(item) if isinstance(item, GoldSet) else None


class _Unpickler(pickle.Unpickler):
    gold: Mapping[str, GoldSet]

    @classmethod
    def loads(cls, content: bytes, gold: Mapping[str, GoldSet]) -> Any:
        unpickler = cls(io.BytesIO(content))
        unpickler.gold = gold
        return unpickler.load()

    def persistent_load(self, name: str) -> GoldSet:
        return self.gold[name]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a record")
        return super().find_class(module, name)


def _content(gold: GoldSet) -> tuple[Any, ...]:
    return (gold.name, gold.ids, gold.words, gold.spans)


def _made_by() -> str:
    sources = (Path(str(module.__file__)).read_bytes() for module in MADE_BY)
    return hashlib.sha256(b"".join(sources)).hexdigest()


def _prepare(base: sqlite3.Connection) -> None:
    """Makes the tables; those that other code has written are emptied."""
    base.execute("CREATE TABLE IF NOT EXISTS version (made_by TEXT)")
    base.execute("CREATE TABLE IF NOT EXISTS gold (name TEXT PRIMARY KEY, content BLOB)")
    base.execute("CREATE TABLE IF NOT EXISTS run (path TEXT PRIMARY KEY, stamp TEXT, record BLOB)")
    if base.execute("SELECT made_by FROM version").fetchone() != (_made_by(),):
        for table in ("version", "gold", "run"):
            base.execute(f"DELETE FROM {table}")
        base.execute("INSERT INTO version VALUES (?)", (_made_by(),))
