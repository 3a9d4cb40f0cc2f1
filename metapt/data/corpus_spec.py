"""Specifications of custom corpora: the parser of their YAML files. metapt/data/custom_corpus.py shows the format."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metapt.config import DOCUMENT_MARKS
from metapt.data.columns import SEPARATORS, ColumnLayout
from metapt.data.hub import HUB_SPLITS, HubTable
from metapt.data.labelled_folders import SPLITS
from metapt.errors import UserError

FOLDER_NAME = "{folder}"  # in the name of a set: there is one in each subfolder that has the files
OPTIONAL_TEXTS = ("language", "reference", "notes")  # information for people; only `language` is used
KEYS = (
    "name",
    "licence",
    *OPTIONAL_TEXTS,
    "folder",
    "files",
    "columns",
    "separator",
    "comment",
    "word_prefix",
    "labels",
    "types",
    "documents",
    "hub",
)
HUB_KEYS = tuple(item.name for item in fields(HubTable) if item.name != "types")
NAME = re.compile(rf"(\w|{re.escape(FOLDER_NAME)})([\w.-]|{re.escape(FOLDER_NAME)})*", re.ASCII)
RANGE = re.compile(r"(\d+)-(\d*)")


@dataclass(frozen=True)
class FileRange:
    """The sentences of a file from number `first` (from 1) to `last` (inclusive; None: the end of the file)."""

    file: str
    first: int = 1
    last: int | None = None


@dataclass(frozen=True)
class CorpusSpec:
    """The content of a YAML file.

    Attributes:
        name: with FOLDER_NAME in it, the specification describes one set in each subfolder.
        layout: of column files; None: recognized.
        files: of each split; empty: recognized by their names.
        types: maps entity types to others, or to O.
        labels: tags in the order of their class ids, for JSON whose tags are numbers.
        documents: marks of documents in the files; None: the key `data.documents`.
    """

    name: str
    licence: str
    language: str  # as the file spells it; may be empty
    folder: Path | None
    layout: ColumnLayout | None
    files: Mapping[str, FileRange]
    types: Mapping[str, str]
    labels: Sequence[str]
    documents: str | None
    hub: HubTable | None


def read_spec(path: Path) -> CorpusSpec:
    """Read and check a YAML file.

    Raises:
        UserError: lists every error that was found, one per line; each line begins with the path of the file.
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
        raise UserError(f"{path}: must be a mapping with the keys {', '.join(KEYS)}")
    parser = _SpecParser()
    spec = parser.spec(values, path.parent)
    if spec is None or parser.errors:
        raise UserError("\n".join(f"{path}: {error}" for error in parser.errors))
    return spec


