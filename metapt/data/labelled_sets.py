"""Collections of labelled sets: folders of IOB2 files, the hub's Parquet conversion, the embedded demo, described corpora.

Universal NER v1: Mayhew et al. 2024, arXiv 2311.09122. A set is named as on the hub (`en_ewt`); its splits are
`train`, `dev` and `test`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from metapt import randomness
from metapt.config import SetsConfig
from metapt.data.custom_corpus import SPLITS, open_custom_corpora
from metapt.data.hub import HUB_SPLITS, HubTable, read_hub
from metapt.data.iob2 import TAGS, UNER_TYPES, Sentence, read_iob2
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
    """Sets of labelled sentences by name and split, read when asked for and then kept.

    Args:
        where: what an error message calls this collection.
        splits: set name to the splits it has.
        read: reads one split of one set.
        added: the sets that `source=all` does not mean.
        facts: language and licence of sets that a description tells of.
    """

    def __init__(
        self,
        where: str,
        splits: Mapping[str, Sequence[str]],
        read: Callable[[str, str], list[Sentence]],
        added: Iterable[str] = (),
        facts: Mapping[str, Mapping[str, str]] | None = None,
    ):
        self.where = where
        self.splits = {name: tuple(splits[name]) for name in sorted(splits)}
        self.added = frozenset(added)
        self.facts = dict(facts or {})
        self._read = read
        self._loaded: dict[tuple[str, str], list[Sentence]] = {}

    def sets(self, split: str) -> list[str]:
        """The sets that have this split, in alphabetical order."""
        return [name for name, splits in self.splits.items() if split in splits]

    def load(self, name: str, split: str) -> list[Sentence]:
        """The sentences of one split, in file order.

        Raises:
            UserError: no such set or split, or a file is not as the format asks; the message says what exists.
        """
        if name not in self.splits:
            raise UserError(f"{self.where} has no set {name!r}; it has {', '.join(self.splits)}")
        if split not in self.splits[name]:
            raise UserError(
                f"{self.where}: {name} has no {split} split; it has {', '.join(self.splits[name])}"
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


def open_collection(data: SetsConfig) -> Collection:
    """The collection that a configuration names: its own sets, those of `data.corpora` beside them, dev splits held out.

    Raises:
        UserError: `data.uner_dir` is no folder, or holds no `<set>/<split>.iob2`; an entry of `data.corpora` is wrong
            (all such mistakes at once), or two sets have one name.
    """
    own = _own_collection(data)
    collection = _with_custom_corpora(own, data.corpora) if data.corpora else own
    return _with_dev(collection, data.dev_fraction) if data.dev_fraction else collection


def source_sets(collection: Collection, source: str) -> list[str]:
    """The sets that a fine-tuning source means: one set, several joined with `+`, or `all` that can be tuned on.

    `all` leaves out what `data.corpora` has added, which must be named (`all+my_news`): they are mostly there to be
    tested on, and a Tagalog set that slips into `all` would end the zero-shot setting unseen.

    Raises:
        UserError: a set is unknown, is named twice, or lacks a train or dev split.
    """
    tunable = [name for name in collection.sets("train") if name in collection.sets("dev")]
    everything = [name for name in tunable if name not in collection.added]
    names = [name for word in source.split("+") for name in (everything if word == "all" else [word])]
    for name in names:
        if name not in tunable:
            known = ", ".join(tunable) or "none"
            raise UserError(f"source={source}: {_why_not(collection, name)}; sources are {known}, or all")
        if names.count(name) > 1:
            raise UserError(f"source={source}: {name!r} is named twice")
    if not names:
        raise UserError(f"source={source}: {collection.where} has no set with both a train and a dev split")
    return names


def _why_not(collection: Collection, name: str) -> str:
    if name in collection.sets("train"):
        advice = "data.dev_fraction=0.1 would hold out a tenth of its train split"
        return f"{name!r} has no dev split in {collection.where} ({advice})"
    if any(name in collection.sets(split) for split in SPLITS):
        return f"{name!r} has no train split in {collection.where}"
    return f"{name!r} does not exist in {collection.where}"


def check_entities(collection: Collection, names: Sequence[str]) -> None:
    """Refuses source sets whose train or dev splits together have no entity: nothing to learn, or no score to stop by.

    A test set without one is allowed: its figures say `gold_spans: 0`.

    Raises:
        UserError: naming the split.
    """
    for split in ("train", "dev"):
        if not any(set(sentence.tags) - {"O"} for name in names for sentence in collection.load(name, split)):
            raise UserError(f"source={'+'.join(names)}: its {split} split has no entity at all")


def _own_collection(data: SetsConfig) -> Collection:
    if data.name == "demo":
        from metapt.data import demo

        return Collection("the embedded demo", demo.SET_SPLITS, demo.sentences)
    if data.name == "custom":
        return Collection("data.corpora", {}, lambda name, split: [])
    if data.uner_dir is not None:
        return _folder_collection(Path(data.uner_dir).expanduser())
    return _hub_collection(data.hub_name, data.hub_revision)


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


def drawn(count: int, most: int | None, seed: int) -> np.ndarray:
    """Numbers of the sentences, so many of them (None: all) drawn as a function of the seed. int64, ascending."""
    if most is None or most >= count:
        return np.arange(count)
    return np.sort(randomness.generator(seed, "training sentences").choice(count, most, replace=False))


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
    """Universal NER's hub configurations are its set names; nothing is fetched before a set is loaded.

    A set is asked for by its folder: the conversion branch has `<set>/<split>/0000.parquet` and no card, so that
    `datasets` knows no configuration names there; copies in plain Parquet have `<set>/<split>-*.parquet`.
    """
    splits = {name: SPLITS if name in SOURCES else ("test",) for name in ALL_SETS}
    hint = (
        "give a folder of IOB2 files as data.uner_dir, or another copy as data.hub_name and data.hub_revision"
    )

    def read(name: str, split: str) -> list[Sentence]:
        table = HubTable(hub_name, HUB_SPLITS, revision, folder=name, id="idx", labels=TAGS, types=UNER_TYPES)
        return read_hub(table, split, hint)

    return Collection(f"{hub_name} on the hub", splits, read)


def _with_custom_corpora(own: Collection, entries: Sequence[str]) -> Collection:
    """The sets of `own`, and those of `data.corpora`. If there are no others, these are all that `all` means."""
    described = open_custom_corpora(entries)
    names = [one.name for one in described]
    twice = sorted({name for name in names if names.count(name) > 1 or name in own.splits})
    if twice:
        raise UserError(f"data.corpora: there are two sets called {', '.join(twice)}")
    sets = {one.name: one for one in described}
    splits = own.splits | {name: one.splits for name, one in sets.items()}
    where = f"{own.where} with data.corpora" if own.splits else own.where
    return Collection(
        where,
        splits,
        lambda name, split: sets[name].read(split) if name in sets else own.load(name, split),
        added=sets if own.splits else (),
        facts={name: {"language": one.language, "licence": one.licence} for name, one in sets.items()},
    )


def _with_dev(whole: Collection, share: float) -> Collection:
    """The same sets; those with a train but no dev split get one of about `share` of their train sentences.

    Which sentences: a draw for each by its place, with the set's name and nothing else, so that every run has the same.
    """
    held_out = [name for name in whole.sets("train") if name not in whole.sets("dev")]

    def read(name: str, split: str) -> list[Sentence]:
        if name not in held_out or split == "test":
            return whole.load(name, split)
        sentences = whole.load(name, "train")
        below = share * 2**63
        is_dev = [randomness.key(0, f"dev of {name}", place) < below for place in range(len(sentences))]
        found = [each for each, dev in zip(sentences, is_dev, strict=True) if dev == (split == "dev")]
        if not found:
            raise UserError(
                f"data.dev_fraction={share} of the {len(sentences)} train sentences of {name} leaves none for {split}"
            )
        return found

    splits = {name: (*those, "dev") if name in held_out else those for name, those in whole.splits.items()}
    return Collection(whole.where, splits, read, whole.added, whole.facts)
