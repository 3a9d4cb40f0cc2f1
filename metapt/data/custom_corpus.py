"""Custom corpora: labelled sets that a YAML file specifies (`data.corpora`).

    name: xx_news                       name of the set in source=, data.eval_sets and results, of the form
                                        LANGUAGE_NAME; tl_ and ceb_ mark target languages of the report
    licence: CC BY 4.0                  required; language:, reference: and notes: are optional
    folder: my-news                     folder of the files, relative to this file; overridden by data.corpora=[FILE:FOLDER]
    files:                              for each split a file, or a file and a range of its sentences (from 1)
      train: train.conll
      dev: {file: rest.conll, sentences: 1-500}
      test: {file: rest.conll, sentences: 501-}
    columns: [word, pos, tag]           from left to right; only `word` and `tag` are used
    separator: tab                      or space, or whitespace (any sequence of both)
    comment: "# id"                     prefix of comment lines
    types: {person: PER, MISC: O}       entity types other than PER, ORG and LOC
    documents: newdoc                   marks of documents in the files: newdoc, docstart, sentence (none) or auto; the
                                        default is data.documents
    hub:                                a data set of the hub, used if no folder is given
      name: owner/data-set
      revision: main                    branch, tag or commit
      config: default                   configuration; folder: folder of the repository; both are optional
      splits: {train: train, dev: validation, test: test}
      words: tokens                     columns of the words, the tags and the ids (default: sentences are numbered)
      tags: ner_tags
      id: id
      labels: [O, B-PER, ...]           the tags in the order of their class ids, if the data set does not declare them

Presets, which are selected by name, are stored in metapt/data/corpora/.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from metapt.data.corpus_spec import SPLITS, CorpusSpec, read_spec
from metapt.data.documents import refuse_marks
from metapt.data.hub import HubTable, read_hub
from metapt.data.iob2 import Sentence, read_iob2
from metapt.errors import UserError

PRESETS = Path(__file__).parent / "corpora"
ENTRY = re.compile(r"(?P<name>.+?\.ya?ml|\w+)(?::(?P<folder>.+))?", re.ASCII)
FOLDER_HINT = "give the folder of its files after its name or YAML file: data.corpora=[...:FOLDER]"


class CustomCorpus:
    """A labelled set as its specification describes it, read from a folder or from the hub.

    Attributes:
        name, licence, language: of the set.
        splits: the splits it has.
        hub: the table of the hub that is read; None if files are.
        read: reads one split, in file order. It raises UserError if the data do not match the specification, and
            OperationalError if the hub is not available.

    Args:
        spec: the parsed YAML file.
        folder: folder of the files; takes precedence over the folder of the specification and over the hub.
        documents: the marks of documents that are used if the specification does not name them.
    Raises:
        UserError: neither a folder nor a hub data set is known, a file is missing, or marks of documents are chosen that
            a hub data set cannot have.
    """

    def __init__(self, spec: CorpusSpec, folder: Path | None, documents: str = "auto"):
        self.name, self.licence, self.language = spec.name, spec.licence, spec.language
        self._spec = spec
        folder = folder or spec.folder
        documents = spec.documents or documents
        self.hub = None if folder else spec.hub
        available: Mapping[str, Any]
        self.read: Callable[[str], list[Sentence]]
        if folder is not None:
            self._check_files(folder)
            available = spec.files
            layout = replace(spec.layout, documents=documents)
            self.read = partial(self._read_file, folder, cache(partial(read_iob2, layout=layout)))
        elif spec.hub is not None:
            refuse_marks(documents, f"{self.name} on the hub")
            available = spec.hub.splits
            self.read = partial(self._read_hub, spec.hub)
        else:
            raise UserError(f"{self.name}: no folder is known for its files; {FOLDER_HINT}")
        self.splits = tuple(split for split in SPLITS if split in available)

    def _read_hub(self, table: HubTable, split: str) -> list[Sentence]:
        return read_hub(table, split, f"if you have its files, {FOLDER_HINT}")

    def _read_file(self, folder: Path, read: Callable[[Path], list[Sentence]], split: str) -> list[Sentence]:
        source = self._spec.files[split]
        sentences = read(folder / source.file)
        selected = sentences[source.first - 1 : source.last]
        if len(selected) < (source.last or source.first) - source.first + 1:
            raise UserError(
                f"{folder / source.file}: has {len(sentences)} sentences, but the {split} split of {self.name} ranges "
                f"from {source.first} to {source.last or 'the end'}"
            )
        return selected

    def _check_files(self, folder: Path) -> None:
        if not self._spec.files:
            raise UserError(f"{self.name}: specifies no files, so it cannot be read from {folder}")
        if not folder.is_dir():
            raise UserError(f"{self.name}: {folder}: no such folder")
        required = dict.fromkeys(source.file for source in self._spec.files.values())
        missing = [file for file in required if not (folder / file).is_file()]
        if missing:
            present = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
            raise UserError(
                f"{self.name}: {folder} has no {', '.join(missing)}; it contains {present or 'nothing'}"
            )


def open_custom_corpora(entries: Sequence[str], documents: str = "auto") -> list[CustomCorpus]:
    """Open the sets of `data.corpora`. Each entry is a preset or a YAML file, optionally followed by `:FOLDER`.

    Args:
        documents: the key `data.documents`, for sets whose specification does not name the marks of documents.
    Raises:
        UserError: lists every error in the entries and in the files they name, one per line.
    """
    corpora, errors = [], []
    for entry in entries:
        try:
            match = ENTRY.fullmatch(entry)
            if match is None:
                raise UserError(f"{entry!r}: must be NAME or FILE.yaml, optionally followed by :FOLDER")
            folder = Path(match["folder"]).expanduser() if match["folder"] else None
            corpora.append(CustomCorpus(read_spec(_spec_file(match["name"])), folder, documents))
        except UserError as error:
            errors += str(error).splitlines()
    if errors:
        raise UserError("\n  ".join([f"data.corpora: {len(errors)} error(s)", *errors]))
    return corpora


def presets() -> list[str]:
    """The names of the specifications that are shipped with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _spec_file(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        return Path(name).expanduser()
    if name not in presets():
        raise UserError(
            f"{name!r}: no such preset; the presets are {', '.join(presets())}, or give a .yaml file"
        )
    return PRESETS / f"{name}.yaml"
