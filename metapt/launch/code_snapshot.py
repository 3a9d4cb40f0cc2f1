"""The source that the jobs of a grid run: a copy made when they are submitted, so that editing it while they wait, or
between a stop and its resumption, changes nothing for them.

A copy is ROOT/code/HASH, of the commit's name and all content, uncommitted changes included; submissions of the same
source share it. Installed packages are not copied. With `code=live` jobs run the source folder itself.
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

from metapt.errors import OperationalError, UserError
from metapt.provenance import COMMIT_FILE, git_commit

PACKAGE = Path(__file__).resolve().parents[1]
SOURCE = PACKAGE.parent  # a clone of the repository, or site-packages
SUBPACKAGES = ("analysis", "ds_configs")  # beside the package in a clone, inside it where it is installed
VARIABLE = "METAPT_CODE"  # tells a job's processes which folder they have to come from


@dataclass(frozen=True)
class Code:
    """A folder with the source. `content` is what is to be written there: name to bytes; empty for the live source."""

    folder: Path
    commit: str
    content: dict[str, bytes]

    def __str__(self) -> str:
        changes = ", with uncommitted changes" if self.commit.endswith("+changes") else ""
        commit = f"commit {self.commit.partition('+')[0][:10]}{changes}"
        if self.content:
            return f"jobs run a copy of the source ({commit}): {self.folder}"
        return f"jobs run the source itself, as it is whenever they start (now {commit}): {self.folder}"

    def write(self) -> None:
        """Puts the copy in place, unless it is there: under its name only when complete, also with two writers."""
        if not self.content or (self.folder / COMMIT_FILE).exists():
            return
        staging = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(staging, ignore_errors=True)
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
        """Processes that are started in the block, and theirs, run this source."""
        before = dict(os.environ)
        inherited = [before["PYTHONPATH"]] if before.get("PYTHONPATH") else []
        # without SAFEPATH `python -m` would look into the working folder first, which may be the source itself
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

    def shell_lines(self, patience_s: int) -> list[str]:
        """The same for a batch script; first it waits until the node sees the folder, so many seconds."""
        folder = shlex.quote(str(self.folder))
        lines = [f"export {VARIABLE}={folder} PYTHONSAFEPATH=1"]
        lines += [f'export PYTHONPATH="${VARIABLE}${{PYTHONPATH:+:$PYTHONPATH}}"']
        if self.content:
            there = f'[ -e "${VARIABLE}/{COMMIT_FILE}" ]'
            lines += [f"for _ in $(seq {patience_s}); do {there} && break; sleep 1; done"]
            lines += [f'{there} || {{ echo "error: ${VARIABLE} is not visible here" >&2; exit 1; }}']
        return lines


def code(root: Path, is_copied: bool) -> Code:
    """The source of this process, as it is now: to be copied under a grid's root, or live. Writes nothing.

    Raises:
        UserError: jobs could not import a copy there.
    """
    commit = git_commit()
    if not is_copied:
        return Code(SOURCE, commit, {})
    if os.pathsep in str(root.absolute()):
        raise UserError(
            f"root={root}: PYTHONPATH, by which jobs find their source, can hold no {os.pathsep!r}; "
            "give another folder, or code=live"
        )
    content = _files(PACKAGE, "metapt")
    for name in SUBPACKAGES:
        if not (PACKAGE / name).is_dir():
            content |= _files(SOURCE / name, f"metapt/{name}")
    content[COMMIT_FILE] = f"{commit}\n".encode()
    digest = hashlib.sha256()
    for name, data in content.items():
        digest.update(f"{name} {len(data)}\n".encode() + data)
    return Code(root.absolute() / "code" / digest.hexdigest()[:12], commit, content)


def _files(folder: Path, name: str) -> dict[str, bytes]:
    """The files below a folder, by their paths in the copy, where the folder is called `name`."""
    return {
        f"{name}/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def require_own_code() -> None:
    """Raises OperationalError in a job's process that came from another source than its job was submitted with."""
    wanted = os.environ.get(VARIABLE)
    if wanted and Path(wanted).resolve() != SOURCE:
        raise OperationalError(f"this job was submitted with the source {wanted}, but {SOURCE} was found")
