"""Low-rank adapters on a decoder (LoRA; Hu et al. 2021, arXiv 2106.09685), through peft.

Each linear layer W gets W + (alpha / rank) B A, of which only A [rank, in] and B [out, rank] learn; B begins at zero. In the end the
product is added to W, so that what was tuned is an ordinary decoder again.
"""

from __future__ import annotations

from importlib.util import find_spec

from transformers import PreTrainedModel

from metapt import randomness
from metapt.errors import UserError


def with_adapters(decoder: PreTrainedModel, rank: int, alpha: float, seed: int) -> PreTrainedModel:
    """The decoder with adapters on all its linear layers, which alone learn.

    Raises:
        UserError: peft is not installed.
    """
    if find_spec("peft") is None:
        raise UserError("tuning=lora needs peft: pip install 'metapt[lora]'")
    from peft import LoraConfig, get_peft_model

    with randomness.torch_seed(seed, "adapters"):
        return get_peft_model(decoder, LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear"))


def merged(decoder: PreTrainedModel) -> PreTrainedModel:
    """The decoder that `with_adapters` was given, with what its adapters have learned."""
    return decoder.merge_and_unload()
