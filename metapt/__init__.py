"""metapt: meta-pretrain small decoder language models and measure how they transfer to unseen languages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metapt.inference.entity_tagger import EntityTagger

__version__ = "0.2.0"


def load_tagger(
    path: str | Path, *, precision: str = "fp32", device: str = "cpu", batch_size: int = 64
) -> EntityTagger:
    """A tagger that `metapt.finetune` made, ready to tag: `load_tagger(path).tag(["Pumunta si Maria sa Cebu."])`.

    Args:
        path: a finished fine-tuning run, or its tagger folder.
        precision: of the decoder, `fp32` or `bf16`; the CRF is always fp32.
        device: of torch.
        batch_size: sentences that are read at once.
    Raises:
        UserError: there is no tagger at that path.
    """
    from metapt.inference.entity_tagger import EntityTagger  # imports torch: not before it is needed

    return EntityTagger.load(path, precision=precision, device=device, batch_size=batch_size)
