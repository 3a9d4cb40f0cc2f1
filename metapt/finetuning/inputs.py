"""What a fine-tuning run reads: a model, labelled sets, and the fingerprints that tell whether either has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metapt.config import FinetuneConfig, training_splits
from metapt.data.run_sets import RunSets, open_run_sets
from metapt.models.pretrained import model_folder, model_origin
from metapt.tagger.serialization import weights_sha256

TUNINGS = "tunings"  # the entry of a tagger's metapt.json that lists its fine-tunings, first to last


@dataclass(frozen=True)
class FinetuneInputs:
    """The inputs of one run.

    Attributes:
        origin: how the decoder was pretrained.
        earlier_tunings: of a tagger that is trained further, first to last.
        fingerprints: digests of the weights and of all sentences.
    """

    model_dir: Path
    origin: Mapping[str, Any]
    earlier_tunings: Sequence[Mapping[str, Any]]
    sets: RunSets
    fingerprints: Mapping[str, str]


def find_inputs(config: FinetuneConfig) -> FinetuneInputs:
    """The inputs that a configuration names.

    Raises:
        UserError: one does not exist, cannot be read, or has no entities to learn from.
    """
    model_dir = model_folder(config.checkpoint)
    origin = model_origin(model_dir, config.checkpoint)
    earlier = origin.pop(TUNINGS, [])
    sets = open_run_sets(config.data, config.source, training_splits(config))
    fingerprints = {"weights": weights_sha256(model_dir), "sentences": sets.fingerprint()}
    return FinetuneInputs(model_dir, origin, earlier, sets, fingerprints)