class _SpecParser:
    """Parses the values of a YAML file. Every error is added to `errors`; parsing continues with a harmless value."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def spec(self, values: dict[Any, Any], base: Path) -> CorpusSpec | None:
        """The parsed specification; None after any error. Paths are relative to the folder `base`."""
        self.check_keys(values, KEYS, "")
        name, licence = self.text(values, "name", required=True), self.text(values, "licence", required=True)
        language, *_ = (self.text(values, key) for key in OPTIONAL_TEXTS)
        if name is not None and (name == "all" or not NAME.fullmatch(name)):
            self.errors.append(
                f"name: {name!r} must consist of letters, digits, . _ and -, and must not be `all`"
            )
        types = self.types(values.get("types", {}))
        files = self.files(values)
        layout = self.layout(values, types)
        hub = self.hub(values, types)
        labels = self.labels(values.get("labels", []), "labels")
        folder, documents = self.text(values, "folder"), self.text(values, "documents")
        if documents is not None and documents not in DOCUMENT_MARKS:
            self.errors.append(f"documents: {documents!r} must be one of {', '.join(DOCUMENT_MARKS)}")
        if self.errors or name is None or licence is None:
            return None
        path = base / Path(folder).expanduser() if folder else None
        return CorpusSpec(name, licence, language or "", path, layout, files, types, labels, documents, hub)

    def check_keys(self, values: Mapping[Any, Any], keys: Sequence[str], prefix: str) -> None:
        for key in values:
            if key not in keys:
                close = get_close_matches(str(key), keys, n=1, cutoff=0.6)
                hint = f"did you mean {close[0]}?" if close else f"keys are {', '.join(keys)}"
                self.errors.append(f"{prefix}{key}: no such key; {hint}")

    def text(
        self, values: Mapping[Any, Any], key: str, prefix: str = "", required: bool = False
    ) -> str | None:
        """The text under a key; None if it is absent or not a text."""
        if key not in values:
            if required:
                self.errors.append(f"{prefix}{key} is required")
            return None
        if not isinstance(values[key], str) or not values[key].strip():
            self.errors.append(f"{prefix}{key}: must be text, not {values[key]!r}")
            return None
        return values[key]

    def mapping(self, value: Any, path: str, keys: Sequence[str] | None = None) -> dict[Any, Any]:
        if not isinstance(value, dict) or not value:
            self.errors.append(f"{path}: must be a non-empty mapping, not {value!r}")
            return {}
        if keys is not None:
            self.check_keys(value, keys, f"{path}.")
        return value

    def types(self, value: Any) -> dict[str, str]:
        types = {}
        for entity_type, target in (self.mapping(value, "types") if value != {} else {}).items():
            if not isinstance(entity_type, str) or not isinstance(target, str) or not target.strip():
                self.errors.append(f"types.{entity_type}: {target!r} must be an entity type, or O")
            else:
                types[entity_type] = target
        return types

    def files(self, values: Mapping[Any, Any]) -> dict[str, FileRange]:
        """The file, or the range of a file, of each split; empty without `files`."""
        if "files" not in values:
            return {}
        entries = self.mapping(values["files"], "files", SPLITS)
        return {split: self.file_range(value, f"files.{split}") for split, value in entries.items()}

    def file_range(self, value: Any, path: str) -> FileRange:
        if isinstance(value, str) and value:
            return FileRange(value)
        entry = self.mapping(value, path, ("file", "sentences"))
        file = self.text(entry, "file", f"{path}.", required=bool(entry))
        sentences = entry.get("sentences", "1-")
        match = RANGE.fullmatch(str(sentences))
        first, last = (int(match[1]), int(match[2]) if match[2] else None) if match else (0, None)
        if first < 1 or (last is not None and last < first):
            self.errors.append(
                f"{path}.sentences: {sentences!r} must be a range such as 1-500, or 501- (to the end)"
            )
        return FileRange(file or "", first, last)

    def layout(self, values: Mapping[str, Any], types: Mapping[str, str]) -> ColumnLayout | None:
        """The layout of column files; None without `columns`, which leaves it to be recognized."""
        texts = {name: self.text(values, name) for name in ("comment", "word_prefix")}
        if "columns" not in values:
            for name in ("separator", *texts):
                if name in values:
                    self.errors.append(f"{name}: has no effect without `columns`")
            return None
        columns = values["columns"]
        if not isinstance(columns, list) or any(columns.count(name) != 1 for name in ("word", "tag")):
            self.errors.append(
                "columns: must be a list of names with `word` once and `tag` once, such as [word, tag]"
            )
            columns = ["word", "tag"]
        separator = values.get("separator", "tab")
        if separator not in SEPARATORS:
            self.errors.append(f"separator: {separator!r} must be one of {', '.join(SEPARATORS)}")
        prefix = texts["word_prefix"] or ""
        try:
            re.compile(prefix)
        except re.error as error:
            self.errors.append(f"word_prefix: {prefix!r} is no regular expression: {error}")
        names = tuple(str(name) for name in columns)
        return ColumnLayout(names, str(separator), texts["comment"], types, word_prefix=prefix)

    def labels(self, value: Any, path: str) -> list[str]:
        """Tags in the order of their class ids."""
        if isinstance(value, list) and all(isinstance(label, str) for label in value):
            return value
        self.errors.append(f"{path}: must be a list of tags, not {value!r}")
        return []

    def hub(self, values: Mapping[Any, Any], types: Mapping[str, str]) -> HubTable | None:
        """The data set on the hub; None without `hub`, or after any error."""
        if "hub" not in values:
            return None
        entry = self.mapping(values["hub"], "hub", HUB_KEYS)
        texts = {
            key: self.text(entry, key, "hub.", required=bool(entry) and key == "name")
            for key in HUB_KEYS
            if key not in ("splits", "labels")
        }
        splits = self.mapping(entry.get("splits", HUB_SPLITS), "hub.splits", SPLITS)
        for split in splits:
            self.text(splits, split, "hub.splits.")
        labels = self.labels(entry.get("labels", []), "hub.labels")
        if self.errors:
            return None
        given = {key: value for key, value in texts.items() if value is not None}
        return HubTable(splits=splits, labels=labels, types=types, **given)
