"""Low-rank adapters on a decoder (LoRA; Hu et al. 2021, arXiv 2106.09685), through peft.

Each linear layer W becomes W + (alpha / rank) B A. Only A [rank, in] and B [out, rank] are trained; B starts at zero.
After training the product is added to W, so that the result is an ordinary decoder.
"""

from __future__ import annotations

from importlib.util import find_spec

from transformers import PreTrainedModel

from metapt import randomness
from metapt.errors import UserError, install_hint


def with_adapters(decoder: PreTrainedModel, rank: int, alpha: float, seed: int) -> PreTrainedModel:
    """Add adapters to all linear layers of a decoder; only the adapters are trainable.

    Raises:
        UserError: peft is not installed.
    """
    if find_spec("peft") is None:
        raise UserError(f"tuning=lora needs peft. {install_hint('lora')}")
    from peft import LoraConfig, get_peft_model

    with randomness.torch_seed(seed, "adapters"):
        return get_peft_model(decoder, LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear"))


def merged(decoder: PreTrainedModel) -> PreTrainedModel:
    """Add the trained adapters to the weights and return the ordinary decoder."""
    return decoder.merge_and_unload()
