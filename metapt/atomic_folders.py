"""Folders that are either complete or absent: checkpoints, taggers, indexes, cached features.

To write one: fill `staging(final)`, then `commit` it, which records size and checksum of every file in manifest.json and
renames the folder. `remove` renames a folder before it deletes the files, so that a kill never leaves a partial folder
under the final name. A kill may leave NAME.tmp or NAME.deleted behind; `remove_leftovers` deletes them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metapt import files

MANIFEST = "manifest.json"
STAGING_SUFFIX, DELETION_SUFFIX = ".tmp", ".deleted"


def staging(final: Path) -> Path:
    """Create an empty folder beside `final`; `commit` renames it to `final`."""
    folder = final.with_name(final.name + STAGING_SUFFIX)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def commit(folder: Path, final: Path, known: Mapping[str, Any] | None = None) -> None:
    """Write the manifest of a staging folder, sync it to disk and rename it to `final`, replacing what is there.

    All files get the permissions that the user's umask gives to new ones, as the manifest has: safetensors writes files
    that nobody else can read.

    Args:
        known: `entry` of files, by their path in the folder; the others are read here.
    """
    content = sorted(path for path in folder.rglob("*") if path.is_file())
    named = {str(path.relative_to(folder)): path for path in content}
    listing = {name: (known or {}).get(name) or entry(path) for name, path in named.items()}
    files.write_json(folder / MANIFEST, {"files": listing})
    permissions = (folder / MANIFEST).stat().st_mode & 0o777
    for path in content:
        path.chmod(permissions)
    for path in (folder, *folder.rglob("*")):
        files.sync(path)
    replaced = _rename_for_deletion(final)
    folder.rename(final)
    files.sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def entry(file: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"bytes": file.stat().st_size, "sha256": files.file_sha256(file)}


def lists(folder: Path, part: str) -> bool:
    """Whether the manifest of a committed folder lists files of its subfolder `part`."""
    return any(name.startswith(f"{part}/") for name in _listing(folder))


def shrink(folder: Path, part: str) -> None:
    """Delete the subfolder `part` of a committed folder, which stays complete: its manifest forgets the files first."""
    kept = {name: item for name, item in _listing(folder).items() if not name.startswith(f"{part}/")}
    files.write_json(folder / MANIFEST, {"files": kept})
    shutil.rmtree(folder / part, ignore_errors=True)


def problem(folder: Path, hashed: str | None = "") -> str | None:
    """Describe what is wrong with a committed folder; None if every file matches the manifest.

    Args:
        hashed: checksums are compared only for files whose path in the folder starts with this; None: for none. Sizes are
            compared for all.
    """
    try:
        expected = [(name, item["bytes"], item["sha256"]) for name, item in _listing(folder).items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{folder / MANIFEST} is missing or unreadable"
    for name, size, checksum in expected:
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size} bytes, not {size}"
        if hashed is not None and name.startswith(hashed) and files.file_sha256(path) != checksum:
            return f"{path} does not match its checksum"
    return None


def _listing(folder: Path) -> dict[str, Any]:
    listing: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    return listing


def remove(folder: Path) -> None:
    """Delete a folder; it is renamed first, so that a partly deleted folder never has the final name."""
    shutil.rmtree(_rename_for_deletion(folder), ignore_errors=True)


def remove_leftovers(parent: Path, pattern: str) -> None:
    """Delete what killed processes left in `parent` while they wrote or deleted folders that match `pattern`."""
    for suffix in (STAGING_SUFFIX, DELETION_SUFFIX):
        for folder in parent.glob(pattern + suffix):
            shutil.rmtree(folder, ignore_errors=True)


def _rename_for_deletion(folder: Path) -> Path:
    """Rename a folder, if it exists, to a name that marks it for deletion; return that path."""
    doomed = folder.with_name(folder.name + DELETION_SUFFIX)
    shutil.rmtree(doomed, ignore_errors=True)
    if folder.exists():
        folder.rename(doomed)
    return doomed
