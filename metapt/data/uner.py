"""Collections of labelled sets: folders of IOB2 files, the hub's Parquet conversion, or the embedded demo.

Universal NER v1: Mayhew et al. 2024, arXiv 2311.09122. A set is named as on the hub (`en_ewt`); its splits are
`train`, `dev` and `test`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metapt.config import NerDataConfig
from metapt.data.iob2 import TAGS, Sentence, known_tag, read_iob2, repaired
from metapt.errors import OperationalError, UserError
from metapt.randomness import generator

SPLITS = ("train", "dev", "test")
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

HUB_SPLITS = {"train": "train", "dev": "validation", "test": "test"}


class Collection:
    """Sets of labelled sentences by name and split, read when asked for and then kept.

    Args:
        where: what an error message calls this collection.
        splits: set name to the splits it has.
        read: reads one split of one set.
    """

    def __init__(
        self, where: str, splits: Mapping[str, Sequence[str]], read: Callable[[str, str], list[Sentence]]
    ):
        self.where = where
        self._splits = {name: tuple(splits[name]) for name in sorted(splits)}
        self._read = read
        self._loaded: dict[tuple[str, str], list[Sentence]] = {}

    def sets(self, split: str) -> list[str]:
        """The sets that have this split, in alphabetical order."""
        return [name for name, splits in self._splits.items() if split in splits]

    def load(self, name: str, split: str) -> list[Sentence]:
        """The sentences of one split, in file order.

        Raises:
            UserError: no such set or split, or a file is not as the format asks; the message says what exists.
        """
        if name not in self._splits:
            raise UserError(f"{self.where} has no set {name!r}; it has {', '.join(self._splits)}")
        if split not in self._splits[name]:
            raise UserError(
                f"{self.where}: {name} has no {split} split; it has {', '.join(self._splits[name])}"
            )
        if (name, split) not in self._loaded:
            self._loaded[name, split] = self._read(name, split)
        return self._loaded[name, split]

    def fingerprint(self, parts: Iterable[tuple[str, str]]) -> str:
        """SHA-256 of the words and tags of these (set, split) parts; the same wherever they were read from."""
        digest = hashlib.sha256()
        for name, split in sorted(set(parts)):
            content = [(sentence.words, sentence.tags) for sentence in self.load(name, split)]
            digest.update(json.dumps([name, split, content]).encode())
        return digest.hexdigest()


def open_collection(data: NerDataConfig) -> Collection:
    """The collection that a configuration names: the embedded demo, an IOB2 folder, or the hub.

    Raises:
        UserError: `data.uner_dir` is no folder, or holds no `<set>/<split>.iob2`.
    """
    if data.name == "demo":
        from metapt.data import demo

        return Collection("the embedded demo", demo.SET_SPLITS, demo.sentences)
    if data.uner_dir is not None:
        return _folder_collection(Path(data.uner_dir).expanduser())
    return _hub_collection(data.hub_name, data.hub_revision)


def source_sets(collection: Collection, source: str) -> list[str]:
    """The sets that a fine-tuning source means: one set, several joined with `+`, or `all` that can be tuned on.

    Raises:
        UserError: a set is unknown, is named twice, or lacks a train or dev split.
    """
    tunable = [name for name in collection.sets("train") if name in collection.sets("dev")]
    names = tunable if source == "all" else source.split("+")
    known = ", ".join(tunable) or "none"
    for name in names:
        if name not in tunable:
            exists = any(name in collection.sets(split) for split in SPLITS)
            problem = "has no train and dev split" if exists else "does not exist"
            raise UserError(
                f"source={source}: {name!r} {problem} in {collection.where}; sources are {known}, or all"
            )
        if names.count(name) > 1:
            raise UserError(f"source={source}: {name!r} is named twice")
    if not names:
        raise UserError(f"source={source}: {collection.where} has no set with both a train and a dev split")
    return names


def evaluated_sets(collection: Collection, wanted: Sequence[str]) -> list[str]:
    """The sets with a test split, or those of them that are wanted.

    Raises:
        UserError: a wanted set has no test split.
    """
    known = collection.sets("test")
    missing = [name for name in wanted if name not in known]
    if missing:
        raise UserError(
            f"data.eval_sets: no test split of {', '.join(missing)}; there are {', '.join(known)}"
        )
    return [name for name in known if name in wanted or not wanted]


def drawn(sentences: list[Sentence], most: int | None, seed: int) -> list[Sentence]:
    """So many of the sentences (None: all), drawn as a function of the seed, in their order."""
    if most is None or most >= len(sentences):
        return sentences
    chosen = generator(seed, "training sentences").choice(len(sentences), most, replace=False)
    return [sentences[index] for index in sorted(chosen)]


def training_sentences(collection: Collection, source: str, split: str) -> list[Sentence]:
    """The sentences of one split of every set of a source (`source_sets`), one set after the other."""
    return [sentence for name in source_sets(collection, source) for sentence in collection.load(name, split)]


def _folder_collection(folder: Path) -> Collection:
    if not folder.is_dir():
        raise UserError(f"data.uner_dir={folder}: no such folder")
    splits: dict[str, list[str]] = {}
    for path in folder.glob("*/*.iob2"):
        if path.stem in SPLITS:
            splits.setdefault(path.parent.name, []).append(path.stem)
    if not splits:
        raise UserError(f"data.uner_dir={folder}: holds no <set>/<split>.iob2 with split {', '.join(SPLITS)}")
    return Collection(str(folder), splits, lambda name, split: read_iob2(folder / name / f"{split}.iob2"))


def _hub_collection(hub_name: str, revision: str) -> Collection:
    """Universal NER's hub configurations are its set names; nothing is fetched before a set is loaded."""
    splits = {name: SPLITS if name in SOURCES else ("test",) for name in ALL_SETS}
    return Collection(
        f"{hub_name} on the hub", splits, lambda name, split: _read_hub(hub_name, revision, name, split)
    )


def _read_hub(hub_name: str, revision: str, name: str, split: str) -> list[Sentence]:
    """One split through `datasets`: columns idx (string), tokens (strings) and ner_tags (class ids in TAGS order).

    A set is asked for by its folder: the conversion branch has `<set>/<split>/0000.parquet` and no card, so that
    `datasets` knows no configuration names there; copies in plain Parquet have `<set>/<split>-*.parquet`.
    """
    import datasets

    where = f"{hub_name} ({revision}), {name}, {HUB_SPLITS[split]}"
    try:
        rows = datasets.load_dataset(hub_name, data_dir=name, split=HUB_SPLITS[split], revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise OperationalError(
            f"{where}: cannot be loaded ({type(error).__name__}: {error}); "
            "give a folder of IOB2 files as data.uner_dir, or another copy as data.hub_name and data.hub_revision"
        ) from error
    missing = {"idx", "tokens", "ner_tags"} - set(rows.column_names)
    if missing:
        raise UserError(
            f"{where}: no column {', '.join(sorted(missing))}; it has {', '.join(rows.column_names)}"
        )
    names = _label_names(rows.features["ner_tags"])
    found = [
        Sentence(
            str(row["idx"]),
            tuple(row["tokens"]),
            repaired([known_tag(names[label], f"{where}, idx {row['idx']}") for label in row["ner_tags"]]),
        )
        for row in rows
    ]
    if not found:
        raise UserError(f"{where}: holds no sentence")
    return found


def _label_names(feature: Any) -> Sequence[str]:
    """The names behind the class ids, as the data set itself declares them; undeclared ones are TAGS."""
    return getattr(getattr(feature, "feature", None), "names", None) or TAGS
