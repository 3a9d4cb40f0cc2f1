"""metapt describe classes [key=value ...]: the word classes of a corpus, with their most frequent members."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from metapt.config import commandline
from metapt.data.corpus import prepare_corpus
from metapt.data.corpus_classes import corpus_classes
from metapt.data.word_classes import WordClasses
from metapt.errors import UserError

SHOWN, MEMBERS = 12, 8  # classes of each partition, and words of each class


def main(argv: Sequence[str]) -> None:
    """Print the classes that the keys of `metapt prepare` mean; they are made if they do not exist.

    Raises:
        UserError: the arguments name no classes, or the corpus has too few words for them.
    """
    config = commandline.load("prepare", argv)
    if not config.classes.sizes:
        raise UserError("classes.sizes is empty: give sizes, or objective=episodes, which has some")
    print("\n".join(lines(corpus_classes(prepare_corpus(config.data), config.classes))))


def lines(classes: WordClasses) -> Iterator[str]:
    """Number and sizes of the classes of each partition, and the most frequent words of its largest classes."""
    held_out = int(classes.is_held_out.sum())
    yield f"{len(classes.texts):,} word types, {held_out:,} of them held out of training with the last partition"
    for number, partition in enumerate(classes.partitions):
        sizes = np.bincount(partition)
        role = ", held out" if number == len(classes.partitions) - 1 else ""
        yield ""
        yield (
            f"partition {number}{role}: {len(sizes)} classes of {sizes.min():,} to {sizes.max():,} word types, "
            f"median {np.median(sizes):g}"
        )
        for label in np.argsort(-sizes, kind="stable")[:SHOWN].tolist():
            words = " ".join(text.strip() for text in classes.members(number, label, MEMBERS))
            yield f"{sizes[label]:8,}  {words}"
