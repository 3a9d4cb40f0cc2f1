"""Sentences of a test set that are also in the data a tagger was fine-tuned on: scores on them measure memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from metapt.data.collection import Collection
from metapt.data.iob2 import Sentence, spans


def source_digests(collection: Collection, sources: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of the sentences of the train and dev splits of each source."""
    return {name: collection.fingerprint(_splits(collection, name)) for name in sources}


def shared_with_sources(
    collection: Collection, tunings: Iterable[Mapping[str, Any]], test_sets: Sequence[str]
) -> dict[str, dict[str, int]] | None:
    """Count what each test set shares with the train and dev splits of the source sets (`count_shared`).

    Args:
        tunings: the results of all fine-tunings of a tagger, with their `source_sha256` (`source_digests`).
    Returns: the counts of each test set; None if the collection does not have the sentences that a tuning had, in the splits that
        it had them in.
    """
    digests = {item for tuning in tunings for item in tuning["source_sha256"].items()}
    sources = {name for name, _ in digests}
    if not sources <= collection.splits.keys() or digests != source_digests(collection, sources).items():
        return None
    parts = [part for name in sources for part in _splits(collection, name)]
    known = {folded_words(sentence) for part in parts for sentence in collection.load(*part)}
    return {name: count_shared(known, collection.load(name, "test")) for name in test_sets}


def _splits(collection: Collection, name: str) -> list[tuple[str, str]]:
    """The (set, split) pairs of a source that a tagger learns from or is selected on."""
    return [(name, split) for split in ("train", "dev") if split in collection.splits[name]]


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
