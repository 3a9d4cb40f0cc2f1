"""What a tuned model is compared with: rules that need no training, and taggers that need no language model.

Tagalog and Cebuano mark a name by the word before it: si and ni stand before the name of a person, and so do kay
(Tagalog) and kang (Cebuano) where it is the goal of what happens. A baseline is a function and a line of BASELINES. No torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from metapt.data.iob2 import TAGS, Sentence, repaired
from metapt.data.particles import RULE_PARTICLES
from metapt.evaluation.predictions import Annotation

GOAL_PARTICLES = frozenset({"kay", "kang"})
NEIGHBOURS = (-2, -1, 1, 2)

Tags = Callable[[Sequence[str]], list[str]]
"""Words of a sentence to their tags."""


@dataclass(frozen=True)
class Training:
    """What a baseline learns from.

    c1, c2, max_iterations: of the CRF's training; file: where it keeps its model.
    """

    sentences: Sequence[Sentence]
    file: Path
    c1: float = 0.1
    c2: float = 0.1
    max_iterations: int = 100


@dataclass(frozen=True)
class Baseline:
    """A tagger without a language model.

    meaning: one clause, for the report. fit: makes what annotates a sentence. learns: whether `fit` reads its training.
    """

    meaning: str
    fit: Callable[[Training], Callable[[Sentence], Annotation]]
    learns: bool


def rule(meaning: str, tags: Tags) -> Baseline:
    """A baseline that needs no training."""
    return Baseline(meaning, lambda _: lambda sentence: Annotation(tags(sentence.words), None), learns=False)


def after_particle(particles: frozenset[str]) -> Tags:
    """The word after a particle (in any case) is a person of one word. A particle is never itself the person."""

    def tags(words: Sequence[str]) -> list[str]:
        lower = ["", *(word.lower() for word in words)]
        return [
            "B-PER" if before in particles and word not in particles else "O"
            for before, word in pairwise(lower)
        ]

    return tags


def capitals(words: Sequence[str]) -> list[str]:
    """Each longest run of capitalised words is a person; the first word, which is capitalised anyway, belongs to none."""
    found = ["I-PER" if place and word[0].isupper() else "O" for place, word in enumerate(words)]
    return list(repaired(found))


def majority(training: Training) -> Callable[[Sentence], Annotation]:
    """Each word, as it is spelled, gets the tag that it most often has in the training set; an unknown word O.

    An I-X that then continues no X becomes B-X. Of tags that are equally frequent the first of TAGS is taken.
    """
    counts: dict[str, Counter[str]] = {}
    for sentence in training.sentences:
        for word, tag in zip(sentence.words, sentence.tags, strict=True):
            counts.setdefault(word, Counter())[tag] += 1
    best = {word: max(TAGS, key=lambda tag: found[tag]) for word, found in counts.items()}
    return lambda sentence: Annotation(list(repaired([best.get(word, "O") for word in sentence.words])), None)


def crf(training: Training) -> Callable[[Sentence], Annotation]:
    """A linear-chain CRF on what words look like (`surface_features`), by CRFsuite: L-BFGS, elastic net."""
    import pycrfsuite

    trainer = pycrfsuite.Trainer(verbose=False)
    for sentence in training.sentences:
        trainer.append(surface_features(sentence.words), sentence.tags)
    settings = {"c1": training.c1, "c2": training.c2, "max_iterations": training.max_iterations}
    trainer.set_params({**settings, "feature.possible_transitions": True})
    trainer.train(str(training.file))
    tagger = pycrfsuite.Tagger()
    tagger.open(str(training.file))
    known = set(tagger.labels())

    def annotate(sentence: Sentence) -> Annotation:
        predicted = tagger.tag(surface_features(sentence.words))
        shares = [
            tagger.marginal(tag, place) if tag in known else 0.0 for place, tag in enumerate(sentence.tags)
        ]
        return Annotation(predicted, [math.log(max(share, LEAST_SHARE)) for share in shares])

    return annotate


LEAST_SHARE = 1e-300  # a tag that the CRF never saw has no share at all, and JSON no infinity


def surface_features(words: Sequence[str]) -> list[list[str]]:
    """For each word: itself, its ends and its shape, and its neighbours up to two words away and their shapes."""
    lower, shapes = [word.lower() for word in words], [shape(word) for word in words]
    found = []
    for place, word in enumerate(lower):
        features = ["bias", f"word={word}", f"shape={shapes[place]}"]
        features += [f"{size}-={word[:size]}" for size in (2, 3)] + [
            f"-{size}={word[-size:]}" for size in (2, 3)
        ]
        for step in NEIGHBOURS:
            there = place + step
            inside = 0 <= there < len(words)
            features += [f"{step}:word={lower[there]}", f"{step}:shape={shapes[there]}"] if inside else []
        features += ["first"] if place == 0 else []
        features += ["last"] if place == len(words) - 1 else []
        found.append(features)
    return found


def shape(word: str) -> str:
    """Kinds of characters, each run of equal ones once: `McDonald-2` is `XxXx-0`."""
    kinds = ["X" if c.isupper() else "x" if c.isalpha() else "0" if c.isdigit() else c for c in word]
    return "".join(kind for place, kind in enumerate(kinds) if place == 0 or kinds[place - 1] != kind)


BASELINES = {
    "particle": rule("the word after si or ni is a person", after_particle(RULE_PARTICLES)),
    "particle_kay": rule(
        "the word after si, ni, kay or kang is a person", after_particle(RULE_PARTICLES | GOAL_PARTICLES)
    ),
    "capitals": rule("each run of capitalised words, the first word aside, is a person", capitals),
    "majority": Baseline("each word's most frequent tag in the source's training set", majority, learns=True),
    "crf": Baseline("a CRF on surface features, trained on the source", crf, learns=True),
}
