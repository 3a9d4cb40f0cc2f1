"""Documents out of text files: .txt, .jsonl (either also as .gz or .zst) and .parquet.

- .jsonl: one object a line, its string field `text` is a document; other fields and blank lines are passed over.
- .parquet: the string column `text`, one document a row.
- .txt: one document a file, or, with `txt_document=block`, one document per block of lines between blank lines.
  Line ends are `\\n` whatever the file has, and those at the very end do not belong to the text.
- A byte-order mark at the start is dropped.

Everything is read as a stream, except that a .txt that is one document is held whole.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet

from metapt.errors import UserError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
PARQUET_ROWS = 1024
FIELD = "text"
BOM = b"\xef\xbb\xbf"
NOT_UTF8 = "not UTF-8"
EMPTY = "empty document"


@dataclass
class Faults:
    """What to do about bad input, and how much of it there was.

    `skipped` counts by reason; with `refuse` it stays empty but for files of other types.
    """

    policy: str
    skipped: Counter[str] = field(default_factory=Counter)

    def add(self, place: str, reason: str) -> None:
        """Stops, or counts.

        Raises:
            UserError: under the policy `refuse`.
        """
        if self.policy == "refuse":
            raise UserError(
                f"{place}: {reason}; put it right, or pass over such input with data.on_bad_input=skip"
            )
        self.skipped[reason] += 1


@dataclass(frozen=True)
class Document:
    """A text, where it stands (`file:line`), and its size in UTF-8."""

    text: str
    place: str
    bytes: int


def find_files(root: Path, faults: Faults) -> list[Path]:
    """The files to read under a folder (recursively, sorted), or the one file that `root` is.

    Files of other types, and hidden ones, are counted in `faults` and never refused.
    Raises:
        UserError: `root` does not exist, or there is nothing to read in it.
    """
    if root.is_file():
        if file_type(root) is None:
            raise UserError(f"{root}: unknown type of file; known are {known_types()}")
        return [root]
    if not root.is_dir():
        raise UserError(f"data.text_dir={root}: no such file or folder")
    found = []
    for path in sorted(root.rglob("*"), key=lambda path: path.relative_to(root).as_posix()):
        if path.is_dir():
            continue
        if file_type(path) is None or any(part.startswith(".") for part in path.relative_to(root).parts):
            faults.skipped["file of another type"] += 1
        else:
            found.append(path)
    if not found:
        raise UserError(f"data.text_dir={root}: no file to read; known are {known_types()}")
    return found


def file_type(path: Path) -> str | None:
    """`.txt`, `.jsonl` or `.parquet` (without the compression), or None."""
    stem, suffix = path.stem, path.suffix
    if suffix in COMPRESSIONS:
        inner = Path(stem).suffix
        return inner if inner in (".txt", ".jsonl") else None
    return suffix if suffix in (".txt", ".jsonl", ".parquet") else None


def known_types() -> str:
    return ".txt and .jsonl (also .gz, .zst) and .parquet"


def read_file(path: Path, txt_document: str, faults: Faults) -> Iterator[Document]:
    """The good documents of one file, in order; the others go to `faults`.

    Raises:
        UserError: bad input under the policy `refuse`; always, if the file cannot be opened, or is a .parquet
            without a string column `text`.
    """
    kind = file_type(path)
    try:
        if path.exists() and path.stat().st_size == 0:
            faults.add(str(path), "empty file")
        elif kind == ".jsonl":
            yield from _jsonl(path, faults)
        elif kind == ".parquet":
            yield from _parquet(path, faults)
        elif txt_document == "block":
            yield from _txt_blocks(path, faults)
        else:
            yield from _txt_file(path, faults)
    except _DamagedError as error:
        faults.add(str(path), str(error))


class _DamagedError(Exception):
    """An archive that ends early or cannot be unpacked."""


def checked(text: str, place: str, faults: Faults) -> Iterator[Document]:
    """The document, or nothing if it is blank or not to be written in UTF-8 (a lone surrogate out of JSON)."""
    if not text or text.isspace():
        faults.add(place, EMPTY)
        return
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        faults.add(place, NOT_UTF8)
        return
    yield Document(text, place, size)


def _jsonl(path: Path, faults: Faults) -> Iterator[Document]:
    for number, line in _lines(path):
        if not line or line.isspace():
            continue
        place = f"{path}:{number}"
        try:
            value = json.loads(line.decode())
        except UnicodeDecodeError:
            faults.add(place, NOT_UTF8)
        except (ValueError, RecursionError):
            faults.add(place, "not JSON")
        else:
            text = value.get(FIELD) if isinstance(value, dict) else None
            if isinstance(text, str):
                yield from checked(text, place, faults)
            else:
                faults.add(place, f"not a JSON object with a string field '{FIELD}'")


def _txt_file(path: Path, faults: Faults) -> Iterator[Document]:
    with _opened(path) as stream:
        content = stream.read().removeprefix(BOM)
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            faults.add(f"{path}:{line}", NOT_UTF8)
        else:
            yield from checked(_unix(text), str(path), faults)


def _txt_blocks(path: Path, faults: Faults) -> Iterator[Document]:
    block: list[bytes] = []
    start = number = 0
    for number, line in _lines(path):
        if line and not line.isspace():
            block.append(line)
            start = start or number
            continue
        if block:
            yield from _block(block, f"{path}:{start}", faults)
        block, start = [], 0
    if block:
        yield from _block(block, f"{path}:{start}", faults)


def _block(lines: list[bytes], place: str, faults: Faults) -> Iterator[Document]:
    try:
        text = b"".join(lines).decode()
    except UnicodeDecodeError:
        faults.add(place, NOT_UTF8)
    else:
        yield from checked(_unix(text), place, faults)


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")


def _parquet(path: Path, faults: Faults) -> Iterator[Document]:
    try:
        with pa.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            if FIELD not in schema.names:
                raise UserError(f"{path}: no column '{FIELD}'; it has {', '.join(schema.names)}")
            kind = schema.field(FIELD).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise UserError(f"{path}: column '{FIELD}' holds {kind}, not strings")
            row = 0
            for batch in file.iter_batches(PARQUET_ROWS, columns=[FIELD]):
                for value in batch.column(0):
                    row += 1
                    yield from _cell(value, f"{path}: row {row}", faults)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error


def _cell(value: pa.Scalar, place: str, faults: Faults) -> Iterator[Document]:
    try:
        text = value.as_py()
    except UnicodeDecodeError:
        faults.add(place, NOT_UTF8)
        return
    if text is None:
        faults.add(place, f"no string in column '{FIELD}'")
    else:
        yield from checked(text, place, faults)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Line numbers from 1, and lines with their ends."""
    with _opened(path) as stream:
        for number, line in enumerate(stream, start=1):
            yield number, line.removeprefix(BOM) if number == 1 else line


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The content of a file, unpacked. Damage costs what stands behind it, and at most one buffer before it."""
    compression = COMPRESSIONS.get(path.suffix)
    try:
        raw = pa.input_stream(str(path), compression=compression)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error
    with raw, io.BufferedReader(cast(io.RawIOBase, raw)) as stream:
        try:
            yield cast(BinaryIO, stream)
        except OSError as error:
            if compression is None:
                raise
            raise _DamagedError(f"truncated or damaged {path.suffix}") from error
