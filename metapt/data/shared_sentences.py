"""Sentences of a test set that are also in the data a tagger was fine-tuned on: scores on them measure memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from metapt.data.collection import Collection
from metapt.data.iob2 import Sentence, spans


def shared_with_sources(
    collection: Collection, sources: Sequence[str], test_sets: Sequence[str]
) -> dict[str, dict[str, int]] | None:
    """Count what each test set shares with the train and dev splits of the source sets (`count_shared`).

    Args:
        sources: every set that a tagger was fine-tuned on, by earlier runs too.
    Returns: the counts of each test set; None if the collection lacks a source, as of an earlier run with other data.
    """
    if not set(sources) <= collection.splits.keys():
        return None
    splits = [
        collection.load(name, split)
        for name in sources
        for split in ("train", "dev")
        if split in collection.splits[name]
    ]
    known = {folded_words(sentence) for sentences in splits for sentence in sentences}
    return {name: count_shared(known, collection.load(name, "test")) for name in test_sets}


def count_shared(known: set[tuple[str, ...]], sentences: Iterable[Sentence]) -> dict[str, int]:
    """Count the sentences whose words, in any case, are `known` (lists of case-folded words).

    Returns: sentences, and gold_spans in these sentences. A sentence that occurs twice counts twice, as in the scores.
    """
    shared = [sentence for sentence in sentences if folded_words(sentence) in known]
    return {
        "sentences": len(shared),
        "gold_spans": sum(len(spans(sentence.tags)) for sentence in shared),
    }


def folded_words(sentence: Sentence) -> tuple[str, ...]:
    return tuple(word.casefold() for word in sentence.words)
