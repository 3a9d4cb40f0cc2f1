"""Sources of pretraining text: the demo data, text files, or a data set of the hub.

A source has an identity (equal identities give equal documents). It yields its documents as often as they are
requested, always in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from metapt.config import CorpusConfig
from metapt.data import demo, text_files
from metapt.data.bad_input import BadInput
from metapt.data.hub_files import HubFiles, current_commit
from metapt.data.text_files import Document
from metapt.errors import OperationalError, UserError, first_line
from metapt.files import file_sha256


@dataclass(frozen=True)
class TokenizedDocument:
    """The token ids of a row of a tokenized data set, and its location."""

    ids: list[int]
    location: str


CorpusDocument = Document | TokenizedDocument


class Source(Protocol):
    # Of the hub data set; None before it is read, and of other sources. It is read at a commit that is set.
    commit: str | None

    def identity(self) -> list[dict[str, Any]]:
        """One entry per file or data set, for the manifest; it determines the content of the corpus."""

    def documents(self, bad_input: BadInput) -> Iterator[CorpusDocument]:
        """Yield all well-formed documents; malformed ones are reported to `bad_input`."""


def open_source(data: CorpusConfig) -> Source:
    """Open the source that the `data` section of a configuration selects."""
    if data.name == "demo":
        return DemoSource()
    if data.name == "hub":
        return HubSource(data)
    if data.text_dir is None:
        raise UserError(
            "data.text_dir is required with data=text (a folder of .txt, .jsonl, .json or .parquet files)"
        )
    return TextSource(Path(data.text_dir).expanduser(), data.txt_document, data.on_bad_input)


class DemoSource:
    """The documents of metapt.data.demo: a function of its code and of Faker's word lists."""

    commit: str | None = None

    def identity(self) -> list[dict[str, Any]]:
        code = sorted(Path(demo.__file__).parent.glob("demo*.py"))
        hashes = {path.name: file_sha256(path) for path in code}
        return [{"generated": hashes, "seed": demo.SEED, "faker": metadata.version("faker")}]

    def documents(self, bad_input: BadInput) -> Iterator[CorpusDocument]:
        for number, text in enumerate(self._texts, start=1):
            yield from text_files.check_document(text, f"demo document {number}", bad_input)

    @cached_property
    def _texts(self) -> list[str]:
        return list(demo.documents(demo.SEED))


class TextSource:
    """One text file, or all text files in a folder.

    Args:
        txt_document, on_bad_input: as in CorpusConfig.
    """

    commit: str | None = None

    def __init__(self, root: Path, txt_document: str, on_bad_input: str):
        self._root = root
        self._txt_document, self._on_bad_input = txt_document, on_bad_input

    def identity(self) -> list[dict[str, Any]]:
        base = self._root if self._root.is_dir() else self._root.parent
        entries = []
        for path in text_files.find_files(self._root, BadInput(self._on_bad_input)):
            try:
                entry = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror}") from error
            entries.append({"file": path.relative_to(base).as_posix(), **entry})
        return entries

    def documents(self, bad_input: BadInput) -> Iterator[CorpusDocument]:
        for path in text_files.find_files(self._root, bad_input):
            yield from text_files.read_file(path, self._txt_document, bad_input)


class HubSource:
    """One column of a hub data set, or of a folder laid out like one, with text or token ids; a hub data set is streamed at one commit."""

    def __init__(self, data: CorpusConfig):
        self._data = data
        self.commit: str | None = None

    def identity(self) -> list[dict[str, Any]]:
        data = self._data
        chosen = {"split": data.hub_split, "column": data.hub_column}
        if (folder := Path(data.hub_name)).is_dir():
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            hashes = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
            return [{"folder": hashes, **chosen}]
        return [{"hub": data.hub_name, "revision": data.hub_revision, **chosen}]

    def documents(self, bad_input: BadInput) -> Iterator[CorpusDocument]:
        """Yield the rows in order.

        Raises:
            UserError: the data set has no such column, or the column contains neither text nor lists of token ids.
        """
        name, column = f"{self._data.hub_name}[{self._data.hub_split}]", self._data.hub_column
        for number, row in enumerate(self._rows(), start=1):
            location = f"{name} row {number}"
            if column not in row:
                raise UserError(
                    f"{name}: no column '{column}' (data.hub_column); the columns are {', '.join(row)}"
                )
            value = row[column]
            if isinstance(value, str):
                yield from text_files.check_document(value, location, bad_input)
            elif value is None or (isinstance(value, list) and not value):
                bad_input.report(location, text_files.EMPTY)
            elif not isinstance(value, list) or not all(isinstance(entry, int) for entry in value):
                raise UserError(
                    f"{location}: column '{column}' (data.hub_column) contains neither text nor lists of token ids, "
                    f"but {type(value[0] if isinstance(value, list) else value).__name__}"
                )
            else:
                yield TokenizedDocument(value, location)

    def _rows(self) -> Iterator[dict[str, Any]]:
        import datasets

        data = self._data
        if self.commit is None and not Path(data.hub_name).is_dir():
            self.commit = current_commit(HubFiles("dataset", data.hub_name, data.hub_revision))
        revision = self.commit or data.hub_revision
        try:
            yield from datasets.load_dataset(
                data.hub_name, split=data.hub_split, revision=revision, streaming=True
            )
        except (ValueError, datasets.exceptions.DatasetNotFoundError) as error:
            raise UserError(f"{data.hub_name}[{data.hub_split}]: {first_line(error)}") from error
        except OSError as error:
            raise OperationalError(f"{data.hub_name}: cannot be read: {first_line(error)}") from error
