"""The provenance of a run: git commit, library versions, host, start time, data fingerprints."""

from __future__ import annotations

import platform
import socket
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from metapt import __version__

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
    versions = {name: metadata.version(name) for name in LIBRARIES}
    return {
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version(), **versions},
        "host": socket.gethostname(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "fingerprints": dict(fingerprints),
    }


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
