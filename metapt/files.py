"""Files of any kind: atomic writes, strict JSON, JSON lines, checksums."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

TEMPORARY_SUFFIX = ".tmp"


def write_atomically(path: Path, text: str) -> None:
    """Write a text file and sync it to disk. Readers see either the old or the new content, never a part."""
    write_bytes_atomically(path, text.encode(), synced=True)


def write_bytes_atomically(path: Path, content: bytes, synced: bool = False) -> None:
    """Write a binary file atomically. `synced=False` is for files that can be regenerated after a power failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        temporary.write_bytes(content)
        if synced:
            sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """A path beside `path` that no other process uses, on any node: .NAME.RANDOM.tmp. Process ids recur on other nodes."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically; numbers that are not finite become null."""
    text = json.dumps(json_safe(value), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text + "\n")


def json_safe(value: Any) -> Any:
    """Replace floats that are not finite by None, in nested lists and dictionaries too: JSON has no NaN or infinity."""
    if isinstance(value, Mapping):
        return {name: json_safe(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_jsonl(path: Path, on_damage: Callable[[str], None] | None = None) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; nothing if it does not exist. A last line that a kill cut off is left out.

    Args:
        on_damage: called with a description of each damaged line, which is then left out as well.
    Raises:
        ValueError: a line is damaged, and there is no `on_damage`.
    """
    if not path.exists():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            values = parsed_object(line)
            if values is not None:
                yield values
                continue
            problem = f"{path}, line {number}: damaged, not a JSON object"
            if on_damage is None:
                raise ValueError(problem)
            on_damage(problem)


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Append an object to a JSON-lines file, on a line of its own also after a line that a kill cut off."""
    is_cut_off = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if is_cut_off else "") + json.dumps(json_safe(values), allow_nan=False) + "\n")


def parsed_object(line: bytes) -> dict[str, Any] | None:
    """The JSON object in a line; None if there is none."""
    try:
        values = json.loads(line)
    except ValueError:  # also of bytes that are no UTF-8
        return None
    return values if isinstance(values, dict) else None


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
