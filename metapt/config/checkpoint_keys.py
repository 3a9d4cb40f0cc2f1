"""The keys of `metapt probe` that follow from its checkpoint: what its run measured word classes with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from metapt import config as schema
from metapt.config.keys import fields_by_path
from metapt.config.registry import RECORDED_SETTINGS

MEASURED_WITH = (
    "data.max_tokens",
    "data.vocab_size",
    "train.eval_sequences",
    "train.precision",
    "train.seq_len",
)
"""Keys beside those that `model=` or `init=` sets; the corpus and its classes are the user's choice."""


def fill_from_checkpoint(composed: Any, words: Sequence[str]) -> None:
    """Set the keys that decide what a probe gives as in the run of its checkpoint; what the words give stays.

    Args:
        composed: the configuration as Hydra composed it, changed in place.
        words: the `key=value` words of the command line.
    Raises:
        OperationalError: the hub is not available.
    """
    if OmegaConf.is_missing(composed, "checkpoint"):
        return
    recorded = RECORDED_SETTINGS.load()(composed.checkpoint)
    given = {word.partition("=")[0] for word in words}
    names = list(MEASURED_WITH)
    if not any(name == "init" or name.split(".")[0] == "model" for name in given):
        of_model = [name for name in fields_by_path(schema.ProbeConfig) if name.startswith("model.")]
        names += ["data.tokenizer", *of_model]
    for name in names:
        if name not in given and recorded.get(name) is not None:
            OmegaConf.update(composed, name, recorded[name])
