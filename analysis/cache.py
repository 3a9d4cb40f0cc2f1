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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from analysis import reading, records
from analysis.reading import Pool, Record, read, stamp
from analysis.records import GoldSet
from metapt.data import iob2
from metapt.ner import scoring

PART = 100  # folders that a process reads at a time
MADE_BY = (reading, records, iob2, scoring)  # a record is a function of the run's files and of these
ADMITTED = {("numpy", "ndarray"), ("numpy", "dtype")}
ADMITTED |= {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
ADMITTED |= {(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")}
ADMITTED |= {("pathlib", "PosixPath"), ("pathlib", "WindowsPath"), ("pathlib._local", "PosixPath")}
ADMITTED |= {("analysis.records", name) for name in ("Setting", "Evaluation", "PretrainRun", "FinetuneRun", "LeftOut")}  # fmt: skip


class Cache:
    """Records by run folder; without a file, for this report only. Gold sets are kept once, under a name made from their content."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._gold: dict[str, GoldSet] = {}
        self._known: dict[str, tuple[str, bytes]] = {}
        self._fresh: dict[str, tuple[str, bytes]] = {}
        if file is not None:
            self._load_all(file)

    def records(self, paths: Iterable[Path]) -> list[Record]:
        """The record of each folder; what is read anew here is remembered by `save`."""
        stamps = {path: (str(path.resolve()), repr((str(path), stamp(path)))) for path in paths}
        found = {path: self._loaded(*stamps[path]) for path in stamps}
        for path, (content, gold) in _read_all([path for path in stamps if found[path] is None]):
            for name, parts in gold.items():
                self._gold.setdefault(name, GoldSet(*parts))
            found[path] = _Unpickler.loads(content, self._gold)
            key, now = stamps[path]
            self._fresh[key] = (now, content)
        return [record for record in found.values() if record is not None]

    def save(self) -> None:
        """Writes what was read anew; where nothing can be written, it is told and the report goes on."""
        if not self._fresh or self._file is None:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._file)) as base, base:
                _prepare(base)
                gold = ((name, pickle.dumps(_content(found))) for name, found in self._gold.items())
                base.executemany("INSERT OR IGNORE INTO gold VALUES (?, ?)", gold)
                fresh = ((path, *value) for path, value in self._fresh.items())
                base.executemany("INSERT OR REPLACE INTO run VALUES (?, ?, ?)", fresh)
        except (sqlite3.Error, OSError) as error:
            print(f"{self._file} cannot be written ({error}); the next report reads everything again", file=sys.stderr)  # fmt: skip

    def _load_all(self, file: Path) -> None:
        try:
            with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as base:
                if base.execute("SELECT made_by FROM version").fetchone() == (_made_by(),):
                    for name, content in base.execute("SELECT name, content FROM gold"):
                        self._gold[name] = GoldSet(*_Unpickler.loads(content, {}))
                    rows = base.execute("SELECT path, stamp, record FROM run")
                    self._known = {path: (then, content) for path, then, content in rows}
        except sqlite3.OperationalError:
            pass  # there is none yet
        except (sqlite3.DatabaseError, pickle.UnpicklingError):
            file.unlink()

    def _loaded(self, key: str, now: str) -> Record | None:
        """What is known of a run whose files are as they were."""
        then, content = self._known.get(key, ("", b""))
        try:
            return _Unpickler.loads(content, self._gold) if then == now else None
        except Exception:  # damaged in whatever way: the run itself is read
            return None


def _read_all(paths: Sequence[Path]) -> Iterator[tuple[Path, tuple[bytes, dict[str, tuple[Any, ...]]]]]:
    """(pickled record, the gold sets of its part by name) of each folder; many are shared out to processes."""
    parts = [paths[start : start + PART] for start in range(0, len(paths), PART)]
    if len(parts) > 1:
        with ProcessPoolExecutor() as processes:
            results = list(processes.map(_read_part, parts))
    else:
        results = [_read_part(part) for part in parts]
    for part, (contents, gold) in zip(parts, results, strict=True):
        for path, content in zip(part, contents, strict=True):
            yield path, (content, gold)


def _read_part(paths: Sequence[Path]) -> tuple[list[bytes], dict[str, tuple[Any, ...]]]:
    pool = Pool()
    names: dict[GoldSet, str] = {}

    def name(gold: GoldSet) -> str:
        if gold not in names:
            names[gold] = hashlib.sha256(repr(_content(gold)).encode()).hexdigest()
        return names[gold]

    contents = [_Pickler.dumps(read(path, pool), name) for path in paths]
    return contents, {found: _content(gold) for gold, found in names.items()}


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
