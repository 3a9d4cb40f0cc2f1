"""Which files of a folder hold the splits of labelled sets, by the names of the files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from metapt.data.bad_input import DOCUMENTATION
from metapt.errors import UserError

SPLITS = ("train", "dev", "test")
# Other names of splits in file names: CoNLL-2003 calls its dev set testa, and its test set testb.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "dev": "dev",
    "devel": "dev",
    "development": "dev",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "testa": "dev",
    "test": "test",
    "testb": "test",
}
SPLIT_WORD = re.compile(rf"(?<![a-z])({'|'.join(SPLIT_NAMES)})(?![a-z])")
UNER_FILE = re.compile(r"(?P<set>.+)-ud-(?P<split>train|dev|test)")  # as its repositories name the files
DEPTH = 4  # to which the folders of a collection of languages are searched
NAME_CHARACTERS = re.compile(r"[^\w.-]+", re.ASCII)


def split_of(file_name: str) -> str | None:
    """The split that the name of a file names; None if it names none. The last such word counts."""
    words = SPLIT_WORD.findall(file_name.lower())
    return SPLIT_NAMES[words[-1]] if words else None


def split_files(folder: Path) -> dict[str, Path]:
    """The file of each split in a folder, by the names of the files.

    Raises:
        UserError: the folder cannot be read, or several files have the name of one split.
    """
    found: dict[str, list[Path]] = {}
    for path in entries_of(folder):
        if path.is_file() and (split := split_of(path.name)):
            found.setdefault(split, []).append(path)
    for split, paths in found.items():
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise UserError(
                f"{folder}: several files have the name of its {split} split: {names}; a description (a .yaml file in "
                "data.corpora) can name the right one"
            )
    return {split: found[split][0] for split in SPLITS if split in found}


def set_name(path: Path) -> str:
    """The name of a set by the file or folder that holds it: its name without a split; where nothing is left, the folder's."""
    path = path.resolve()
    stem = path.name if path.is_dir() else path.name.split(".")[0] or path.stem
    if not path.is_dir():
        stem = SPLIT_WORD.sub("", stem.lower()) if split_of(stem) else stem
    name = NAME_CHARACTERS.sub("_", stem).strip("._-")
    return name or NAME_CHARACTERS.sub("_", path.parent.name).strip("._-") or "set"


def uner_files(folder: Path) -> tuple[dict[tuple[str, str], Path], list[str]]:
    """The files of Universal NER in a folder, and the folders in it that hold none.

    Both layouts are read: SET/SPLIT.iob2, and the repositories as published, UNER_English-EWT/en_ewt-ud-train.iob2; a single
    repository is a folder too.

    Returns:
        the file of each (set, split); names of subfolders without such a file, but for hidden ones and licences.
    Raises:
        UserError: a folder cannot be read; two files belong to the same split of a set.
    """
    files: dict[tuple[str, str], Path] = {}
    unused = []
    for part in [folder, *filter(Path.is_dir, entries_of(folder))]:
        found = [(key, path) for path in entries_of(part) if (key := _uner_split(path))]
        for key, path in found:
            if part == folder and path.stem in SPLITS:
                continue  # a set has a folder of its own
            if key in files:
                raise UserError(f"{path}: {files[key]} is also the {key[1]} split of {key[0]}; remove one")
            files[key] = path
        if not found and part != folder:
            unused.append(part.name)
    return files, unused


def _uner_split(path: Path) -> tuple[str, str] | None:
    """The set and the split of a file; None if it is not one of Universal NER."""
    if path.suffix != ".iob2" or not path.is_file():
        return None
    if match := UNER_FILE.fullmatch(path.stem):
        return match["set"], match["split"]
    return (path.parent.name, path.stem) if path.stem in SPLITS else None


def subfolders_with(folder: Path, names: Sequence[str]) -> list[Path]:
    """The folders up to DEPTH levels below a folder, and itself, that hold all of some files, in alphabetical order."""
    return [path for path in _walk(folder, DEPTH) if all((path / name).is_file() for name in names)]


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    yield folder
    for path in entries_of(folder) if depth else ():
        if path.is_dir():
            yield from _walk(path, depth - 1)


def entries_of(folder: Path) -> list[Path]:
    """What a folder contains, in alphabetical order, but for hidden entries and documentation.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:  # glob would pass over a folder that cannot be read
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return [path for path in paths if not path.name.startswith(".") and not DOCUMENTATION.match(path.name)]
