"""Labelled sentences: IOB2 files, the hub's Parquet conversion of Universal NER, or the embedded demo.

Universal NER v1: Mayhew et al. 2024, arXiv 2311.09122. A set is named as on the hub (`en_ewt`); its splits are
`train`, `dev` and `test`. Files are UTF-8 with five tab-separated columns: index, form, tag, a source's own tag,
annotator. The fourth column differs from the third in some sets and is not the gold tag.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metapt.config import NerDataConfig
from metapt.errors import OperationalError, UserError
from metapt.runs import write_atomically

TYPES = ("PER", "ORG", "LOC")
TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")  # the hub's label order
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

COLUMNS = 5
SENT_ID = re.compile(r"#\s*sent_id\s*=\s*(.*)")
HUB_SPLITS = {"train": "train", "dev": "validation", "test": "test"}


@dataclass(frozen=True)
class Sentence:
    """One sentence: as many tags (of TAGS, valid IOB2) as words."""

    id: str
    words: tuple[str, ...]
    tags: tuple[str, ...]


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


def training_sentences(collection: Collection, source: str, split: str) -> list[Sentence]:
    """The sentences of one split of every set of a source (`source_sets`), one set after the other."""
    return [sentence for name in source_sets(collection, source) for sentence in collection.load(name, split)]


def spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Entity spans (type, start, end exclusive) in strict IOB2: only B-X starts one, only I-X goes on with it."""
    found = []
    start = None
    for position, tag in enumerate([*tags, "O"]):
        if start is not None and tag != f"I-{tags[start][2:]}":
            found.append((tags[start][2:], start, position))
            start = None
        if tag.startswith("B-"):
            start = position
    return found


def read_iob2(path: Path) -> list[Sentence]:
    """Reads an IOB2 file as Universal NER has them.

    A line that starts with `#` and holds no tab is a comment (a form may be or begin with `#`); a form may hold
    spaces. Line ends may be LF or CRLF, and the last blank line may be missing. As in the hub's loader, a tag that
    holds OTH, and the stray B-O of en_ewt, are read as O. An I-X that does not continue an X is read as B-X:
    Universal NER's published counts are seqeval's default mode, which lets it start a span, and strict IOB2, in
    which everything is scored, would drop it.

    Raises:
        UserError: with file and line: not UTF-8, not five columns, an empty form, an unknown tag, no sentence.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    sentences = list(_sentences(path))
    if not sentences:
        raise UserError(f"{path}:1: holds no sentence")
    return sentences


def write_iob2(path: Path, sentences: Iterable[Sentence]) -> None:
    """Writes a file that `read_iob2` reads back to equal sentences."""
    blocks = []
    for sentence in sentences:
        rows = zip(sentence.words, sentence.tags, strict=True)
        lines = [f"# sent_id = {sentence.id}", f"# text = {' '.join(sentence.words)}"]
        lines += [f"{index}\t{word}\t{tag}\t-\t-" for index, (word, tag) in enumerate(rows, 1)]
        blocks.append("\n".join(lines) + "\n\n")
    write_atomically(path, "".join(blocks))


def _sentences(path: Path) -> Iterator[Sentence]:
    """The sentences of a file, one at a time; sentences without a sent_id are numbered."""
    identifier = ""
    words: list[str] = []
    tags: list[str] = []
    count = 0
    for where, line in _lines(path):
        if not line.strip(" "):
            if words:
                count += 1
                yield Sentence(identifier or str(count), tuple(words), _iob2(tags))
            identifier, words, tags = "", [], []
        elif line.startswith("#") and "\t" not in line:
            if match := SENT_ID.match(line):
                identifier = match[1].strip()
        else:
            word, tag = _word_and_tag(line, where)
            words.append(word)
            tags.append(tag)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Pairs `file:line`, line without its end; after the last one an empty line, which closes the last sentence."""
    number = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                yield f"{path}:{number}", raw.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}:{number}: not UTF-8 at byte {error.start + 1} of the line") from None
    yield f"{path}:{number + 1}", ""


def _word_and_tag(line: str, where: str) -> tuple[str, str]:
    columns = line.split("\t")
    if len(columns) != COLUMNS:
        raise UserError(
            f"{where}: {len(columns)} tab-separated columns; {COLUMNS} are expected (index, form, tag, source tag, annotator)"
        )
    if not columns[1].strip():
        raise UserError(f"{where}: the form (column 2) is empty")
    return columns[1], _known_tag(columns[2], where)


def _known_tag(tag: str, where: str) -> str:
    """A tag of TAGS, with OTH and B-O read as O."""
    if "OTH" in tag or tag == "B-O":
        return "O"
    if tag not in TAGS:
        raise UserError(
            f"{where}: unknown tag {tag!r}; tags are {', '.join(TAGS)}, and B-OTH, I-OTH and B-O (read as O)"
        )
    return tag


def _iob2(tags: Sequence[str]) -> tuple[str, ...]:
    """The tags with every I-X that does not continue an X turned into B-X."""
    previous = ("O", *tags)
    return tuple(
        f"B-{tag[2:]}" if tag.startswith("I-") and before[2:] != tag[2:] else tag
        for before, tag in zip(previous, tags, strict=False)
    )


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
            _iob2([_known_tag(names[label], f"{where}, idx {row['idx']}") for label in row["ner_tags"]]),
        )
        for row in rows
    ]
    if not found:
        raise UserError(f"{where}: holds no sentence")
    return found


def _label_names(feature: Any) -> Sequence[str]:
    """The names behind the class ids, as the data set itself declares them; undeclared ones are TAGS."""
    return getattr(getattr(feature, "feature", None), "names", None) or TAGS
