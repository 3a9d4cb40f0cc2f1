"""Random subsets of training sentences."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ner_world import labelled, write_collection

from metapt.config import NerDataConfig
from metapt.data.iob2 import Sentence
from metapt.data.labelled_sets import open_collection
from metapt.data.shared_sentences import folded_words
from metapt.data.subsets import scored_words, training_subset
from metapt.errors import UserError

NONE: frozenset[tuple[str, ...]] = frozenset()


def data(**changes: object) -> NerDataConfig:
    return NerDataConfig(name="uner", **changes)


def types_of(sentence: Sentence) -> Counter[str]:
    return Counter(tag[2:] for tag in sentence.tags if tag.startswith("B-"))


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 40),
    seed=st.integers(0, 5),
    content=st.integers(0, 1000),
    limits=st.tuples(st.integers(1, 45), st.integers(1, 45)),
    kind=st.sampled_from(["max_train_sentences", "entities_per_type"]),
    excluded=st.integers(0, 4),
)
def test_properties_of_subsets(
    count: int, seed: int, content: int, limits: tuple[int, int], kind: str, excluded: int
):
    sentences = labelled(count, content)
    scored = frozenset(folded_words(sentence) for sentence in sentences[:excluded])
    allowed = [number for number, sentence in enumerate(sentences) if folded_words(sentence) not in scored]
    if not allowed:
        with pytest.raises(UserError, match="none is left to train on"):
            training_subset(sentences, data(max_train_sentences=1), scored)
        return
    small, large = (
        training_subset(sentences, data(subset_seed=seed, **{kind: limit}), scored).tolist()
        for limit in sorted(limits)
    )
    assert small == sorted(set(small))
    assert set(small) <= set(large) <= set(allowed)
    for limit, chosen in zip(sorted(limits), (small, large), strict=True):
        if kind == "max_train_sentences":
            assert len(chosen) == min(limit, len(allowed))
            continue
        available, found = (
            sum((types_of(sentences[number]) for number in numbers), Counter())
            for numbers in (allowed, chosen)
        )
        assert all(found[name] >= min(limit, available[name]) for name in available)
        # each sentence is there for a type of which fewer than k came before, so there are at most k for a type
        sentences_with = Counter(name for number in allowed for name in types_of(sentences[number]))
        assert len(chosen) <= sum(min(limit, with_type) for with_type in sentences_with.values())


def test_a_subset_is_the_same_for_every_model_and_random() -> None:
    sentences = [Sentence(f"s{number}", (f"w{number}",), ("O",)) for number in range(1000)]
    subsets = [
        training_subset(sentences, data(max_train_sentences=100, subset_seed=seed), NONE)
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(subsets[0], subsets[1])
    overlap = len(set(subsets[0].tolist()) & set(subsets[2].tolist()))
    assert overlap < 25  # 10 expected
    assert abs(subsets[0].mean() - 499.5) < 4 * 1000 / 12**0.5 / 10  # not the first ones
    assert np.array_equal(training_subset(sentences, data(), NONE), np.arange(1000))


def test_scored_sentences_are_those_of_the_evaluated_test_sets(tmp_path) -> None:
    collection = open_collection(data(uner_dir=str(write_collection(tmp_path))))
    tests = {
        name: {folded_words(sentence) for sentence in collection.load(name, "test")}
        for name in ("aa_one", "bb_two")
    }
    assert scored_words(collection, ["bb_two"]) == tests["bb_two"]
    assert scored_words(collection, ["aa_one", "bb_two"]) == tests["aa_one"] | tests["bb_two"]


@pytest.mark.parametrize("limit", [{"max_train_sentences": 5}, {"entities_per_type": 2}])
def test_a_rule_which_is_trained_on_nothing_has_an_empty_subset(limit: dict[str, int]) -> None:
    assert training_subset([], data(**limit), NONE).tolist() == []
