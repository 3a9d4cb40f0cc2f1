"""Random subsets of training sentences: nested, the same for every model, and free of scored sentences.

All sentences are put in a random order that `data.subset_seed` decides. A subset of k sentences is the first k of them. A
subset of k entities per type has every sentence with an entity of whose type fewer than k come in earlier sentences; it
therefore has at least k entities of each type that has as many. A sentence whose words are those of a scored sentence, in
any case, is in no subset.

Both kinds are nested: with one seed, the subset of a smaller k is part of that of a larger one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from metapt import randomness
from metapt.config import NerDataConfig
from metapt.data.collection import Collection
from metapt.data.iob2 import Sentence
from metapt.data.shared_sentences import folded_words
from metapt.errors import UserError


def is_subset(data: NerDataConfig) -> bool:
    """Whether a configuration trains on a part of its sentences."""
    return data.max_train_sentences is not None or data.entities_per_type is not None


def scored_words(collection: Collection, eval_sets: Iterable[str]) -> frozenset[tuple[str, ...]]:
    """The case-folded words of every sentence on which a run is scored."""
    return frozenset(
        folded_words(sentence) for name in eval_sets for sentence in collection.load(name, "test")
    )


def training_subset(
    sentences: Sequence[Sentence], data: NerDataConfig, scored: frozenset[tuple[str, ...]]
) -> np.ndarray:
    """The training sentences that `data` selects.

    Args:
        scored: `scored_words` of the run.
    Returns:
        int64, ascending: their numbers; all of them if `data` asks for no subset, none for a rule, which has no source.
    Raises:
        UserError: every sentence is a scored one.
    """
    if not is_subset(data) or not sentences:
        return np.arange(len(sentences))
    rng = randomness.generator(data.subset_seed, "training sentences")
    order = [
        number for number in rng.permutation(len(sentences)) if folded_words(sentences[number]) not in scored
    ]
    if not order:
        raise UserError("every training sentence is also a sentence of a test set: none is left to train on")
    if data.entities_per_type is not None:
        order = _with_rare_types([sentences[number] for number in order], order, data.entities_per_type)
    return np.sort(np.asarray(order[: data.max_train_sentences], dtype=np.int64))


def _with_rare_types(sentences: Sequence[Sentence], numbers: Sequence[int], limit: int) -> list[int]:
    """The numbers of the sentences with an entity of a type of which fewer than `limit` come in earlier sentences."""
    seen: Counter[str] = Counter()
    chosen = []
    for sentence, number in zip(sentences, numbers, strict=True):
        types = Counter(tag[2:] for tag in sentence.tags if tag.startswith("B-"))
        if any(seen[kind] < limit for kind in types):
            chosen.append(number)
        seen += types
    return chosen
