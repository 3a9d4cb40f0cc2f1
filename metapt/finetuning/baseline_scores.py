"""The scores of the baselines on the sentences of a fine-tuning run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metapt.config import FinetuneConfig, training_splits
from metapt.data.collection import Collection
from metapt.data.subsets import scored_words, training_subset
from metapt.evaluation.reference_scores import reference_scores
from metapt.training.progress_line import log


def baseline_scores(
    config: FinetuneConfig, collection: Collection, sources: Sequence[str], eval_sets: Sequence[str]
) -> dict[str, Any]:
    """The scores of baselines that learn from the training sentences of the run, as in `reference_scores`."""
    train, dev = (
        [sentence for name in sources for sentence in collection.load(name, split)]
        if split in training_splits(config)
        else []
        for split in ("train", "dev")
    )
    chosen = training_subset(train, config.data, scored_words(collection, eval_sets))
    tests = {name: collection.load(name, "test") for name in eval_sets}
    log("training baselines on the same sentences")
    return reference_scores([train[number] for number in chosen], dev, tests)
