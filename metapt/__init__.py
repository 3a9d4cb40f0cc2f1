"""metapt: meta-pretrain small decoder language models and measure how they transfer to unseen languages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metapt.inference.entity_tagger import EntityTagger

__version__ = "0.2.0"


def load_tagger(
    path: str | Path, *, precision: str = "fp32", device: str = "auto", batch_size: int = 64
) -> EntityTagger:
    """Load a tagger that `metapt finetune` trained: `load_tagger(path).tag(["Pumunta si Maria sa Cebu."])`.

    Args:
        path: a finished fine-tuning run, or its tagger folder.
        precision: precision of the model, `fp32` or `bf16`; the CRF stays in fp32.
        device: torch device, such as `cuda:1`; `auto` is the first of cuda, mps and cpu that there is.
        batch_size: maximum number of sentences in a batch.
    Raises:
        UserError: there is no tagger at that path.
    """
    from metapt.inference.entity_tagger import EntityTagger  # imports torch, so only when it is needed

    return EntityTagger.load(path, precision=precision, device=device, batch_size=batch_size)
