"""The provenance of a run: git commit, library versions, host, start time, data fingerprints."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from metapt import __version__

BESIDE_THE_PACKAGE = (
    "analysis/",
    "ds_configs/",
)  # in a clone; inside the package in a copy and where it is installed
COMMIT_FILE = "COMMIT"  # beside the packages of a code snapshot
LIBRARIES = (
    "torch",
    "deepspeed",
    "transformers",
    "tokenizers",
    "accelerate",
    "datasets",
    "submitit",
    "numpy",
)


def provenance(fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """The provenance of a run that starts now, as config.yaml records it.

    Args:
        fingerprints: hashes of the data, by name.
    """
    return {
        **source(),
        "versions": _versions(),
        "host": socket.gethostname(),
        "started": now(),
        "fingerprints": dict(fingerprints),
    }


def _versions() -> dict[str, str]:
    versions = {name: version for name in LIBRARIES if (version := installed_version(name))}
    return {"python": platform.python_version(), **versions}


def now() -> str:
    """The time, in UTC and ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def source() -> dict[str, str | None]:
    """The source code of this process: its commit, a hash of its content, and its copy in the grid folder, if it is one."""
    folder = Path(__file__).parents[1]
    is_copy = (folder / COMMIT_FILE).exists()
    return {
        "git_commit": git_commit(),
        "source": source_hash(),
        "code": folder.name if is_copy else None,
    }


def source_hash() -> str:
    """A hash of the content of the source code, which distinguishes uncommitted changes.

    It covers the package, but neither the report nor the DeepSpeed files, which lie in another place in a copy.
    """
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        name = path.relative_to(package).as_posix()
        if path.suffix in (".py", ".yaml") and not name.startswith(BESIDE_THE_PACKAGE):
            digest.update(f"{name} ".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def start_record(step: int, reason: str, circumstances: Mapping[str, Any]) -> dict[str, Any]:
    """What a line of starts.jsonl says of a process that starts or resumes a run now.

    Args:
        step: from which it goes on.
        reason: why it starts.
        circumstances: further values, such as the GPUs.
    """
    return {
        "time": now(),
        "step": step,
        "reason": reason,
        "job": os.environ.get("SLURM_JOB_ID"),
        "nodes": [socket.gethostname()],
        **circumstances,
        **source(),
        "versions": _versions(),
    }


def counting_starts(starts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The starts that the present state of a run comes from: since it last started at step 0."""
    first = max((number for number, entry in enumerate(starts) if entry["step"] == 0), default=0)
    return list(starts[first:])


def sources(recorded: Mapping[str, Any], starts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The sources with which a run was trained, in order, each once for every change.

    Args:
        recorded: the provenance of the run.
        starts: the lines of its starts.jsonl.
    """
    used: list[Mapping[str, Any]] = []
    for entry in counting_starts(starts) or [recorded]:
        if not used or used[-1].get("source") != entry.get("source"):
            used.append(entry)
    return used


def installed_version(package: str) -> str | None:
    """The version of a package; None if it is not installed: a scoring run needs none of LIBRARIES but numpy."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit() -> str:
    """The commit of the source code, with `+changes` appended if tracked files have been modified.

    A code snapshot of a grid (metapt/launch/code_snapshot.py) stores its commit in a file. An installed package has no
    commit: the result is `release VERSION`, even if the environment is located inside a git repository of the user.
    """
    folder = Path(__file__).parent
    if (recorded := folder.parent / COMMIT_FILE).exists():
        return recorded.read_text(encoding="utf-8").strip()
    commands = (
        ["git", "ls-files", "--error-unmatch", "__init__.py"],
        ["git", "rev-parse", "HEAD"],
        ["git", "status", "--porcelain", "--untracked-files=no"],
    )
    try:
        _, head, changes = (
            subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return f"release {__version__}"
    return head + ("+changes" if changes else "")
