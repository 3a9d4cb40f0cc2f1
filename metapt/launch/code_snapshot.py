"""The source code that the jobs of a grid run: a copy made at submission, so that later edits do not affect them.

The copy is GRID/code/HASH, where the hash covers the commit and the content of every file, with uncommitted changes.
Submissions of the same source share one copy. Dependencies are not copied. With `code=live` jobs run the source folder
itself.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from metapt import files
from metapt.errors import OperationalError, UserError
from metapt.provenance import COMMIT_FILE, git_commit

PACKAGE = Path(__file__).resolve().parents[1]
SOURCE = PACKAGE.parent  # a clone of the repository, or site-packages
SUBPACKAGES = ("analysis", "ds_configs")  # beside the package in a clone, inside it where it is installed
VARIABLE = "METAPT_CODE"  # environment variable: the folder from which a job's processes must import metapt


@dataclass(frozen=True)
class CodeSnapshot:
    """A folder with the source. `content` maps file names to the bytes to write; it is empty for an existing folder."""

    folder: Path
    commit: str
    content: dict[str, bytes]
    is_live: bool = False  # the source folder itself

    def __str__(self) -> str:
        commit = shown_commit(self.commit)
        if not self.is_live:
            return f"jobs run a copy of the source ({commit}): {self.folder}"
        return (
            f"jobs run the live source, with any edits made before they start (now {commit}): {self.folder}"
        )

    def write(self) -> None:
        """Writes the copy unless it exists. It gets its name when it is complete, also with two writers at once."""
        if not self.content or (self.folder / COMMIT_FILE).exists():
            return
        staging = files.temporary_path(self.folder)
        for name, content in self.content.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_bytes(content)
        try:
            staging.rename(self.folder)
        except OSError:
            if not (self.folder / COMMIT_FILE).exists():
                raise
            shutil.rmtree(staging)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Processes started in the block, and their own child processes, run this source."""
        before = dict(os.environ)
        inherited = [before["PYTHONPATH"]] if before.get("PYTHONPATH") else []
        # without SAFEPATH `python -m` would search the working folder first, which may hold another copy of the source
        os.environ |= {
            "PYTHONPATH": os.pathsep.join([str(self.folder), *inherited]),
            "PYTHONSAFEPATH": "1",
            VARIABLE: str(self.folder),
        }
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def shell_lines(self, timeout_s: int) -> list[str]:
        """The lines of a batch script that do the same, after waiting until the node sees the folder.

        Args:
            timeout_s: the longest wait, in seconds; then the script exits with 1.
        """
        folder = shlex.quote(str(self.folder))
        lines = [f"export {VARIABLE}={folder} PYTHONSAFEPATH=1"]
        lines += [f'export PYTHONPATH="${VARIABLE}${{PYTHONPATH:+:$PYTHONPATH}}"']
        if not self.is_live:
            is_visible = f'[ -e "${VARIABLE}/{COMMIT_FILE}" ]'
            lines += [f"for _ in $(seq {timeout_s}); do {is_visible} && break; sleep 1; done"]
            lines += [f'{is_visible} || {{ echo "error: ${VARIABLE} is not visible here" >&2; exit 1; }}']
        return lines


def live_code() -> CodeSnapshot:
    """The source folder of this process, without a copy."""
    return CodeSnapshot(SOURCE, git_commit(), {}, is_live=True)


def existing_snapshot(root: Path, name: str) -> CodeSnapshot | None:
    """An earlier copy in a grid folder; None if it does not exist any more."""
    folder = root.absolute() / "code" / name
    try:
        return CodeSnapshot(folder, (folder / COMMIT_FILE).read_text(encoding="utf-8").strip(), {})
    except OSError:
        return None


def shown_commit(commit: str) -> str:
    """A commit for the user, with its uncommitted changes."""
    changes = ", with uncommitted changes" if commit.endswith("+changes") else ""
    return f"commit {commit.partition('+')[0][:10]}{changes}"


def take_snapshot(root: Path) -> CodeSnapshot:
    """The source of this process as it is now, to be copied into a grid folder. Writes nothing.

    Raises:
        UserError: jobs could not import a copy in that folder.
    """
    if os.pathsep in str(root.absolute()):
        raise UserError(
            f"root={root}: jobs find their source through PYTHONPATH, which cannot hold a path with {os.pathsep!r}; "
            "choose another folder, or set code=live"
        )
    commit = git_commit()
    content = _files(PACKAGE, "metapt")
    for name in SUBPACKAGES:
        if not (PACKAGE / name).is_dir():
            content |= _files(SOURCE / name, f"metapt/{name}")
    content[COMMIT_FILE] = f"{commit}\n".encode()
    digest = hashlib.sha256()
    for name, data in content.items():
        digest.update(f"{name} {len(data)}\n".encode() + data)
    return CodeSnapshot(root.absolute() / "code" / digest.hexdigest()[:12], commit, content)


def _files(folder: Path, name: str) -> dict[str, bytes]:
    """The files below a folder by their paths in the copy, where the folder is called `name`."""
    return {
        f"{name}/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def require_own_code() -> None:
    """Checks that this process of a job was imported from the source that the job was submitted with.

    Raises:
        OperationalError: it was imported from another folder.
    """
    expected = os.environ.get(VARIABLE)
    if expected and Path(expected).resolve() != SOURCE:
        raise OperationalError(f"this job was submitted with the source {expected}, but it imported {SOURCE}")
