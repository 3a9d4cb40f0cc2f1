"""Statistics of labelled sets: counts, span lengths, case particles. The report imports this module: keep it light."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from metapt.data.iob2 import Sentence, entity_types, spans
from metapt.data.particles import follows_particle

LabelledSentence = tuple[Sequence[str], Sequence[tuple[str, int, int]]]
"""The words of a sentence and its spans: (type, first word, last word + 1)."""


def set_statistics(sentences: Sequence[Sentence]) -> dict[str, Any]:
    """`labelled_statistics` of tagged sentences, and `documents`: their number, None if the set does not mark them."""
    documents = {sentence.document for sentence in sentences}
    return {
        **labelled_statistics([(sentence.words, spans(sentence.tags)) for sentence in sentences]),
        "documents": None if None in documents else len(documents),
    }


def labelled_statistics(sentences: Sequence[LabelledSentence]) -> dict[str, Any]:
    """Count sentences, words and spans of a set. Means and fractions are None if there is nothing to count.

    Returns:
        sentences, words, longest_sentence_words, sentences_with_entity.
        spans: for each type and `all`: count, mean_words, single_word_fraction, lengths_words (maps a length in words
            to the number of spans).
        after_particle: for PER and `all`: spans (number of those directly after a case particle), fraction.
    """
    all_spans = [(words, span) for words, sentence_spans in sentences for span in sentence_spans]
    lengths = {
        entity_type: [end - start for _, (span_type, start, end) in all_spans if span_type == entity_type]
        for entity_type in entity_types(span_type for _, (span_type, _, _) in all_spans)
    }
    lengths["all"] = [length for type_lengths in lengths.values() for length in type_lengths]
    after: dict[str, list[bool]] = {
        "PER": [
            follows_particle(start, words)
            for words, (entity_type, start, _) in all_spans
            if entity_type == "PER"
        ],
        "all": [follows_particle(start, words) for words, (_, start, _) in all_spans],
    }
    return {
        "sentences": len(sentences),
        "words": sum(len(words) for words, _ in sentences),
        "longest_sentence_words": max((len(words) for words, _ in sentences), default=0),
        "sentences_with_entity": sum(bool(sentence_spans) for _, sentence_spans in sentences),
        "spans": {
            entity_type: _length_statistics(type_lengths) for entity_type, type_lengths in lengths.items()
        },
        "after_particle": {
            group: {"spans": sum(flags), "fraction": _ratio(sum(flags), len(flags))}
            for group, flags in after.items()
        },
    }


def _length_statistics(lengths: Sequence[int]) -> dict[str, Any]:
    return {
        "count": len(lengths),
        "mean_words": _ratio(sum(lengths), len(lengths)),
        "single_word_fraction": _ratio(lengths.count(1), len(lengths)),
        "lengths_words": {str(length): count for length, count in sorted(Counter(lengths).items())},
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
