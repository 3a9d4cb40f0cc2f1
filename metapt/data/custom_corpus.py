"""Custom corpora: labelled sets that a YAML file specifies (`data.corpora`).

    name: xx_news                       name of the set in source=, data.eval_sets and results, of the form
                                        LANGUAGE_NAME; tl_ and ceb_ mark target languages of the report
    licence: CC BY 4.0                  required; language:, reference: and notes: are optional
    folder: my-news                     folder of the files, relative to this file; overridden by data.corpora=[FILE:FOLDER]
    files:                              for each split a file, or a file and a range of its sentences (from 1); without it,
                                        files are found by their names (train, dev, valid, testa, test, testb, ...)
      train: train.conll
      dev: {file: rest.conll, sentences: 1-500}
      test: {file: rest.conll, sentences: 501-}
    columns: [word, pos, tag]           from left to right; only `word` and `tag` are used; without it, they are recognized
    separator: tab                      or space, or whitespace (any sequence of both)
    comment: "# id"                     prefix of comment lines
    word_prefix: "[a-z]+:"              regular expression of what is removed from the beginning of each word
    types: {person: PER, MISC: O}       entity types to rename, or to leave out; others keep their names
    labels: [O, B-PER, ...]             the tags in the order of their class ids, in JSON whose tags are numbers
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

Files are columns, JSON or .spacy (`metapt.data.labelled_files`). A name with {folder} describes a set in each subfolder
that has the files. Presets, which are selected by name, are stored in metapt/data/corpora/.

A set needs no description: data.corpora also takes a file or a folder by its path, as it is or with a name (NAME:PATH).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from metapt.data.bad_input import BadInput
from metapt.data.corpus_spec import FOLDER_NAME, SPLITS, CorpusSpec, FileRange, read_spec
from metapt.data.documents import refuse_marks
from metapt.data.hub import HubTable, read_hub
from metapt.data.iob2 import Sentence
from metapt.data.labelled_files import FileOptions, read_sentences
from metapt.data.labelled_folders import set_name, split_files, split_of, subfolders_with
from metapt.errors import UserError, listed

PRESETS = Path(__file__).parent / "corpora"
YAML_ENTRY = re.compile(r"(?P<file>.+?\.ya?ml)(?::(?P<folder>.+))?")
NAMED_ENTRY = re.compile(r"(?P<name>\w[\w.-]*):(?P<path>.+)", re.ASCII)
FOLDER_HINT = "give the folder of its files after its name or YAML file: data.corpora=[...:FOLDER]"
LISTED = 8  # names in a folder that an error lists


@dataclass
class ReadReport:
    """What reading labelled sets has to report.

    Attributes:
        bad_input: handles malformed sentences of all files.
        remarks: how files were read.
    """

    bad_input: BadInput
    remarks: list[str] = field(default_factory=list)


class CustomCorpus:
    """A labelled set of files, or of the hub.

    Attributes:
        name, licence, language: of the set; licence and language are empty if nobody states them.
        splits: the splits it has.
        hub: the table of the hub that is read; None if files are.
        read: reads one split, in file order. It raises UserError if the data do not match the specification, and
            OperationalError if the hub is not available.
    """

    def __init__(
        self,
        name: str,
        splits: Iterable[str],
        read: Callable[[str], list[Sentence]],
        licence: str = "",
        language: str = "",
        hub: HubTable | None = None,
    ):
        self.name, self.licence, self.language = name, licence, language
        self.splits = tuple(split for split in SPLITS if split in set(splits))
        self.read, self.hub = read, hub

    def joined(self, other: CustomCorpus) -> CustomCorpus:
        """A set of files with the splits of both; their licences are not known."""
        splits = (*self.splits, *other.splits)
        return CustomCorpus(
            self.name, splits, lambda split: (other if split in other.splits else self).read(split)
        )


def open_custom_corpora(
    entries: Sequence[str], documents: str = "auto", report: ReadReport | None = None
) -> list[CustomCorpus]:
    """Open the sets of `data.corpora`: presets and YAML files, each optionally followed by `:FOLDER`; paths; NAME:PATH.

    Args:
        documents: the key `data.documents`, for sets whose specification does not name the marks of documents.
        report: receives malformed input and remarks when splits are read; None: malformed input is refused.
    Raises:
        UserError: lists every error in the entries and in the files they name, one per line.
    """
    report = report or ReadReport(BadInput("refuse"))
    corpora, errors = [], []
    for entry in entries:
        try:
            corpora += _open_entry(entry, documents, report)
        except UserError as error:
            errors += str(error).splitlines()
    if errors:
        raise UserError("\n  ".join([f"data.corpora: {len(errors)} error(s)", *errors]))
    return corpora


def open_path(
    path: Path, documents: str, report: ReadReport, name: str = "", whole: str = "train"
) -> CustomCorpus:
    """Open a file, or a folder with a file for each split, without a description.

    Args:
        name: of the set; empty: that of the file or folder.
        whole: the split of a file whose name names none.
    Raises:
        UserError: there is no such path, or the folder has no file with the name of a split.
    """
    if path.is_dir():
        files = split_files(path)
        if not files:
            raise UserError(
                f"{path}: no file has the name of a split ({', '.join(SPLITS)}); it contains {_contents(path)}"
            )
    elif path.is_file():
        files = {split_of(path.name) or whole: path}
    else:
        raise UserError(f"{path}: no such file or folder")
    options = FileOptions(types={}, documents=documents)
    read = cache(
        partial(read_sentences, options=options, bad_input=report.bad_input, remark=report.remarks.append)
    )
    return CustomCorpus(name or set_name(path), files, lambda split: read(files[split]))


def presets() -> list[str]:
    """The names of the specifications that are shipped with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _open_entry(entry: str, documents: str, report: ReadReport) -> list[CustomCorpus]:
    if match := YAML_ENTRY.fullmatch(entry):
        folder = Path(match["folder"]).expanduser() if match["folder"] else None
        return _described(read_spec(Path(match["file"]).expanduser()), folder, documents, report)
    if entry in presets():
        return _described(read_spec(PRESETS / f"{entry}.yaml"), None, documents, report)
    if match := NAMED_ENTRY.fullmatch(entry):
        path = Path(match["path"]).expanduser()
        if match["name"] in presets():
            return _described(read_spec(PRESETS / f"{match['name']}.yaml"), path, documents, report)
        return [open_path(path, documents, report, match["name"])]
    path = Path(entry).expanduser()
    if not path.exists():
        raise UserError(
            f"{entry!r}: no such preset, file or folder; the presets are {', '.join(presets())}, or give a .yaml file"
        )
    return [open_path(path, documents, report)]


