"""Evaluation sets of synthetic sentences in realistic sizes, and predictions for them at several levels of skill."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from metapt.data.iob2 import TYPES, spans
from metapt.evaluation.span_f1 import span_counts

SETS = {
    "tl_trg": (128, 734, 23),
    "tl_ugnayan": (94, 1097, 33),
    "ceb_gja": (188, 1295, 49),
    "da_ddt": (565, 10023, 410),
}
"""(sentences, words, gold spans) of the evaluation sets"""
SKILLS, VARIANTS = 8, 25  # levels of skill, and different predictions for a sentence at each


@dataclass
class PredictedSet:
    """An evaluation set with several predictions for each sentence.

    Attributes:
        heads: the beginning of each sentence's line in the file of predictions: id, words and gold tags.
        tags, logprobs: of each sentence, the JSON of every prediction.
        counts: of each sentence and prediction, [types, (correct, predicted, gold)].
    """

    name: str
    words: int = 0
    heads: list[str] = field(default_factory=list)
    tags: list[list[str]] = field(default_factory=list)
    logprobs: list[list[str]] = field(default_factory=list)
    counts: list[list[np.ndarray]] = field(default_factory=list)

    @classmethod
    def of_name(cls, name: str) -> PredictedSet:
        """Create the set of this name, always the same."""
        sentences, words, gold_spans = SETS[name]
        draws = np.random.default_rng(list(name.encode()))
        found = cls(name, words)
        uniform = np.full(sentences, 1 / sentences)
        lengths = 1 + draws.multinomial(words - sentences, uniform)
        spans_of_sentences = draws.multinomial(gold_spans, uniform)
        for length, span_count in zip(lengths.tolist(), spans_of_sentences.tolist(), strict=True):
            found._add_sentence(length, span_count, draws)
        return found

    def _add_sentence(self, length: int, span_count: int, draws: np.random.Generator) -> None:
        tokens = [_word(number) for number in draws.integers(0, 5000, length).tolist()]
        gold = _add_spans(["O"] * length, span_count, draws)
        head = json.dumps({"id": f"{self.name}-{len(self.heads)}", "words": tokens, "gold": gold})
        self.heads.append(head[:-1])
        skills = np.repeat(np.linspace(0, 1, SKILLS), VARIANTS)
        predictions = [_predict(gold, skill, draws) for skill in skills]
        self.tags.append([json.dumps(tags) for tags in predictions])
        logprobs = -np.exp(draws.normal(-5, 2, (len(predictions), length))).round(6)
        self.logprobs.append([json.dumps(row) for row in logprobs.tolist()])
        self.counts.append([_counts(gold, tags) for tags in predictions])

    def predictions(
        self, skill: int, draws: np.random.Generator, has_logprobs: bool = True
    ) -> tuple[str, dict[str, Any]]:
        """Return the content of a file of predictions, and the set's entry in result.json.

        Args:
            skill: index of a level of skill.
        """
        chosen = (skill * VARIANTS + draws.integers(0, VARIANTS, len(self.heads))).tolist()
        lines = []
        for head, tags, logprobs, index in zip(self.heads, self.tags, self.logprobs, chosen, strict=True):
            logprob = logprobs[index] if has_logprobs else "null"
            lines.append(f'{head}, "predicted": {tags[index]}, "gold_logprob": {logprob}}}\n')
        totals = sum(counts[index] for counts, index in zip(self.counts, chosen, strict=True))
        scores = _scores(*totals.sum(axis=0).tolist())
        entry = {
            **scores,
            "split": "test",
            "sentences": len(self.heads),
            "words": self.words,
            "f1_interval": [0.1, 0.9],
            "conlleval": scores,
            "per_type": {name: _scores(*row) for name, row in zip(TYPES, totals.tolist(), strict=True)},
        }
        return "".join(lines), entry


def _word(number: int) -> str:
    return "".join("bkdghlmnprst"[i % 12] + "aiou"[i % 4] for i in (number, number // 12, number // 144))


def _add_spans(tags: list[str], count: int, draws: np.random.Generator) -> list[str]:
    """Add at most `count` spans of one to three words where the tags are O."""
    for _ in range(count):
        size, entity_type = int(draws.integers(1, 4)), TYPES[draws.choice(3, p=[0.6, 0.2, 0.2])]
        start = int(draws.integers(0, len(tags)))
        if all(tag == "O" for tag in tags[start : start + size]):
            _set_span(tags, entity_type, start, min(start + size, len(tags)))
    return tags


def _set_span(tags: list[str], entity_type: str, start: int, end: int) -> None:
    tags[start:end] = [f"B-{entity_type}", *[f"I-{entity_type}"] * (end - start - 1)]


def _predict(gold: Sequence[str], skill: float, draws: np.random.Generator) -> list[str]:
    """Return the tags of a model of this skill (0 to 1), with missed, mistyped, too long and spurious spans."""
    tags = ["O"] * len(gold)
    for entity_type, start, end in spans(gold):
        luck = draws.random()
        if luck > 0.2 + 0.8 * skill:
            entity_type, end = TYPES[draws.integers(3)], min(end + int(draws.integers(2)), len(gold))
        if luck < 0.5 + 0.5 * skill:
            _set_span(tags, entity_type, start, end)
    return _add_spans(tags, int(draws.random() < 0.3 * (1 - skill)), draws)


def _counts(gold: Sequence[str], predicted: Sequence[str]) -> np.ndarray:
    """Return the span counts of each type, [types, (correct, predicted, gold)]."""
    sides = [
        [[span for span in spans(tags) if span[0] == name] for name in TYPES] for tags in (predicted, gold)
    ]
    return span_counts(*sides)


def _scores(correct: int, predicted: int, gold: int) -> dict[str, Any]:
    return {
        "gold_spans": gold,
        "predicted_spans": predicted,
        "correct_spans": correct,
        "precision": correct / max(1, predicted),
        "recall": correct / max(1, gold),
        "f1": 2 * correct / max(1, predicted + gold),
    }
