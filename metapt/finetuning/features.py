"""Word features of labelled sets, computed by the decoder of a tagger; those of a frozen decoder can be cached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from torch import Tensor

from metapt.config import NerConfig
from metapt.files import file_sha256
from metapt.finetuning.feature_cache import FeatureCache
from metapt.tagger.encoding import EncodedSet, word_features
from metapt.tagger.model import Tagger


class FeatureExtractor:
    """Computes word features, or takes them from the cache.

    Args:
        cache: only for a frozen decoder.
        decoder_key: what the features depend on besides the encoded set (`decoder_key`).
    """

    def __init__(
        self,
        tagger: Tagger,
        ner: NerConfig,
        accelerator: Accelerator,
        cache: FeatureCache | None,
        decoder_key: dict[str, Any],
    ):
        self._tagger, self._accelerator = tagger, accelerator
        self._batch_size = ner.eval_batch_size
        self._cache, self._decoder_key = cache, decoder_key

    def __call__(self, encoded: EncodedSet) -> Tensor:
        """Return the features of the words of a set. fp32 [M, d], on the CPU."""

        def compute() -> Tensor:
            return word_features(self._tagger, encoded, self._batch_size, self._accelerator)

        if self._cache is None:
            return compute()
        return self._cache.get({**self._decoder_key, "set": encoded.sha256()}, compute)


def decoder_key(
    model_dir: Path, weights_sha256: str, ner: NerConfig, precision: str, device: torch.device
) -> dict[str, Any]:
    """Collect everything that word features depend on besides the encoded set.

    Batch size, device and library versions are included because they change the rounding.
    """
    return {
        "weights": weights_sha256,
        "config": file_sha256(model_dir / "config.json"),
        "subword_pooling": ner.subword_pooling,
        "precision": precision,
        "batch_size": ner.eval_batch_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "libraries": [torch.__version__, transformers.__version__],
    }
