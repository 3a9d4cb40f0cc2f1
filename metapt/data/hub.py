"""Labelled sets of the Hugging Face hub, read from Parquet: `datasets` runs no loading scripts any more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metapt.data.iob2 import OWN_TYPES, Sentence, check_tag, distinct_ids, repaired
from metapt.errors import OperationalError, UserError

HUB_SPLITS = {"train": "train", "dev": "validation", "test": "test"}  # our names, and those of most data sets


@dataclass(frozen=True)
class HubTable:
    """A set on the hub: a row a sentence, with its words and as many tags, as class ids or spelled out.

    revision: branch, tag or commit.
    config, folder: the configuration or the folder to read; absent: the data set's only one.
    splits: split as it is called here to what it is called there.
    words, tags, id: columns; without `id` the sentences are numbered.
    labels: tags in the order of their ids, where the data set does not declare them.
    types: entity types as they are spelled there, to PER, ORG, LOC or O.
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
    types: Mapping[str, str] = field(default_factory=lambda: OWN_TYPES)


def read_hub(table: HubTable, split: str, hint: str) -> list[Sentence]:
    """One split, in the order of its rows.

    Args:
        split: as it is called here, one of `table.splits`.
        hint: what the user can do where the hub cannot be reached.
    Raises:
        OperationalError: it cannot be loaded.
        UserError: a column is missing, words and tags are not equally many, a tag is unknown, or there is no row.
    """
    import datasets

    there = table.splits[split]
    where = ", ".join(filter(None, (f"{table.name} ({table.revision})", table.config, table.folder, there)))
    try:
        rows = datasets.load_dataset(
            table.name, table.config, data_dir=table.folder, split=there, revision=table.revision
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise OperationalError(
            f"{where}: cannot be loaded ({type(error).__name__}: {error}); {hint}"
        ) from error
    missing = {table.words, table.tags, table.id} - {None, *rows.column_names}
    if missing:
        names = ", ".join(sorted(str(column) for column in missing))
        raise UserError(f"{where}: no column {names}; it has {', '.join(rows.column_names)}")
    labels = _labels(rows.features[table.tags], table)
    found = distinct_ids(
        _sentence(row, number, table, labels, where) for number, row in enumerate(rows, 1) if row[table.words]
    )
    if not found:
        raise UserError(f"{where}: holds no sentence")
    return found


def _sentence(
    row: Mapping[str, Any], number: int, table: HubTable, labels: Sequence[str], where: str
) -> Sentence:
    identifier = str(row[table.id]) if table.id else str(number)
    words, tags = row[table.words], row[table.tags]
    where = f"{where}, {table.id} {identifier}" if table.id else f"{where}, row {number}"
    if len(words) != len(tags):
        raise UserError(f"{where}: {len(words)} words, but {len(tags)} tags")
    spelled = []
    for tag in tags:
        if isinstance(tag, int) and not 0 <= tag < len(labels):
            raise UserError(f"{where}: class id {tag}, but {len(labels)} labels are known")
        spelled.append(labels[tag] if isinstance(tag, int) else tag)
        check_tag(spelled[-1], table.types, where)
    return Sentence(identifier, tuple(words), repaired(spelled, table.types))


def _labels(feature: Any, table: HubTable) -> Sequence[str]:
    """The tags behind the class ids: as the data set declares them, else as we were told."""
    return getattr(getattr(feature, "feature", None), "names", None) or table.labels
