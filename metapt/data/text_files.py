"""Reads documents from text files: .txt, .jsonl and .json (also as .gz, .zst, .xz or .bz2), and .parquet.

- .jsonl, .json: one object per line; its string field `text` is a document. Other fields and blank lines are ignored.
- .parquet: one document per row, in the column `text` of strings or of bytes in UTF-8.
- .txt: one document per file, or, with `txt_document=block`, one document per block of lines between blank lines.
  Line endings become `\\n`; those at the end of a document are removed.
- A byte order mark at the start is dropped.

Files are streamed, except a .txt file that is one document: it is read into memory.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet

from metapt.data.bad_input import DOCUMENTATION, BadInput
from metapt.errors import UserError, first_line, listed

OPENERS: dict[str, Callable[[str], Any]] = {
    ".gz": gzip.open,  # which also reads archives that are padded with zeros, as tapes and dd leave them
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": partial(pa.input_stream, compression="zstd"),
}
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)  # what decompression raises
PLAIN_TYPES = (".txt", ".jsonl", ".json")
PARQUET_ROWS = 1024
FIELD = "text"
LISTED = 5  # files of other types that an error names
KNOWN_TYPES = ".txt, .jsonl and .json (also .gz, .zst, .xz, .bz2) and .parquet"
BOM = b"\xef\xbb\xbf"
NOT_UTF8 = "not UTF-8"
EMPTY = "empty document"


@dataclass(frozen=True)
class Document:
    """A text, its location (`file:line`), and its size in bytes of UTF-8."""

    text: str
    location: str
    bytes: int


def find_files(root: Path, bad_input: BadInput) -> list[Path]:
    """List the text files in a folder (recursively, sorted); if `root` is a file, only that file.

    Links to folders are followed; a folder that is reached in several ways is read once. Hidden files and folders and
    documentation (README, LICENSE, ...) are counted in `bad_input` and are never an error.

    Raises:
        UserError: `root` does not exist, or contains no text file; a folder cannot be read; there are files of other
            types and the policy is `refuse`.
    """
    if root.is_file():
        if file_type(root) is None:
            raise UserError(f"{root}: unknown file type; known types are {KNOWN_TYPES}")
        return [root]
    if not root.is_dir():
        raise UserError(f"data.text_dir={root}: no such file or folder")
    files: list[Path] = []
    others: list[Path] = []
    for path in sorted(_walk(root, bad_input), key=lambda path: path.relative_to(root).as_posix()):
        (others if file_type(path) is None else files).append(path)
    if not files:
        raise UserError(f"data.text_dir={root}: contains no text file; known types are {KNOWN_TYPES}")
    if others and bad_input.policy == "refuse":
        named = listed([path.relative_to(root).as_posix() for path in others], LISTED)
        raise UserError(
            f"data.text_dir={root}: file(s) of other types: {named}; known types are {KNOWN_TYPES}. Remove them, "
            "or skip them with data.on_bad_input=skip"
        )
    if others:
        bad_input.skipped["file of another type"] += len(others)
    return files


def _walk(root: Path, bad_input: BadInput) -> Iterator[Path]:
    """Every file below a folder that is neither hidden nor documentation."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from error

    visited: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=refuse):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in visited:
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        ignored = [name for name in (*subfolders, *names) if name.startswith(".")]
        ignored += [name for name in names if DOCUMENTATION.match(name)]
        if ignored:
            bad_input.skipped["hidden or documentation file"] += len(ignored)
        subfolders[:] = sorted(name for name in subfolders if name not in ignored)
        yield from (Path(folder, name) for name in names if name not in ignored)


def file_type(path: Path) -> str | None:
    """`.txt`, `.jsonl`, `.json` or `.parquet`, in lower case and without the compression suffix; None for other files."""
    suffix = path.suffix.lower()
    if suffix in OPENERS:
        inner = Path(path.stem).suffix.lower()
        return inner if inner in PLAIN_TYPES else None
    return suffix if suffix in (*PLAIN_TYPES, ".parquet") else None


def read_file(path: Path, txt_document: str, bad_input: BadInput) -> Iterator[Document]:
    """Yield the well-formed documents of one file, in order; the others are reported to `bad_input`.

    Raises:
        UserError: malformed input with the policy `refuse`; with any policy if the file cannot be opened, or is a
            .parquet file without a string column `text`.
    """
    kind = file_type(path)
    try:
        if path.exists() and path.stat().st_size == 0:
            bad_input.report(str(path), "empty file")
        elif kind in (".jsonl", ".json"):
            yield from _jsonl(path, bad_input)
        elif kind == ".parquet":
            yield from _parquet(path, bad_input)
        elif txt_document == "block":
            yield from _txt_blocks(path, bad_input)
        else:
            yield from _txt_file(path, bad_input)
    except _DamagedError as error:
        bad_input.report(str(path), str(error))


