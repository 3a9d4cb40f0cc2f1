"""Dev and test splits that a labelled set lacks, held out from its train split.

Whole documents are held out where the set marks them, otherwise sentences. Which ones depends on `data.split_seed`, the name
of the set and the number of the document, and on nothing else. So the splits are the same in every run, and no document is
in two of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from metapt import randomness
from metapt.config import SetsConfig
from metapt.data.collection import Collection
from metapt.data.documents import resampling_unit, resampling_units
from metapt.data.iob2 import Sentence
from metapt.errors import UserError

FOLD = re.compile(r"(\d+)/(\d+)")


def with_held_out_splits(base: Collection, data: SetsConfig) -> Collection:
    """Give the sets with a train split the dev and test splits that they lack.

    With `data.fold`, the test split of these sets is a fold of their train split. Of n documents, the fraction `data.dev_fraction` (`data.test_fraction`) is rounded to a whole number, at least one.
    A fraction of 0 holds nothing out.
    """
    if data.fold is not None:
        base = _with_fold(base, *_parsed_fold(data.fold), data.split_seed)
    fractions = {"test": data.test_fraction, "dev": data.dev_fraction}
    lacking = {
        name: [split for split, fraction in fractions.items() if fraction and split not in splits]
        for name, splits in base.splits.items()
        if "train" in splits
    }
    parts: dict[str, dict[str, list[Sentence]]] = {}

    def read(name: str, split: str) -> list[Sentence]:
        if not lacking.get(name) or split not in ("train", *lacking[name]):
            return base.load(name, split)
        if name not in parts:
            wanted = {each: fractions[each] for each in lacking[name]}
            parts[name] = _divided(name, base.load(name, "train"), wanted, data.split_seed)
            base.report.remarks.append(_remark(name, parts[name], data.split_seed))
        return parts[name][split]

    return Collection(
        base.where,
        {name: (*splits, *lacking.get(name, ())) for name, splits in base.splits.items()},
        read,
        base.custom_sets,
        base.not_in_all,
        base.paths,
        base.report,
    )


def _parsed_fold(fold: str) -> tuple[int, int]:
    """Number (from 1) and count of the folds that `data.fold` spells as k/n."""
    match = FOLD.fullmatch(fold)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count or count < 2:
        raise UserError(f"data.fold={fold}: must be k/n with 1 <= k <= n and n of at least 2, such as 1/5")
    return number, count


def _with_fold(base: Collection, number: int, count: int, seed: int) -> Collection:
    """Make a fold of each train split the test split of its set. Every document is in exactly one of the folds."""

    def read(name: str, split: str) -> list[Sentence]:
        if "train" not in base.splits[name] or split == "dev":
            return base.load(name, split)
        sentences = base.load(name, "train")
        documents = [sentence.document for sentence in sentences]
        units = resampling_units(documents)
        total = int(units.max()) + 1
        if total < count:
            raise UserError(
                f"{name}: its {total} {resampling_unit(documents)}(s) cannot be divided into {count} folds"
            )
        keys = [randomness.key(seed, f"fold of {name}", unit) for unit in range(total)]
        folds = np.empty(total, dtype=np.int64)
        folds[np.argsort(keys, kind="stable")] = np.arange(total) % count
        is_test = folds[units] == number - 1
        return [
            sentence
            for sentence, in_fold in zip(sentences, is_test, strict=True)
            if in_fold == (split == "test")
        ]

    splits = {
        name: tuple(dict.fromkeys((*own, "test"))) if "train" in own else own
        for name, own in base.splits.items()
    }
    return Collection(base.where, splits, read, base.custom_sets, base.not_in_all, base.paths, base.report)


def _divided(
    name: str, sentences: Sequence[Sentence], fractions: dict[str, float], seed: int
) -> dict[str, list[Sentence]]:
    """The sentences of each held-out split, and the others as `train`."""
    documents = [sentence.document for sentence in sentences]
    units = resampling_units(documents)
    count = int(units.max()) + 1
    owners = np.full(count, "train", dtype=object)
    for split, fraction in fractions.items():
        free = np.flatnonzero(owners == "train")
        keys = [randomness.key(seed, f"{split} of {name}", int(unit)) for unit in free]
        chosen = free[np.argsort(keys, kind="stable")[: max(1, round(fraction * count))]]
        owners[chosen] = split
    if not (owners == "train").any():
        raise UserError(
            f"{name}: its {count} {resampling_unit(documents)}(s) cannot be divided into train, {' and '.join(fractions)}; "
            "give it these splits, or data.documents=sentence"
        )
    return {
        split: [sentence for sentence, unit in zip(sentences, units, strict=True) if owners[unit] == split]
        for split in ("train", *fractions)
    }


def _remark(name: str, parts: dict[str, list[Sentence]], seed: int) -> str:
    kept, *held_out = (f"{split} {len(sentences):,}" for split, sentences in parts.items())
    unit = resampling_unit([sentence.document for part in parts.values() for sentence in part])
    return f"{name}: {' and '.join(held_out)} sentences held out of its train split by {unit} (data.split_seed={seed}); {kept}"
