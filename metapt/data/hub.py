"""Labelled sets of the Hugging Face hub, read from Parquet: `datasets` no longer runs loading scripts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metapt.data.bad_input import BadInput
from metapt.data.hub_files import HubFiles, download
from metapt.data.iob2 import Sentence, tag_problem, to_iob2, with_unique_ids
from metapt.errors import OperationalError, UserError

HUB_SPLITS = {
    "train": "train",
    "dev": "validation",
    "test": "test",
}  # our names, and the usual ones on the hub


@dataclass(frozen=True)
class HubTable:
    """A labelled set on the hub with one sentence per row: a list of words and a list of tags or class ids.

    revision: branch, tag or commit.
    config, folder: the configuration or the folder to read; None: the only one of the data set.
    splits: maps our names of splits to those on the hub.
    words, tags, id: names of columns; without `id` the sentences are numbered.
    labels: the tags in the order of their class ids, if the data set does not declare them.
    types: maps entity types of the data set to others, or to O; types that it lacks keep their names.
    """

    name: str
    splits: Mapping[str, str]
    revision: str = "main"
    config: str | None = None
    folder: str | None = None
    words: str = "tokens"
    tags: str = "ner_tags"
    id: str | None = None
    labels: Sequence[str] = ()
    types: Mapping[str, str] = field(default_factory=dict)

    def files(self) -> HubFiles:
        """The files that are downloaded to read it: those of its folder, and the card, which may describe columns."""
        patterns = (f"{self.folder}/*", "README.md") if self.folder else ("*",)
        return HubFiles("dataset", self.name, self.revision, patterns)


def read_hub(table: HubTable, split: str, hint: str, bad_input: BadInput) -> list[Sentence]:
    """Load one split, in the order of its rows.

    Args:
        split: our name of the split, a key of `table.splits`.
        hint: what the user can do if the hub is not available; part of the error message.
        bad_input: handles malformed rows: different numbers of words and tags, an empty word, an unknown tag.
    Raises:
        OperationalError: the split cannot be loaded.
        UserError: a column is missing, there is no row, or `bad_input` refuses one.
    """
    import datasets

    hub_split = table.splits[split]
    parts = (f"{table.name} ({table.revision})", table.config, table.folder, hub_split)
    where = ", ".join(part for part in parts if part)
    try:
        folder = table.name if Path(table.name).is_dir() else str(download(table.files()))
        rows = datasets.load_dataset(folder, table.config, data_dir=table.folder, split=hub_split)
    except (OSError, ValueError, RuntimeError) as error:
        raise OperationalError(
            f"{where}: cannot be loaded ({type(error).__name__}: {error}); {hint}"
        ) from error
    except OperationalError as error:
        raise OperationalError(f"{error}; {hint}") from None
    missing = {table.words, table.tags, table.id} - {None, *rows.column_names}
    if missing:
        names = ", ".join(sorted(str(column) for column in missing))
        raise UserError(f"{where}: no column {names}; the columns are {', '.join(rows.column_names)}")
    labels = _labels(rows.features[table.tags], table)
    sentences = with_unique_ids(_sentences(rows, table, labels, where, bad_input))
    if not sentences:
        raise UserError(f"{where}: contains no sentence")
    return sentences


def _sentences(
    rows: Iterable[Mapping[str, Any]], table: HubTable, labels: Sequence[str], where: str, bad_input: BadInput
) -> Iterator[Sentence]:
    """The sentences of the well-formed rows that have words."""
    for number, row in enumerate(rows, 1):
        identifier = str(row[table.id]) if table.id else str(number)
        words, tags = row[table.words], row[table.tags]
        if not words:
            continue
        spelled = [labels[tag] if isinstance(tag, int) and 0 <= tag < len(labels) else tag for tag in tags]
        if problem := _problem(words, spelled, len(labels)):
            place = f"{table.id} {identifier}" if table.id else f"row {number}"
            bad_input.report(f"{where}, {place}", problem)
        else:
            yield Sentence(identifier, tuple(words), to_iob2(spelled, table.types))


def _problem(words: Sequence[Any], tags: Sequence[Any], labels: int) -> str | None:
    """What is wrong with a row, if anything is."""
    if len(words) != len(tags):
        return f"{len(words)} words, but {len(tags)} tags"
    if not all(isinstance(word, str) and word.strip(" \t") for word in words):
        return "a word is empty, or no text"
    for tag in tags:
        if isinstance(tag, int):
            return f"class id {tag}, but {labels} labels are known"
        if problem := tag_problem(str(tag)):
            return problem
    return None


def _labels(feature: Any, table: HubTable) -> Sequence[str]:
    """The tags in the order of their class ids: as the data set declares them, or else `table.labels`."""
    return getattr(getattr(feature, "feature", None), "names", None) or table.labels
