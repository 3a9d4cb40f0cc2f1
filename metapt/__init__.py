"""metapt: meta-pretrain small decoder language models and measure how they transfer to unseen languages."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metapt.api import (
        FinetunedTagger,
        SetScore,
        compare,
        evaluate,
        finetune,
        load_runs,
        load_tagger,
        sample_episode,
        score,
    )
    from metapt.data.episodes import Episode

__version__ = "0.2.0"
__all__ = [
    "Episode",
    "FinetunedTagger",
    "SetScore",
    "compare",
    "evaluate",
    "finetune",
    "load_runs",
    "load_tagger",
    "sample_episode",
    "score",
]


def __getattr__(name: str) -> Any:
    """Import a function of the interface when it is first used, since some of its modules import torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "metapt.data.episodes" if name == "Episode" else "metapt.api"
    return getattr(import_module(module), name)
