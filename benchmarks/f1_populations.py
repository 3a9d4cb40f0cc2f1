"""Populations of known micro-F1 to sample data sets from: span counts of real predictions on Universal NER.

`python benchmarks/f1_populations.py` trains taggers and records the counts of their predictions in tests/f1_counts.npz
(two minutes; needs METAPT_UNER_DIR). The recording has counts only, no text.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from metapt.data.iob2 import Sentence, read_iob2, spans
from metapt.evaluation.baselines import PredictSentence, TrainingData, most_frequent_tag, surface_crf
from metapt.evaluation.bootstrap import micro_f1
from metapt.evaluation.span_f1 import span_counts

RECORDING = Path(__file__).parents[1] / "tests" / "f1_counts.npz"
SIZES = (10, 25, 50, 100, 200, 400, 1000, 3000)
"""training sentences of the taggers; the first few find almost nothing"""
SEEN = (0.5, 0.75, 1.0)
"""fractions of the test sentences that three more taggers are trained on, for F1 from 0.8 to 1"""
SETS = {
    "en_ewt from en_ewt": (("en_ewt",), "en_ewt"),
    "en_ewt from hr_set": (("en_ewt",), "hr_set"),
    "hr_set from en_ewt": (("hr_set",), "en_ewt"),
    "pt_pud from en_ewt": (("pt_pud",), "en_ewt"),
    "tl_trg, ceb_gja from en_ewt": (("tl_trg", "ceb_gja"), "en_ewt"),
    "da_ddt from da_ddt": (("da_ddt",), "da_ddt"),
    "zh_gsd from zh_gsd": (("zh_gsd",), "zh_gsd"),
}
"""the sets that are tagged, and the set whose training sentences the taggers are trained on"""
WITH_DOCUMENTS = ("en_ewt from en_ewt", "en_ewt from hr_set", "pt_pud from en_ewt")
"""of these, the documents are known and there are hundreds"""


@dataclass(frozen=True, eq=False)
class Population:
    """Units (sentences or documents) with the predictions of two systems, in a mixture that has a given micro-F1.

    A data set is a sample of units with replacement. A sampled unit has the predictions of the better system with
    probability `fraction`, else those of the worse one.

    Attributes:
        systems: span counts of the worse and of the better system, integers [2, units, (correct, predicted, gold)].
    """

    systems: np.ndarray
    fraction: float

    @classmethod
    def of(cls, systems: np.ndarray, f1: float) -> Population:
        """Mix the two systems whose F1 are closest to `f1` from either side.

        Args:
            systems: integers [systems, units, 3], in any order.
            f1: below 1, and at least the lowest F1 of the systems.
        """
        scores = micro_f1(systems.sum(axis=1))
        below, above = np.flatnonzero(scores <= f1), np.flatnonzero(scores > f1)
        pair = systems[[below[np.argmax(scores[below])], above[np.argmin(scores[above])]]]
        (correct, predicted, gold), (more_correct, more_predicted, _) = pair.sum(axis=1).tolist()
        missing = f1 * (predicted + gold) - 2 * correct
        gain = 2 * (more_correct - correct) - f1 * (more_predicted - predicted)
        return cls(pair, missing / gain)

    def units_for(self, gold_spans: int) -> int:
        """Return how many units have this many gold spans on average; at least 2."""
        return max(2, round(gold_spans / float(self.systems[0, :, 2].mean())))

    def data_set(self, units: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Return the span counts of sampled units, integers [units, 3].

        Args:
            units: their indices.
            uniform: of each, a random number in [0, 1) that decides on its system.
        """
        return self.systems[(uniform < self.fraction).astype(int), units]

    def moment(self, values: np.ndarray) -> float:
        """Return the mean over units and systems of `values` [2, units]."""
        worse, better = values.mean(axis=1).tolist()
        return (1 - self.fraction) * worse + self.fraction * better

    @cached_property
    def union(self) -> np.ndarray:
        """Number of spans that are predicted or gold, [2, units]."""
        return self.systems[..., 1] + self.systems[..., 2] - self.systems[..., 0]

    @cached_property
    def fraction_correct(self) -> float:
        """J = TP / (TP + FP + FN) of the population."""
        return self.moment(self.systems[..., 0]) / self.moment(self.union)

    @property
    def f1(self) -> float:
        return 2 * self.fraction_correct / (1 + self.fraction_correct)

    @cached_property
    def residuals(self) -> np.ndarray:
        """Residuals of the ratio estimator of J, [2, units]."""
        return self.systems[..., 0] - self.fraction_correct * self.union

    @cached_property
    def design_effect(self) -> float:
        """The variance of J of a large data set, divided by that of as many independent spans; 1 if J is 0."""
        binomial = self.fraction_correct * (1 - self.fraction_correct) * self.moment(self.union)
        return self.moment(self.residuals**2) / binomial if binomial else 1.0


@cache
def recorded(name: str, by_document: bool = False) -> np.ndarray:
    """Return the span counts of the recorded systems on a set, integers [systems, units, 3].

    Args:
        name: one of SETS.
        by_document: whether the units are documents instead of sentences; only for WITH_DOCUMENTS.
    """
    with np.load(RECORDING) as file:
        counts = file[name].astype(np.int64)
        if not by_document:
            return counts
        starts = np.flatnonzero(np.diff(file[f"{name}/documents"], prepend=-1))
    return np.add.reduceat(counts, starts, axis=1)


def record(folder: Path) -> None:
    """Train the taggers, and record the counts of their predictions and the documents of the sets."""
    arrays = {}
    for name, (sets, source) in SETS.items():
        paths = [folder / each / "test.iob2" for each in sets]
        sentences = [sentence for path in paths for sentence in read_iob2(path)]
        gold = [spans(sentence.tags) for sentence in sentences]
        counts = [
            span_counts([spans(predict(sentence).predicted) for sentence in sentences], gold)
            for predict in _taggers(read_iob2(folder / source / "train.iob2"), sentences)
        ]
        arrays[name] = np.stack(counts).astype(np.uint8)
        if name in WITH_DOCUMENTS:
            arrays[f"{name}/documents"] = _documents(paths[0])
        print(name, micro_f1(arrays[name].sum(axis=1, dtype=np.int64)).round(3).tolist(), flush=True)
    np.savez_compressed(RECORDING, allow_pickle=False, **arrays)


def _taggers(train: list[Sentence], test: list[Sentence]) -> Iterator[PredictSentence]:
    rng = np.random.default_rng(0)
    train = [train[index] for index in rng.permutation(len(train))]
    test = [test[index] for index in rng.permutation(len(test))]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        for size in SIZES:
            for fit in (most_frequent_tag, surface_crf):
                yield fit(TrainingData(train[:size], model))
        for fraction in SEEN:
            seen = test[: int(fraction * len(test))]
            yield surface_crf(TrainingData([*train[:1000], *seen], model, c1=0.01, c2=0.01))


def _documents(path: Path) -> np.ndarray:
    """Return the number of the document of each sentence, counted from 0."""
    number, found = -1, []
    for line in path.read_text(encoding="utf-8").splitlines():
        number += bool(re.match(r"# ?newdoc id", line))
        if line.startswith("# sent_id"):
            found.append(number)
    return np.array(found, dtype=np.uint16)


if __name__ == "__main__":
    record(Path(os.environ["METAPT_UNER_DIR"]))
