"""Collections of labelled sets: a folder of IOB2 files, the hub, the demo data, custom corpora.

Universal NER v1: Mayhew et al. 2024, arXiv 2311.09122. Sets have the names of the hub (`en_ewt`); splits are `train`,
`dev` and `test`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from metapt import randomness
from metapt.config import SetsConfig
from metapt.data.corpus_spec import SPLITS
from metapt.data.custom_corpus import open_custom_corpora
from metapt.data.documents import refuse_marks, resampling_units
from metapt.data.hub import HUB_SPLITS, HubTable, read_hub
from metapt.data.iob2 import TAGS, UNER_LAYOUT, UNER_TYPES, Sentence, read_iob2
from metapt.errors import UserError

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


class Collection:
    """Labelled sets by name and split. A split is read when it is first loaded, and then kept in memory.

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
    ):
        self.where = where
        self.splits = {name: tuple(splits[name]) for name in sorted(splits)}
        self.custom_sets = dict(custom_sets or {})
        self.not_in_all = frozenset(not_in_all)
        self._read = read
        self._loaded: dict[tuple[str, str], list[Sentence]] = {}

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


def open_collection(data: SetsConfig) -> Collection:
    """Open the collection that a configuration selects, with the sets of `data.corpora` and held-out dev splits.

    Raises:
        UserError: `data.uner_dir` is not a folder, or contains no `<set>/<split>.iob2`; entries of `data.corpora` are
            wrong (all errors are listed at once); two sets have the same name.
    """
    collection = _base_collection(data)
    if data.corpora:
        collection = _with_custom_corpora(collection, data.corpora, data.documents)
    return _with_held_out_dev(collection, data.dev_fraction) if data.dev_fraction else collection


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
    names = [name for item in source.split("+") for name in (all_sets if item == "all" else [item])]
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
        advice = "data.dev_fraction=0.1 holds out a tenth of its train split"
        return f"{name!r} has no dev split in {collection.where} ({advice})"
    if any(name in collection.sets(split) for split in SPLITS):
        return f"{name!r} has no train split in {collection.where}"
    return f"{name!r} does not exist in {collection.where}"


def check_has_entities(
    collection: Collection, names: Sequence[str], splits: Sequence[str] = ("train", "dev")
) -> None:
    """Check that these splits of the source sets contain entities.

    Without them there is nothing to learn, or no score for early stopping. Test sets need none: their scores then
    have `gold_spans: 0`.

    Raises:
        UserError: no sentence of a split has an entity; the message names the split.
    """
    for split in splits:
        if not any(set(sentence.tags) - {"O"} for name in names for sentence in collection.load(name, split)):
            raise UserError(f"source={'+'.join(names)}: its {split} split contains no entity")


def evaluated_sets(collection: Collection, requested: Sequence[str]) -> list[str]:
    """The requested sets with a test split; all of them if none is requested.

    Raises:
        UserError: a requested set has no test split.
    """
    known = collection.sets("test")
    missing = [name for name in requested if name not in known]
    if missing:
        raise UserError(
            f"data.eval_sets: no test split of {', '.join(missing)}; available are {', '.join(known)}"
        )
    return [name for name in known if name in requested or not requested]


def training_sentences(collection: Collection, source: str, split: str) -> list[Sentence]:
    """The sentences of one split of every set of a source (`source_sets`), one set after the other."""
    return [sentence for name in source_sets(collection, source) for sentence in collection.load(name, split)]


def _base_collection(data: SetsConfig) -> Collection:
    if data.name == "demo":
        from metapt.data import demo

        refuse_marks(data.documents, "the demo data")
        return Collection("the demo data", demo.SET_SPLITS, demo.sentences)
    if data.name == "custom":
        return Collection("data.corpora", {}, lambda name, split: [])
    if data.uner_dir is not None:
        return _folder_collection(Path(data.uner_dir).expanduser(), data.documents)
    refuse_marks(data.documents, f"{data.hub_name} on the hub")
    return _hub_collection(data.hub_name, data.hub_revision)


def _folder_collection(folder: Path, documents: str) -> Collection:
    if not folder.is_dir():
        raise UserError(f"data.uner_dir={folder}: no such folder")
    splits: dict[str, list[str]] = {}
    try:
        files = [file for path in folder.iterdir() if path.is_dir() for file in path.iterdir()]
    except OSError as error:  # glob would pass over a folder that cannot be read
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from error
    for file in files:
        if file.suffix == ".iob2" and file.stem in SPLITS:
            splits.setdefault(file.parent.name, []).append(file.stem)
    if not splits:
        raise UserError(
            f"data.uner_dir={folder}: contains no <set>/<split>.iob2 (splits are {', '.join(SPLITS)})"
        )
    layout = replace(UNER_LAYOUT, documents=documents)
    return Collection(
        str(folder), splits, lambda name, split: read_iob2(folder / name / f"{split}.iob2", layout)
    )


def _hub_collection(hub_name: str, revision: str) -> Collection:
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
        return read_hub(table, split, hint)

    return Collection(f"{hub_name} on the hub", splits, read)


def _with_custom_corpora(base: Collection, entries: Sequence[str], documents: str) -> Collection:
    """Add the sets of `data.corpora`. `source=all` does not include them, unless `base` is empty."""
    corpora = open_custom_corpora(entries, documents)
    names = [corpus.name for corpus in corpora]
    duplicates = sorted({name for name in names if names.count(name) > 1 or name in base.splits})
    if duplicates:
        raise UserError(f"data.corpora: there are two sets called {', '.join(duplicates)}")
    custom = {corpus.name: corpus for corpus in corpora}
    return Collection(
        f"{base.where} with data.corpora" if base.splits else base.where,
        base.splits | {name: corpus.splits for name, corpus in custom.items()},
        lambda name, split: custom[name].read(split) if name in custom else base.load(name, split),
        {name: {"language": corpus.language, "licence": corpus.licence} for name, corpus in custom.items()},
        not_in_all=custom if base.splits else (),
    )


def _with_held_out_dev(base: Collection, fraction: float) -> Collection:
    """Give the sets with a train but no dev split a dev split of about `fraction` of their train sentences.

    A sentence is assigned by a hash of the name of the set and the number of its document, so the split is the same in
    every run and no document is in both splits. In a set that marks no documents each sentence counts as one.
    """
    held_out = [name for name in base.sets("train") if name not in base.sets("dev")]

    def read(name: str, split: str) -> list[Sentence]:
        if name not in held_out or split == "test":
            return base.load(name, split)
        sentences = base.load(name, "train")
        threshold = fraction * 2**63
        units = resampling_units([sentence.document for sentence in sentences])
        is_dev = [randomness.key(0, f"dev of {name}", unit) < threshold for unit in units.tolist()]
        selected = [
            sentence for sentence, in_dev in zip(sentences, is_dev, strict=True) if in_dev == (split == "dev")
        ]
        if not selected:
            raise UserError(
                f"data.dev_fraction={fraction}: the {split} split of {name} is empty "
                f"({len(sentences)} sentences are divided)"
            )
        return selected

    splits = {name: (*old, "dev") if name in held_out else old for name, old in base.splits.items()}
    return Collection(base.where, splits, read, base.custom_sets, base.not_in_all)
