"""Dev and test splits that a labelled set lacks, held out from its train split.

Whole documents are held out where the set marks them, otherwise sentences. Which ones depends on `data.split_seed`, the name
of the set and the number of the document, and on nothing else. So the splits are the same in every run, and no document is
in two of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metapt import randomness
from metapt.config import SetsConfig
from metapt.data.collection import Collection
from metapt.data.documents import resampling_unit, resampling_units
from metapt.data.iob2 import Sentence
from metapt.errors import UserError


def with_held_out_splits(base: Collection, data: SetsConfig) -> Collection:
    """Give the sets with a train split the dev and test splits that they lack.

    Of n documents, the fraction `data.dev_fraction` (`data.test_fraction`) is rounded to a whole number, at least one.
    A fraction of 0 holds nothing out.
    """
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
    unit = resampling_unit([sentence.document for sentence in parts["train"]])
    return f"{name}: {' and '.join(held_out)} sentences held out of its train split by {unit} (data.split_seed={seed}); {kept}"
