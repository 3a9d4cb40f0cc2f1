"""The labelled sets of one run: which it learns from, which it is scored on, and what its result says about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metapt.config import NerDataConfig
from metapt.data.collection import Collection
from metapt.data.iob2 import Sentence
from metapt.data.labelled_sets import evaluated_sets, open_collection, source_sets
from metapt.data.shared_sentences import shared_with_sources, source_digests
from metapt.data.subsets import scored_words, training_subset
from metapt.errors import UserError


@dataclass(frozen=True)
class RunSets:
    """The sets of a run.

    Attributes:
        data: decides which training sentences are sampled.
        collection: has these sets and others.
        sources: the sets that are learned from; none for a rule.
        splits: of the sources that the run reads: "train", and "dev" if something is selected.
        evaluated: the sets whose test sentences are scored.
    """

    data: NerDataConfig
    collection: Collection
    sources: Sequence[str]
    splits: Sequence[str]
    evaluated: Sequence[str]

    def sentences(self, split: str) -> list[list[Sentence]]:
        """The sentences of one split of each source; empty for a split that the run does not read."""
        if split not in self.splits:
            return []
        return [self.collection.load(name, split) for name in self.sources]

    def training_sample(self) -> list[list[Sentence]]:
        """The training sentences of each source that `data` selects: all, or a sample without scored ones (`training_subset`).

        Raises:
            UserError: a sample is requested, and every training sentence is a scored one.
        """
        sets = self.sentences("train")
        together = [sentence for sentences in sets for sentence in sentences]
        chosen = training_subset(together, self.data, scored_words(self.collection, self.evaluated))
        ends = np.cumsum([len(sentences) for sentences in sets])
        parts = np.split(chosen, np.searchsorted(chosen, ends[:-1])) if sets else []
        return [[together[number] for number in numbers] for numbers in parts]

    def tests(self) -> dict[str, list[Sentence]]:
        """The test sentences of each evaluated set."""
        return {name: self.collection.load(name, "test") for name in self.evaluated}

    def fingerprint(self) -> str:
        """SHA-256 of all sentences that the run reads (`Collection.fingerprint`)."""
        parts = [(name, split) for name in self.sources for split in self.splits]
        return self.collection.fingerprint(parts + [(name, "test") for name in self.evaluated])

    def result_entries(self, earlier_tunings: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        """What result.json says about the sets, once they have been read.

        Args:
            earlier_tunings: of the same tagger.
        """
        sources = {"source_sha256": source_digests(self.collection, self.sources)}
        tunings = [*earlier_tunings, sources]
        return {
            **sources,
            "source_sets": list(self.sources),
            "generated_data": self.data.name == "demo",
            "custom_sets": self.collection.custom_sets,
            "sentences_left_out": dict(self.collection.report.bad_input.skipped),
            "shared_sentences": shared_with_sources(self.collection, tunings, self.evaluated),
        }


def open_run_sets(
    data: NerDataConfig, source: str | None, splits: Sequence[str] = ("train", "dev")
) -> RunSets:
    """Open the sets that a run names, and read the splits of its source.

    Args:
        source: as in `source_sets`; None: the run learns from no sentence.
        splits: of the source that the run reads.
    Raises:
        UserError: a set or split does not exist or cannot be read, or the source has no entities to learn from.
    """
    collection = open_collection(data, source, data.eval_sets)
    evaluated = evaluated_sets(collection, data.eval_sets)
    if source is None:
        return RunSets(data, collection, (), (), evaluated)
    sources = source_sets(collection, source, splits)
    _check_has_entities(collection, sources, splits)
    return RunSets(data, collection, sources, splits, evaluated)


def _check_has_entities(collection: Collection, names: Sequence[str], splits: Sequence[str]) -> None:
    """Check that these splits of the source sets contain entities.

    Without them there is nothing to learn, or no score for early stopping. Test sets need none: their scores then
    have `gold_spans: 0`.

    Raises:
        UserError: no sentence of a split has an entity; the message names the split.
    """
    for split in splits:
        if not any(set(sentence.tags) - {"O"} for name in names for sentence in collection.load(name, split)):
            raise UserError(f"source={'+'.join(names)}: its {split} split contains no entity")
