"""Where pretraining text comes from: the generated data, text files, or a hub data set.

A source tells what it is (`identity`: equal identities give equal documents) and yields its documents, as
often as it is asked to, always in the same order.
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
from metapt.data.text_files import Document, Faults
from metapt.errors import OperationalError, UserError
from metapt.files import file_sha256


@dataclass(frozen=True)
class Tokenised:
    """A row of a data set that is already tokenised, and where it stands."""

    ids: list[int]
    place: str


Item = Document | Tokenised


class Source(Protocol):
    def identity(self) -> list[dict[str, Any]]:
        """One entry per file or data set, as it stands in the manifest; decides what the corpus is."""

    def documents(self, faults: Faults) -> Iterator[Item]:
        """All good documents; bad ones go to `faults`."""


def open_source(data: CorpusConfig) -> Source:
    """The source that `data.name` and its keys mean."""
    if data.name == "demo":
        return DemoSource()
    if data.name == "hub":
        return HubSource(data)
    if data.text_dir is None:
        raise UserError("data.text_dir is required with data=text (a folder of .txt, .jsonl or .parquet)")
    return TextSource(Path(data.text_dir).expanduser(), data.txt_document)


class DemoSource:
    """The documents that metapt.data.demo generates: a function of its code and of Faker's lists."""

    def identity(self) -> list[dict[str, Any]]:
        code = sorted(Path(demo.__file__).parent.glob("demo*.py"))
        hashes = {path.name: file_sha256(path) for path in code}
        return [{"generated": hashes, "seed": demo.SEED, "faker": metadata.version("faker")}]

    def documents(self, faults: Faults) -> Iterator[Item]:
        for number, text in enumerate(self._texts, start=1):
            yield from text_files.checked(text, f"generated document {number}", faults)

    @cached_property
    def _texts(self) -> list[str]:
        return list(demo.documents(demo.SEED))


class TextSource:
    """A text file, or all text files under a folder."""

    def __init__(self, root: Path, txt_document: str):
        self._root = root
        self._txt_document = txt_document

    def identity(self) -> list[dict[str, Any]]:
        base = self._root if self._root.is_dir() else self._root.parent
        entries = []
        for path in text_files.find_files(self._root, Faults("skip")):
            try:
                entry = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror}") from error
            entries.append({"file": path.relative_to(base).as_posix(), **entry})
        return entries

    def documents(self, faults: Faults) -> Iterator[Item]:
        for path in text_files.find_files(self._root, faults):
            yield from text_files.read_file(path, self._txt_document, faults)


class HubSource:
    """One column of a hub data set, streamed: text, or token ids."""

    def __init__(self, data: CorpusConfig):
        self._data = data

    def identity(self) -> list[dict[str, Any]]:
        data = self._data
        return [
            {
                "hub": data.hub_name,
                "revision": data.hub_revision,
                "split": data.hub_split,
                "column": data.hub_column,
            }
        ]

    def documents(self, faults: Faults) -> Iterator[Item]:
        """Rows in order: text as it is, lists of token ids for those of a tokenised set.

        Raises:
            UserError: the data set has no such column, or it holds neither text nor lists of token ids.
        """
        name, column = f"{self._data.hub_name}[{self._data.hub_split}]", self._data.hub_column
        for number, row in enumerate(self._rows(), start=1):
            place = f"{name} row {number}"
            if column not in row:
                raise UserError(f"{name}: no column '{column}' (data.hub_column); it has {', '.join(row)}")
            value = row[column]
            if isinstance(value, str):
                yield from text_files.checked(value, place, faults)
            elif value is None or (isinstance(value, list) and not value):
                faults.add(place, text_files.EMPTY)
            elif not isinstance(value, list) or not all(isinstance(entry, int) for entry in value):
                raise UserError(
                    f"{place}: column '{column}' (data.hub_column) holds neither text nor lists of token ids, "
                    f"but {type(value[0] if isinstance(value, list) else value).__name__}"
                )
            else:
                yield Tokenised(value, place)

    def _rows(self) -> Iterator[dict[str, Any]]:
        import datasets

        data = self._data
        try:
            yield from datasets.load_dataset(
                data.hub_name, split=data.hub_split, revision=data.hub_revision, streaming=True
            )
        except (ValueError, datasets.exceptions.DatasetNotFoundError) as error:
            raise UserError(f"{data.hub_name}[{data.hub_split}]: {str(error).splitlines()[0]}") from error
        except OSError as error:
            raise OperationalError(
                f"{data.hub_name}: cannot be read: {str(error).splitlines()[0]}"
            ) from error