def _described(
    spec: CorpusSpec, folder: Path | None, documents: str, report: ReadReport
) -> list[CustomCorpus]:
    """The sets of a specification.

    Args:
        folder: of the files; takes precedence over the folder of the specification and over the hub.
        documents: the marks of documents that are used if the specification does not name them.
    Raises:
        UserError: neither a folder nor a hub data set is known, a file is missing, or marks of documents are chosen that
            a hub data set cannot have.
    """
    folder, documents = folder or spec.folder, spec.documents or documents
    if folder is None and spec.hub is not None:
        refuse_marks(documents, f"{spec.name} on the hub")
        hint = f"if you have its files, {FOLDER_HINT}"
        read = partial(read_hub, spec.hub, hint=hint, bad_input=report.bad_input)
        return [CustomCorpus(spec.name, spec.hub.splits, read, spec.licence, spec.language, spec.hub)]
    if folder is None:
        raise UserError(f"{spec.name}: no folder is known for its files; {FOLDER_HINT}")
    if not folder.is_dir():
        raise UserError(f"{spec.name}: {folder}: no such folder")
    if FOLDER_NAME not in spec.name:
        return [_in_folder(spec, folder, spec.name, documents, report)]
    files = [source.file for source in spec.files.values()]
    found = subfolders_with(folder, files)
    if not found:
        raise UserError(
            f"{spec.name}: no folder in {folder} has {', '.join(files)}; it contains {_contents(folder)}"
        )
    names = [spec.name.replace(FOLDER_NAME, path.resolve().name) for path in found]
    for name in names:
        if names.count(name) > 1:
            same = ", ".join(str(path) for path, other in zip(found, names, strict=True) if other == name)
            raise UserError(
                f"{name}: is in several folders ({same}); give a folder that holds only one of them"
            )
    return [_in_folder(spec, path, name, documents, report) for path, name in zip(found, names, strict=True)]


def _in_folder(spec: CorpusSpec, folder: Path, name: str, documents: str, report: ReadReport) -> CustomCorpus:
    """The set of a specification in one folder."""
    files = dict(spec.files) or {split: FileRange(path.name) for split, path in split_files(folder).items()}
    missing = [
        file for file in {source.file: None for source in files.values()} if not (folder / file).is_file()
    ]
    if missing or not files:
        what = ", ".join(missing) or f"file with the name of a split ({', '.join(SPLITS)})"
        raise UserError(f"{name}: {folder} has no {what}; it contains {_contents(folder)}")
    options = FileOptions(spec.layout, spec.types, documents, spec.labels)
    read = cache(
        partial(read_sentences, options=options, bad_input=report.bad_input, remark=report.remarks.append)
    )

    def read_split(split: str) -> list[Sentence]:
        source = files[split]
        sentences = read(folder / source.file)
        selected = sentences[source.first - 1 : source.last]
        if len(selected) < (source.last or source.first) - source.first + 1:
            raise UserError(
                f"{folder / source.file}: has {len(sentences)} sentences, but the {split} split of {name} ranges "
                f"from {source.first} to {source.last or 'the end'}"
            )
        return selected

    return CustomCorpus(name, files, read_split, spec.licence, spec.language)


def _contents(folder: Path) -> str:
    return listed(sorted(path.name for path in folder.iterdir()), LISTED) or "nothing"
