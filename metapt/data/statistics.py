"""What is in a labelled set: counts, span lengths, case particles. The analysis uses it too, so it needs numpy at most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from metapt.data.iob2 import TYPES, Sentence, spans
from metapt.data.particles import follows_particle

Labelled = tuple[Sequence[str], Sequence[tuple[str, int, int]]]
"""the words of a sentence and its spans: (type, first word, one past the last word)"""


def set_statistics(sentences: Sequence[Sentence]) -> dict[str, Any]:
    """`labelled_statistics` of tagged sentences."""
    return labelled_statistics([(sentence.words, spans(sentence.tags)) for sentence in sentences])


def labelled_statistics(sentences: Sequence[Labelled]) -> dict[str, Any]:
    """Counts of a set; shares are of 1, and None where there is nothing to share.

    Returns: sentences, words, longest_sentence_words, sentences_with_entity; `spans`: type (and `all`) to count,
        mean_words, single_word_fraction, and lengths_words (length to how many); `after_particle`: PER and `all` to
        spans (those directly after a case particle), share.
    """
    found = [(words, span) for words, those in sentences for span in those]
    lengths = {kind: [end - start for _, (what, start, end) in found if what == kind] for kind in TYPES}
    lengths["all"] = [length for those in lengths.values() for length in those]
    after: dict[str, list[bool]] = {kind: [] for kind in ("PER", "all")}
    for words, (kind, start, _) in found:
        for group in {kind, "all"} & set(after):
            after[group].append(follows_particle(start, words))
    return {
        "sentences": len(sentences),
        "words": sum(len(words) for words, _ in sentences),
        "longest_sentence_words": max((len(words) for words, _ in sentences), default=0),
        "sentences_with_entity": sum(bool(those) for _, those in sentences),
        "spans": {kind: _lengths(those) for kind, those in lengths.items()},
        "after_particle": {
            kind: {"spans": sum(those), "share": _share(sum(those), len(those))}
            for kind, those in after.items()
        },
    }


def _lengths(lengths: Sequence[int]) -> dict[str, Any]:
    return {
        "count": len(lengths),
        "mean_words": _share(sum(lengths), len(lengths)),
        "single_word_fraction": _share(lengths.count(1), len(lengths)),
        "lengths_words": {str(length): count for length, count in sorted(Counter(lengths).items())},
    }


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