class _DamagedError(Exception):
    """A compressed file is truncated or cannot be decompressed."""


def check_document(text: str, location: str, bad_input: BadInput) -> Iterator[Document]:
    """Yield the document, unless it is blank or cannot be encoded in UTF-8 (JSON can contain lone surrogates)."""
    if not text or text.isspace():
        bad_input.report(location, EMPTY)
        return
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        bad_input.report(location, NOT_UTF8)
        return
    yield Document(text, location, size)


def _jsonl(path: Path, bad_input: BadInput) -> Iterator[Document]:
    for number, line in _lines(path):
        if not line or line.isspace():
            continue
        location = f"{path}:{number}"
        try:
            value = json.loads(line.decode())
        except UnicodeDecodeError:
            bad_input.report(location, NOT_UTF8)
        except (ValueError, RecursionError):
            bad_input.report(location, "not JSON")
        else:
            text = value.get(FIELD) if isinstance(value, dict) else None
            if isinstance(text, str):
                yield from check_document(text, location, bad_input)
            else:
                bad_input.report(location, f"not a JSON object with a string field '{FIELD}'")


def _txt_file(path: Path, bad_input: BadInput) -> Iterator[Document]:
    with _open_decompressed(path) as stream:
        content = stream.read().removeprefix(BOM)
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            bad_input.report(f"{path}:{line}", NOT_UTF8)
        else:
            yield from check_document(_normalized(text), str(path), bad_input)


def _txt_blocks(path: Path, bad_input: BadInput) -> Iterator[Document]:
    block: list[bytes] = []
    start = number = 0
    for number, line in _lines(path):
        if line and not line.isspace():
            block.append(line)
            start = start or number
            continue
        if block:
            yield from _block(block, f"{path}:{start}", bad_input)
        block, start = [], 0
    if block:
        yield from _block(block, f"{path}:{start}", bad_input)


def _block(lines: list[bytes], location: str, bad_input: BadInput) -> Iterator[Document]:
    try:
        text = b"".join(lines).decode()
    except UnicodeDecodeError:
        bad_input.report(location, NOT_UTF8)
    else:
        yield from check_document(_normalized(text), location, bad_input)


def _normalized(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")


def _parquet(path: Path, bad_input: BadInput) -> Iterator[Document]:
    try:
        with pa.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            if FIELD not in schema.names:
                raise UserError(f"{path}: no column '{FIELD}'; the columns are {', '.join(schema.names)}")
            kind = schema.field(FIELD).type
            if not _is_text(kind):
                raise UserError(f"{path}: column '{FIELD}' contains {kind}, not strings")
            row = 0
            for batch in file.iter_batches(PARQUET_ROWS, columns=[FIELD]):
                for value in batch.column(0):
                    row += 1
                    yield from _cell(value, f"{path}: row {row}", bad_input)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: cannot be read: {first_line(error)}") from error


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column holds strings or bytes, in any of the representations of Arrow."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    types = pa.types
    strings = (types.is_string, types.is_large_string, types.is_string_view)
    return any(
        test(kind) for test in (*strings, types.is_binary, types.is_large_binary, types.is_binary_view)
    )


def _cell(value: pa.Scalar, location: str, bad_input: BadInput) -> Iterator[Document]:
    try:
        text = value.as_py()
        text = text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError:
        bad_input.report(location, NOT_UTF8)
        return
    if text is None:
        bad_input.report(location, f"no string in column '{FIELD}'")
    else:
        yield from check_document(text, location, bad_input)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Pairs (line number from 1, line with its ending)."""
    with _open_decompressed(path) as stream:
        for number, line in enumerate(stream, start=1):
            yield number, line.removeprefix(BOM) if number == 1 else line


@contextmanager
def _open_decompressed(path: Path) -> Iterator[BinaryIO]:
    """Open a file and decompress it. Reading stops at damage, which may cost one buffer of intact content before it."""
    suffix = path.suffix.lower()
    try:
        raw = OPENERS.get(suffix, partial(open, mode="rb"))(str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or first_line(error)}") from error
    with raw, io.BufferedReader(cast(io.RawIOBase, raw)) as stream:
        try:
            yield cast(BinaryIO, stream)
        except DAMAGE as error:
            if suffix not in OPENERS:
                raise
            raise _DamagedError(f"truncated or damaged {path.suffix}") from error
