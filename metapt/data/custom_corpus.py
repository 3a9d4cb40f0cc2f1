"""Labelled corpora described in a YAML file: where the sentences lie, in which columns, and what the tags mean.

    name: xx_news                       the set's name in source=, data.eval_sets and results: LANGUAGE_SOMETHING, as
                                        Universal NER's are; the report takes tl_ and ceb_ for target languages
    licence: CC BY 4.0                  language:, reference: and notes: may tell more
    folder: my-news                     of the files, seen from this file; data.corpora=[FILE:FOLDER] goes before it
    files:                              split to file, or to a file and which of its sentences (from 1)
      train: train.conll
      dev: {file: rest.conll, sentences: 1-500}
      test: {file: rest.conll, sentences: 501-}
    columns: [word, pos, tag]           from left to right; `word` and `tag` are read
    separator: tab                      or space, or whitespace (any run of both)
    comment: "# id"                     lines that begin so hold no word
    types: {person: PER, MISC: O}       besides PER, ORG and LOC
    hub:                                a table of the hub, read where no folder is given
      name: owner/data-set              revision: [main], config: and folder: say which part of it
      splits: {train: train, dev: validation, test: test}
      words: tokens                     columns: words: [tokens], tags: [ner_tags], id: [numbers]
      labels: [O, B-PER, ...]           tags in the order of their ids, if the data set does not declare them

Presets, which go by their names, lie in metapt/data/corpora/.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metapt.data.hub import HUB_SPLITS, HubTable, read_hub
from metapt.data.iob2 import OWN_TYPES, SEPARATORS, TYPES, Layout, Sentence, read_iob2
from metapt.errors import UserError

PRESETS = Path(__file__).parent / "corpora"
SPLITS = ("train", "dev", "test")
TOLD = ("language", "reference", "notes")  # for people
KEYS = ("name", "licence", *TOLD, "folder", "files", "columns", "separator", "comment", "types", "hub")
HUB_KEYS = tuple(item.name for item in fields(HubTable) if item.name != "types")
NAME = re.compile(r"\w[\w.-]*", re.ASCII)
ENTRY = re.compile(r"(?P<what>.+?\.ya?ml|\w+)(?::(?P<folder>.+))?", re.ASCII)
RANGE = re.compile(r"(\d+)-(\d*)")


@dataclass(frozen=True)
class Part:
    """The sentences of a file from number `first` (from 1) to `last`; all to its end if that is None."""

    file: str
    first: int = 1
    last: int | None = None


@dataclass(frozen=True)
class Description:
    """What a YAML file says. At least one of `files` and `hub` is there; `layout` is that of the files."""

    name: str
    licence: str
    language: str  # as the file has it; may be empty
    folder: Path | None
    layout: Layout
    files: Mapping[str, Part]
    hub: HubTable | None


class CustomCorpus:
    """One set as its description has it, in a folder or on the hub.

    name, licence, language: of the set; splits: those it has.
    read: reads one of them, in file order, and raises UserError for what is not as described, OperationalError where the
        hub cannot be reached.

    Args:
        description: what its YAML file says.
        folder: of its files; goes before the description's own, and before the hub.
    Raises:
        UserError: there is no folder and no hub table to read it from, or a file is missing.
    """

    def __init__(self, description: Description, folder: Path | None):
        self.name, self.licence, self.language = description.name, description.licence, description.language
        self._it = description
        folder = folder or description.folder
        there: Mapping[str, Any]
        if folder is not None:
            self._check_files(folder)
            there, self.read = (
                description.files,
                partial(self._read_file, folder, cache(partial(read_iob2, layout=description.layout))),
            )
        elif description.hub is not None:
            there, self.read = description.hub.splits, partial(self._read_hub, description.hub)
        else:
            raise UserError(f"{self.name}: its files have no folder; {self._hint}")
        self.splits = tuple(split for split in SPLITS if split in there)

    @property
    def _hint(self) -> str:
        return "give their folder after its name or file: data.corpora=[...:FOLDER]"

    def _read_hub(self, table: HubTable, split: str) -> list[Sentence]:
        return read_hub(table, split, f"if you have its files, {self._hint}")

    def _read_file(self, folder: Path, read: Callable[[Path], list[Sentence]], split: str) -> list[Sentence]:
        part = self._it.files[split]
        everything = read(folder / part.file)
        chosen = everything[part.first - 1 : part.last]
        if len(chosen) < (part.last or part.first) - part.first + 1:
            raise UserError(
                f"{folder / part.file}: has {len(everything)} sentences, but {split} of {self.name} goes from "
                f"{part.first} to {part.last or 'the end'}"
            )
        return chosen

    def _check_files(self, folder: Path) -> None:
        if not self._it.files:
            raise UserError(f"{self.name}: describes no files, so it cannot be read from {folder}")
        if not folder.is_dir():
            raise UserError(f"{self.name}: {folder}: no such folder")
        wanted = dict.fromkeys(part.file for part in self._it.files.values())
        missing = [file for file in wanted if not (folder / file).is_file()]
        if missing:
            there = sorted(path.name for path in folder.iterdir())[:8]
            raise UserError(
                f"{self.name}: {folder} has no {', '.join(missing)}; it has {', '.join(there) or 'nothing'}"
            )


def open_custom_corpora(entries: Sequence[str]) -> list[CustomCorpus]:
    """The sets that `data.corpora` means: each entry is a preset or a YAML file, with `:FOLDER` if it has none.

    Raises:
        UserError: with every mistake in the entries and in the files they name, one a line.
    """
    found, complaints = [], []
    for entry in entries:
        try:
            match = ENTRY.fullmatch(entry)
            if match is None:
                raise UserError(f"{entry!r}: neither NAME nor FILE.yaml, with :FOLDER or without")
            folder = Path(match["folder"]).expanduser() if match["folder"] else None
            found.append(CustomCorpus(read_description(_file_of(match["what"])), folder))
        except UserError as error:
            complaints += str(error).splitlines()
    if complaints:
        raise UserError("\n  ".join([f"data.corpora: {len(complaints)} mistake(s)", *complaints]))
    return found


def presets() -> list[str]:
    """The names of the shipped descriptions."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_description(path: Path) -> Description:
    """Reads and checks a YAML file.

    Raises:
        UserError: with every mistake that was found, one a line that begins with the file.
    """
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start + 1}") from None
    except (yaml.YAMLError, OmegaConfBaseException, OSError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no mapping of keys ({', '.join(KEYS)})")
    checking = _Checking()
    description = checking.description(values, path.parent)
    if description is None or checking.complaints:
        raise UserError("\n".join(f"{path}: {complaint}" for complaint in checking.complaints))
    return description


def _file_of(what: str) -> Path:
    if what.endswith((".yaml", ".yml")):
        return Path(what).expanduser()
    if what not in presets():
        raise UserError(f"{what!r}: no such preset; there are {', '.join(presets())}, or give a .yaml file")
    return PRESETS / f"{what}.yaml"


class _Checking:
    """Takes values apart; every mistake goes into `complaints`, and reading goes on with something harmless."""

    def __init__(self) -> None:
        self.complaints: list[str] = []

    def description(self, values: dict[Any, Any], home: Path) -> Description | None:
        """The description that the values make; None if there is any complaint. Paths are relative to `home`."""
        self.known(values, KEYS, "")
        name, licence = self.text(values, "name", required=True), self.text(values, "licence", required=True)
        language, *_ = (self.text(values, told) for told in TOLD)
        if name is not None and (name == "all" or not NAME.fullmatch(name)):
            self.complaints.append(f"name: {name!r} must be of letters, digits, . _ and -, and not `all`")
        types = self.types(values.get("types", {}))
        files = self.files(values)
        layout = self.layout(values, types) if files else Layout(("word", "tag"), types=types)
        hub = self.hub(values, types)
        if not files and hub is None and not {"files", "hub"} & set(values):
            self.complaints.append("needs `files` or `hub` (or both)")
        folder = self.text(values, "folder")
        if self.complaints or name is None or licence is None:
            return None
        return Description(
            name,
            licence,
            language or "",
            home / Path(folder).expanduser() if folder else None,
            layout,
            files,
            hub,
        )

    def known(self, values: Mapping[Any, Any], keys: Sequence[str], prefix: str) -> None:
        for key in values:
            if key not in keys:
                close = get_close_matches(str(key), keys, n=1, cutoff=0.6)
                hint = f"did you mean {close[0]}?" if close else f"keys are {', '.join(keys)}"
                self.complaints.append(f"{prefix}{key}: no such key; {hint}")

    def text(
        self,
        values: Mapping[Any, Any],
        key: str,
        prefix: str = "",
        default: str | None = None,
        required: bool = False,
    ) -> str | None:
        """The text under a key, or the default where it is absent or no text."""
        if key not in values:
            if required:
                self.complaints.append(f"{prefix}{key} is required")
            return default
        if not isinstance(values[key], str) or not values[key].strip():
            self.complaints.append(f"{prefix}{key}: must be text, not {values[key]!r}")
            return default
        return values[key]

    def mapping(self, value: Any, path: str, keys: Sequence[str] | None = None) -> dict[Any, Any]:
        if not isinstance(value, dict) or not value:
            self.complaints.append(f"{path}: must be a mapping that is not empty, not {value!r}")
            return {}
        if keys is not None:
            self.known(value, keys, f"{path}.")
        return value

    def types(self, value: Any) -> dict[str, str]:
        found = dict(OWN_TYPES)
        for kind, meant in (self.mapping(value, "types") if value != {} else {}).items():
            if not isinstance(kind, str) or meant not in (*TYPES, "O"):
                self.complaints.append(f"types.{kind}: {meant!r} must be one of {', '.join(TYPES)}, O")
            else:
                found[kind] = meant
        return found

    def files(self, values: Mapping[Any, Any]) -> dict[str, Part]:
        """The part of a file that each split is; none without `files`."""
        if "files" not in values:
            return {}
        found = {}
        for split, value in self.mapping(values["files"], "files", SPLITS).items():
            path = f"files.{split}"
            if isinstance(value, str) and value:
                found[split] = Part(value)
            else:
                node = self.mapping(value, path, ("file", "sentences"))
                file, chosen = (
                    self.text(node, "file", f"{path}.", required=bool(node)),
                    node.get("sentences", "1-"),
                )
                match = RANGE.fullmatch(str(chosen))
                first, last = (int(match[1]), int(match[2]) if match[2] else None) if match else (0, None)
                if first < 1 or (last is not None and last < first):
                    self.complaints.append(
                        f"{path}.sentences: {chosen!r} must be like 1-500, or 501- to the end"
                    )
                found[split] = Part(file or "", first, last)
        return found

    def layout(self, values: Mapping[Any, Any], types: Mapping[str, str]) -> Layout:
        columns = values.get("columns")
        if not isinstance(columns, list) or any(columns.count(name) != 1 for name in ("word", "tag")):
            self.complaints.append(
                "columns: must be a list of names with `word` once and `tag` once, such as [word, tag]"
            )
            columns = ["word", "tag"]
        separator = values.get("separator", "tab")
        if separator not in SEPARATORS:
            self.complaints.append(f"separator: {separator!r} must be one of {', '.join(SEPARATORS)}")
        comment = self.text(values, "comment")
        return Layout(tuple(str(name) for name in columns), str(separator), comment, types)

    def hub(self, values: Mapping[Any, Any], types: Mapping[str, str]) -> HubTable | None:
        """The table on the hub; None without `hub`, or after any complaint."""
        if "hub" not in values:
            return None
        node = self.mapping(values["hub"], "hub", HUB_KEYS)
        texts = {
            key: self.text(node, key, "hub.", required=bool(node) and key == "name")
            for key in HUB_KEYS
            if key not in ("splits", "labels")
        }
        splits = self.mapping(node.get("splits", HUB_SPLITS), "hub.splits", SPLITS)
        for split in splits:
            self.text(splits, split, "hub.splits.")
        labels = node.get("labels", [])
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            self.complaints.append(f"hub.labels: must be a list of tags, not {labels!r}")
        if self.complaints:
            return None
        given = {key: value for key, value in texts.items() if value is not None}
        return HubTable(splits=splits, labels=labels, types=types, **given)
