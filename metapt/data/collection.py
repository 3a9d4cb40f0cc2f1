"""Labelled sets by name and split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence

from metapt.data.bad_input import BadInput
from metapt.data.custom_corpus import ReadReport
from metapt.data.iob2 import Sentence
from metapt.errors import UserError


class Collection:
    """Labelled sets by name and split. A split is read when it is first loaded, and then kept in memory.

    Attributes:
        paths: maps paths that were given as sources or sets to the names of their sets.
        report: what reading the splits has reported so far.

    Args:
        where: name of the collection in error messages.
        splits: maps the name of each set to its splits.
        read: reads one split of one set.
        custom_sets: language and licence of each set that `data.corpora` added.
        not_in_all: sets that `source=all` does not include.
    """

    def __init__(
        self,
        where: str,
        splits: Mapping[str, Sequence[str]],
        read: Callable[[str, str], list[Sentence]],
        custom_sets: Mapping[str, Mapping[str, str]] | None = None,
        not_in_all: Iterable[str] = (),
        paths: Mapping[str, str] | None = None,
        report: ReadReport | None = None,
    ):
        self.where = where
        self.splits = {name: tuple(splits[name]) for name in sorted(splits)}
        self.custom_sets = dict(custom_sets or {})
        self.not_in_all = frozenset(not_in_all)
        self.paths = dict(paths or {})
        self.report = report or ReadReport(BadInput("refuse"))
        self._read = read
        self._loaded: dict[tuple[str, str], list[Sentence]] = {}

    def name_of(self, item: str) -> str:
        """The name of the set that a path is, or the name itself."""
        return self.paths.get(item, item)

    def notes(self) -> list[str]:
        """How the splits that were loaded so far were read, and what was left out of them."""
        skipped = self.report.bad_input.summary()
        return [*self.report.remarks, *([f"sentences {skipped}"] if skipped else [])]

    def sets(self, split: str) -> list[str]:
        """The sets that have this split, in alphabetical order."""
        return [name for name, splits in self.splits.items() if split in splits]

    def load(self, name: str, split: str) -> list[Sentence]:
        """The sentences of one split, in file order.

        Raises:
            UserError: the set or split does not exist (the message lists those that do), or a file is malformed.
        """
        if name not in self.splits:
            raise UserError(f"{self.where} has no set {name!r}; its sets are {', '.join(self.splits)}")
        if split not in self.splits[name]:
            raise UserError(
                f"{self.where}: {name} has no {split} split; its splits are {', '.join(self.splits[name])}"
            )
        if (name, split) not in self._loaded:
            self._loaded[name, split] = self._read(name, split)
        return self._loaded[name, split]

    def fingerprint(self, parts: Iterable[tuple[str, str]]) -> str:
        """SHA-256 of the words, tags and documents of some (set, split) pairs. It does not depend on where they are stored."""
        digest = hashlib.sha256()
        for name, split in sorted(set(parts)):
            content = [
                (sentence.words, sentence.tags, sentence.document) for sentence in self.load(name, split)
            ]
            digest.update(json.dumps([name, split, content]).encode())
        return digest.hexdigest()
