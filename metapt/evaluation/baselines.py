"""Baselines for NER: rules that need no training, and taggers that need no language model.

Tagalog and Cebuano mark personal names by the preceding word: si and ni precede the name of a person, and so do kay
(Tagalog) and kang (Cebuano) before the recipient or goal. A new baseline is a function, an entry in BASELINES, and a
description in metapt/baseline_names.py. Imports no torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from metapt.data.iob2 import Sentence, tags_of, to_iob2, types_of
from metapt.data.particles import RULE_PARTICLES, is_title
from metapt.evaluation.predictions import MIN_PROBABILITY, SentencePrediction

GOAL_PARTICLES = frozenset({"kay", "kang"})
NEIGHBOURS = (-2, -1, 1, 2)  # offsets of the words whose features a word gets

TagWords = Callable[[Sequence[str]], list[str]]
"""Maps the words of a sentence to their tags."""

PredictSentence = Callable[[Sentence], SentencePrediction]


@dataclass(frozen=True)
class TrainingData:
    """Training sentences and settings of a baseline.

    Attributes:
        model_file: where the CRF saves its model.
        c1, c2: L1 and L2 penalties of the CRF.
        max_iterations: limit on the L-BFGS iterations of the CRF.
    """

    sentences: Sequence[Sentence]
    model_file: Path
    c1: float = 0.1
    c2: float = 0.1
    max_iterations: int = 100


WordFeatureNames = Callable[[Sequence[str]], list[list[str]]]
"""Maps the words of a sentence to the names of the features of each word."""

FitBaseline = Callable[[TrainingData], PredictSentence]
"""Creates the function that tags a sentence; a rule ignores the training data."""


def rule_baseline(tag_words: TagWords) -> FitBaseline:
    """Create a baseline that needs no training."""

    def predict(sentence: Sentence) -> SentencePrediction:
        return SentencePrediction(tag_words(sentence.words), None)

    return lambda _: predict


def person_after_particle(particles: frozenset[str]) -> TagWords:
    """Create the rule that the word after a particle (in upper or lower case) is a person of one word.

    A particle is never a person.
    """

    def tag_words(words: Sequence[str]) -> list[str]:
        lower = ["", *(word.lower() for word in words)]
        return [
            "B-PER" if previous in particles and word not in particles else "O"
            for previous, word in pairwise(lower)
        ]

    return tag_words


def person_phrase_after_particle(particles: frozenset[str]) -> TagWords:
    """Create the rule that the capitalized words after a particle and any titles are a person.

    Titles and forms of address (`metapt.data.particles.TITLES`) are skipped: of `si Mayor Juan Cruz` the last two words are
    the person. Without a capitalized word there is none. A particle ends the phrase.
    """

    def tag_words(words: Sequence[str]) -> list[str]:
        tags = ["O"] * len(words)
        for position in (index for index, word in enumerate(words) if word.lower() in particles):
            start = position + 1
            while start < len(words) and is_title(words[start]):
                start += 1
            end = start
            while end < len(words) and words[end][0].isupper() and words[end].lower() not in particles:
                end += 1
            tags[start:end] = ["B-PER", *["I-PER"] * (end - start - 1)][: end - start]
        return tags

    return tag_words


def capitalized_runs(words: Sequence[str]) -> list[str]:
    """Tag each maximal run of capitalized words as a person, except for the first word, which is always capitalized."""
    tags = ["I-PER" if index and word[0].isupper() else "O" for index, word in enumerate(words)]
    return list(to_iob2(tags))


def most_frequent_tag(training: TrainingData) -> PredictSentence:
    """Tag each word form with its most frequent tag in the training set, and unknown words with O.

    An I-X that does not continue an X becomes B-X. Ties go to the first tag of `tags_of`.
    """
    counts: dict[str, Counter[str]] = {}
    for sentence in training.sentences:
        for word, tag in zip(sentence.words, sentence.tags, strict=True):
            counts.setdefault(word, Counter())[tag] += 1
    tags = tags_of(types_of(training.sentences))
    best = {word: max(tags, key=lambda tag: found[tag]) for word, found in counts.items()}

    def predict(sentence: Sentence) -> SentencePrediction:
        return SentencePrediction(list(to_iob2([best.get(word, "O") for word in sentence.words])), None)

    return predict


def surface_crf(training: TrainingData, features: WordFeatureNames | None = None) -> PredictSentence:
    """Train a linear-chain CRF with CRFsuite (L-BFGS, elastic net).

    Args:
        features: of the words; None: `surface_features`.
    """
    import pycrfsuite

    features = features or surface_features

    trainer = pycrfsuite.Trainer(verbose=False)
    for sentence in training.sentences:
        trainer.append(features(sentence.words), sentence.tags)
    settings = {"c1": training.c1, "c2": training.c2, "max_iterations": training.max_iterations}
    trainer.set_params({**settings, "feature.possible_transitions": True})
    trainer.train(str(training.model_file))
    tagger = pycrfsuite.Tagger()
    tagger.open(str(training.model_file))
    known = set(tagger.labels())

    def predict(sentence: Sentence) -> SentencePrediction:
        predicted = tagger.tag(features(sentence.words))
        gold_probabilities = [
            tagger.marginal(tag, index) if tag in known else 0.0 for index, tag in enumerate(sentence.tags)
        ]
        logprobs = [math.log(max(probability, MIN_PROBABILITY)) for probability in gold_probabilities]
        return SentencePrediction(predicted, logprobs)

    return predict


def surface_features(words: Sequence[str]) -> list[list[str]]:
    """Describe each word by its form, its affixes and its shape, and by form and shape of words up to two away."""
    lower, shapes = [word.lower() for word in words], [word_shape(word) for word in words]
    rows = []
    for index, word in enumerate(lower):
        features = ["bias", f"word={word}", f"shape={shapes[index]}"]
        features += [f"{size}-={word[:size]}" for size in (2, 3)]
        features += [f"-{size}={word[-size:]}" for size in (2, 3)]
        for offset in NEIGHBOURS:
            neighbour = index + offset
            if 0 <= neighbour < len(words):
                features += [f"{offset}:word={lower[neighbour]}", f"{offset}:shape={shapes[neighbour]}"]
        features += ["first"] if index == 0 else []
        features += ["last"] if index == len(words) - 1 else []
        rows.append(features)
    return rows


def word_shape(word: str) -> str:
    """Map characters to classes and merge runs of the same class: `McDonald-2` becomes `XxXx-0`."""
    kinds = ["X" if c.isupper() else "x" if c.isalpha() else "0" if c.isdigit() else c for c in word]
    return "".join(kind for index, kind in enumerate(kinds) if index == 0 or kinds[index - 1] != kind)


BASELINES: dict[str, FitBaseline] = {
    "particle": rule_baseline(person_after_particle(RULE_PARTICLES)),
    "particle_kay": rule_baseline(person_after_particle(RULE_PARTICLES | GOAL_PARTICLES)),
    "particle_phrase": rule_baseline(person_phrase_after_particle(RULE_PARTICLES)),
    "capitals": rule_baseline(capitalized_runs),
    "majority": most_frequent_tag,
    "crf": surface_crf,
}
