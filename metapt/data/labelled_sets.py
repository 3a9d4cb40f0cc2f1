"""Opening collections of labelled sets: a folder of IOB2 files, the hub, the demo data, custom corpora, single files.

Universal NER v1: Mayhew et al. 2024, arXiv 2311.09122. Sets have the names of the hub (`en_ewt`); splits are `train`,
`dev` and `test`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from metapt.config import SetsConfig
from metapt.data.bad_input import BadInput
from metapt.data.collection import Collection
from metapt.data.columns import UNER_LAYOUT, UNER_TYPES
from metapt.data.custom_corpus import CustomCorpus, ReadReport, open_custom_corpora, open_path
from metapt.data.documents import refuse_marks
from metapt.data.held_out import with_held_out_splits
from metapt.data.hub import HUB_SPLITS, HubTable, read_hub
from metapt.data.iob2 import TAGS, Sentence, read_iob2
from metapt.data.labelled_folders import SPLITS, uner_files
from metapt.errors import UserError, listed

SOURCES = (
    "da_ddt",
    "en_ewt",
    "hr_set",
    "pt_bosque",
    "sk_snk",
    "sr_set",
    "sv_talbanken",
    "zh_gsd",
    "zh_gsdsimp",
)
TEST_ONLY = ("ceb_gja", "de_pud", "en_pud", "pt_pud", "ru_pud", "sv_pud", "tl_trg", "tl_ugnayan", "zh_pud")
ALL_SETS = SOURCES + TEST_ONLY


def open_collection(data: SetsConfig, source: str | None = None, sets: Sequence[str] = ()) -> Collection:
    """Open the collection that a configuration selects, with the sets of `data.corpora` and held-out splits.

    Files of one folder that are given by their paths, and are named after its splits, are one set (`train.conll`, `test.conll`).

    Args:
        source: of a run; its parts that are paths of files or folders are added as sets.
        sets: to score on; paths among them are added too, as test sets.
    Raises:
        UserError: `data.uner_dir` is not a folder, or contains no set; entries of `data.corpora` are wrong (all errors are
            listed at once); a path does not exist; two sets have the same name.
    """
    report = ReadReport(BadInput(data.on_bad_input))
    collection = _base_collection(data, report)
    corpora = open_custom_corpora(data.corpora, data.documents, report)
    paths: dict[str, str] = {}
    opened: dict[tuple[str, Path], CustomCorpus] = {}
    given = dict.fromkeys((source or "").split("+"), "train") | dict.fromkeys(sets, "test")
    for item, whole in given.items():
        if _is_path(item):
            path = Path(item).expanduser()
            corpus = open_path(path, data.documents, report, whole=whole)
            paths[item] = corpus.name
            place = (corpus.name, path.resolve().parent)
            if place not in opened:
                opened[place] = corpus
            elif {*corpus.splits}.isdisjoint(opened[place].splits):
                opened[place] = opened[place].joined(corpus)
            else:
                corpora.append(corpus)
    corpora += opened.values()
    if corpora:
        collection = _with_custom_corpora(collection, corpora, paths)
    return with_held_out_splits(collection, data)


def _is_path(item: str) -> bool:
    """Whether an item of a source or of a list of sets is a path rather than a name."""
    return "/" in item or Path(item).expanduser().is_file()


def hub_tables(data: SetsConfig) -> list[HubTable]:
    """The tables of the hub that a collection reads; one for all sets of Universal NER."""
    tables = [corpus.hub for corpus in open_custom_corpora(data.corpora, data.documents) if corpus.hub]
    if data.name == "uner" and data.uner_dir is None:
        tables.append(HubTable(data.hub_name, HUB_SPLITS, data.hub_revision))
    return [table for table in tables if not Path(table.name).is_dir()]


def source_sets(collection: Collection, source: str, splits: Sequence[str] = ("train", "dev")) -> list[str]:
    """The sets of a fine-tuning source: one set, several joined with `+`, or `all` sets with a train and a dev split.

    Args:
        splits: those that training needs: without "dev", sets that have none can be sources too.

    `all` does not include the sets that `data.corpora` adds to others. They must be named (`all+my_news`): most of them
    serve as test sets, and a Tagalog set in `all` would end the zero-shot setting unnoticed.

    Raises:
        UserError: a set is unknown, is named twice, or lacks one of the splits.
    """
    trainable = [
        name for name in collection.sets("train") if "dev" not in splits or name in collection.sets("dev")
    ]
    all_sets = [name for name in trainable if name not in collection.not_in_all]
    items = map(collection.name_of, source.split("+"))
    names = [name for item in items for name in (all_sets if item == "all" else [item])]
    for name in names:
        if name not in trainable:
            known = ", ".join(trainable) or "none"
            raise UserError(
                f"source={source}: {_why_not_trainable(collection, name)}; sources are {known}, or all"
            )
        if names.count(name) > 1:
            raise UserError(f"source={source}: duplicate set {name!r}")
    if not names:
        raise UserError(
            f"source={source}: {collection.where} has no set with a {' and a '.join(splits)} split"
        )
    return names


def _why_not_trainable(collection: Collection, name: str) -> str:
    if name in collection.sets("train"):
        advice = "data.dev_fraction=0.1 holds out a tenth of it"
        return f"{name!r} has no dev split in {collection.where} ({advice})"
    if any(name in collection.sets(split) for split in SPLITS):
        return f"{name!r} has no train split in {collection.where}"
    return f"{name!r} does not exist in {collection.where}"


def evaluated_sets(
    collection: Collection, requested: Sequence[str], key: str = "data.eval_sets"
) -> list[str]:
    """The requested sets with a test split; all of them if none is requested.

    Args:
        key: that requests them, for error messages.
    Raises:
        UserError: a requested set has no test split.
    """
    known = collection.sets("test")
    requested = [collection.name_of(item) for item in requested]
    missing = [name for name in requested if name not in known]
    if missing:
        raise UserError(f"{key}: no test split of {', '.join(missing)}; available are {', '.join(known)}")
    return [name for name in known if name in requested or not requested]


def _base_collection(data: SetsConfig, report: ReadReport) -> Collection:
    if data.name == "demo":
        from metapt.data import demo

        refuse_marks(data.documents, "the demo data")
        return Collection("the demo data", demo.SET_SPLITS, demo.sentences, report=report)
    if data.name == "custom":
        return Collection("data.corpora", {}, lambda name, split: [], report=report)
    if data.uner_dir is not None:
        return _folder_collection(Path(data.uner_dir).expanduser(), data.documents, report)
    refuse_marks(data.documents, f"{data.hub_name} on the hub")
    return _hub_collection(data.hub_name, data.hub_revision, report)


def _folder_collection(folder: Path, documents: str, report: ReadReport) -> Collection:
    if not folder.is_dir():
        raise UserError(f"data.uner_dir={folder}: no such folder")
    files, unused = uner_files(folder)
    if not files:
        names = listed(unused, 5) or "no folder"
        raise UserError(
            f"data.uner_dir={folder}: contains neither SET/SPLIT.iob2 nor UNER_*/SET-ud-SPLIT.iob2 (splits are "
            f"{', '.join(SPLITS)}); it contains {names}"
        )
    if unused:
        report.remarks.append(f"{folder}: no labelled set in {listed(unused, 5)}")
    splits: dict[str, list[str]] = {}
    for name, split in files:
        splits.setdefault(name, []).append(split)
    layout = replace(UNER_LAYOUT, documents=documents)

    def read(name: str, split: str) -> list[Sentence]:
        return read_iob2(files[name, split], layout, report.bad_input)

    return Collection(str(folder), splits, read, report=report)


def _hub_collection(hub_name: str, revision: str, report: ReadReport) -> Collection:
    """Universal NER on the hub. Nothing is downloaded before a set is loaded.

    A set is selected by its folder, because the Parquet branch has `<set>/<split>/0000.parquet` but no data set card,
    so that `datasets` knows no configuration names. Copies in plain Parquet have `<set>/<split>-*.parquet`.
    """
    splits = {name: SPLITS if name in SOURCES else ("test",) for name in ALL_SETS}
    hint = (
        "give a folder of IOB2 files as data.uner_dir, or another copy as data.hub_name and data.hub_revision"
    )

    def read(name: str, split: str) -> list[Sentence]:
        table = HubTable(hub_name, HUB_SPLITS, revision, folder=name, id="idx", labels=TAGS, types=UNER_TYPES)
        return read_hub(table, split, hint, report.bad_input)

    return Collection(f"{hub_name} on the hub", splits, read, report=report)


def _with_custom_corpora(
    base: Collection, corpora: Sequence[CustomCorpus], paths: dict[str, str]
) -> Collection:
    """Add sets to a collection. `source=all` does not include them, unless `base` is empty."""
    names = [corpus.name for corpus in corpora]
    duplicates = sorted({name for name in names if names.count(name) > 1 or name in base.splits})
    if duplicates:
        raise UserError(
            f"data.corpora: there are two sets called {', '.join(duplicates)}; NAME:PATH gives a path another name"
        )
    custom = {corpus.name: corpus for corpus in corpora}
    return Collection(
        f"{base.where} with data.corpora" if base.splits else base.where,
        base.splits | {name: corpus.splits for name, corpus in custom.items()},
        lambda name, split: custom[name].read(split) if name in custom else base.load(name, split),
        {name: {"language": corpus.language, "licence": corpus.licence} for name, corpus in custom.items()},
        not_in_all=custom if base.splits else (),
        paths=paths,
        report=base.report,
    )
