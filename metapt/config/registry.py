"""What an objective can be built from, by name: one entry here and one file add a task or an initial head (docs/extending.md)."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """A registered class.

    help: a clause for `--help`; target: MODULE:NAME, imported when it is needed, since configurations import no torch.
    """

    help: str
    target: str

    def load(self) -> Any:
        return pkgutil.resolve_name(self.target)


TASKS = {
    "smlmt": Entry(
        "which word was masked in a window (subset masked language modelling)",
        "metapt.data.episodes:EpisodeSampler",
    ),
    "word_classes": Entry(
        "the class of a visible word at the end of a window", "metapt.data.word_windows:WordWindowSampler"
    ),
}
"""Tasks of episodes on windows: classes with `of(config, corpus)` and `episode(update, number) -> Episode`."""

INITIAL_HEADS = {
    "prototypes": Entry(
        "class means of the support states, with gradient and a learned scale",
        "metapt.meta.initial_heads:PrototypeHead",
    ),
    "zero": Entry("zeros: the inner loop makes all of the classifier", "metapt.meta.initial_heads:ZeroHead"),
    "learned": Entry(
        "trained; one row for each label, numbered at random", "metapt.meta.initial_heads:LearnedHead"
    ),
    "persistent": Entry(
        "trained; one row for each class of the task", "metapt.meta.initial_heads:PersistentHead"
    ),
}
"""Classifiers that an inner loop starts from: `metapt.meta.initial_heads.InitialHead`."""

INITIAL_MODEL = Entry("shape and tokenizer of a model", "metapt.models.initial_model:read_initial_model")
"""What `init=MODEL` sets in a configuration."""

RECORDED_SETTINGS = Entry("settings of the run of a model", "metapt.models.pretrained:recorded_settings")
"""What `metapt probe checkpoint=MODEL` sets in a configuration."""


def choices(entries: dict[str, Entry]) -> dict[str, str]:
    """The names and help clauses of a registry."""
    return {name: entry.help for name, entry in entries.items()}
