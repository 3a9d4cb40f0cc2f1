"""What a fine-tuning run reads: a model, labelled sets, and the fingerprints that tell whether either has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metapt.config import FinetuneConfig, training_splits
from metapt.data.collection import Collection
from metapt.data.labelled_sets import check_has_entities, evaluated_sets, open_collection, source_sets
from metapt.models.pretrained import model_folder, model_origin
from metapt.tagger.serialization import weights_sha256

TUNINGS = "tunings"  # the entry of a tagger's metapt.json that lists its fine-tunings, first to last


@dataclass(frozen=True)
class FinetuneInputs:
    """The inputs of one run.

    Attributes:
        origin: how the decoder was pretrained.
        earlier_tunings: of a tagger that is trained further, first to last.
        sources: the sets whose training sentences are learned from.
        eval_sets: the sets whose test sentences are scored; no sample of training sentences has one of them.
        fingerprints: digests of the weights and of all sentences.
    """

    model_dir: Path
    origin: Mapping[str, Any]
    earlier_tunings: Sequence[Mapping[str, Any]]
    collection: Collection
    sources: Sequence[str]
    eval_sets: Sequence[str]
    fingerprints: Mapping[str, str]

    @property
    def tuned_on(self) -> list[str]:
        """The sets of all fine-tunings, each once, first to last."""
        earlier = (name for tuning in self.earlier_tunings for name in tuning["source_sets"])
        return list(dict.fromkeys([*earlier, *self.sources]))


def find_inputs(config: FinetuneConfig) -> FinetuneInputs:
    """The inputs that a configuration names.

    Raises:
        UserError: one does not exist, cannot be read, or has no entities to learn from.
    """
    model_dir = model_folder(config.checkpoint)
    origin = model_origin(model_dir, config.checkpoint)
    earlier = origin.pop(TUNINGS, [])
    collection = open_collection(config.data, config.source, config.data.eval_sets)
    eval_sets = evaluated_sets(collection, config.data.eval_sets)
    splits = training_splits(config)
    sources = source_sets(collection, config.source, splits)
    check_has_entities(collection, sources, splits)
    parts = [(name, split) for name in sources for split in splits]
    parts += [(name, "test") for name in eval_sets]
    fingerprints = {"weights": weights_sha256(model_dir), "sentences": collection.fingerprint(parts)}
    return FinetuneInputs(model_dir, origin, earlier, collection, sources, eval_sets, fingerprints)
