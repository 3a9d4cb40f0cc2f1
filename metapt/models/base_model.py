"""Loading the decoder or encoder of a model folder, without its output layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from metapt.errors import UserError, first_line, listed

# What DistributedDataParallel, torch.compile and peft put before the names of the weights that are saved from them.
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "base_model.model.")
OPTIONAL = ("pooler.",)  # of an encoder; fine-tuning does not use it
T5_ENCODERS = ("t5", "mt5", "umt5")  # model types whose encoder transformers loads by itself
LISTED = 3  # missing weights that an error names
LOADING_ERRORS = (  # what transformers raises for models that it or this package cannot use
    OSError,
    ValueError,
    KeyError,
    AttributeError,
    RuntimeError,
    UnpicklingError,
    ImportError,
    TypeError,
    SafetensorError,
)


def load_weights(
    auto_class: Any, folder: Path, dtype: torch.dtype, attention: str | None = None
) -> tuple[PreTrainedModel, list[str]]:
    """Load a model with one of the Auto classes of transformers, from *.safetensors, or else *.bin.

    Of pickled files (*.bin) only tensors are read. The names of wrappers before those of the weights are removed.

    Args:
        attention: name of the attention implementation; None: the default of transformers.
    Returns: the model, and the names of its weights that the files lack, in alphabetical order.
    Raises:
        LOADING_ERRORS: it cannot be loaded.
    """
    transformers_logging.set_verbosity_error()  # it would warn of weights that are not used, which is intended
    transformers_logging.disable_progress_bar()
    model, report = auto_class.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation=attention,
        weights_only=True,
        local_files_only=True,
        key_mapping={f"^({'|'.join(map(re.escape, WRAPPER_PREFIXES))})+": ""},
        output_loading_info=True,
    )
    return model, sorted(report["missing_keys"])


def load_base_model(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load the decoder or encoder of a model folder, without its output layer.

    Of T5, mT5 and umT5 this is the encoder, of a model with a text part among others (images, audio) the text part. The
    attention implementation is the default of transformers for the architecture. See `load_weights`.

    Raises:
        UserError: the model cannot be loaded; weights of it are missing in the files (they would be random); it is not
            one stack of layers that turns subwords into hidden states.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        is_t5 = config.model_type in T5_ENCODERS
        if config.is_encoder_decoder and not is_t5:
            raise UserError(
                f"{folder}: {_kind(config)} is an encoder-decoder, which cannot be fine-tuned as a tagger; use a decoder, an "
                f"encoder, or the encoder of {', '.join(T5_ENCODERS)}"
            )
        model, missing = load_weights(AutoModelForTextEncoding if is_t5 else AutoModel, folder, dtype)
        if config.get_text_config() is not config:
            model, missing = _text_part(folder, model, missing)
    except LOADING_ERRORS as error:
        raise UserError(f"{folder}: cannot be loaded as a model ({first_line(error)})") from None
    _require_all(folder, missing)
    return model


def is_causal(model: PreTrainedModel) -> bool:
    """Whether a hidden state ignores the subwords to its right.

    Tested on two subwords: the derivative of the first state with respect to the second embedding is exactly 0 in a
    causal model.

    Raises:
        UserError: the model does not map subwords to hidden states in the usual way.
    """
    try:
        return _is_causal(model)
    except LOADING_ERRORS as error:
        raise UserError(f"{type(model).__name__} cannot be used as a tagger ({first_line(error)})") from None


def _is_causal(model: PreTrainedModel) -> bool:
    training = model.training
    with torch.enable_grad():
        embeddings = model.get_input_embeddings()(torch.zeros(1, 2, dtype=torch.long, device=model.device))
        embeddings = embeddings.detach().requires_grad_()
        first = model.eval()(inputs_embeds=embeddings).last_hidden_state[0, 0].float()
        model.train(training)
        # the weights differ because a plain sum of a normalised state may be constant
        weighted_sum = first @ torch.linspace(0, 1, len(first), device=first.device)
        (gradient,) = torch.autograd.grad(weighted_sum, embeddings)
    return not gradient[0, 1].any()


def _kind(config: PretrainedConfig) -> str:
    return type(config).__name__.removesuffix("Config")


def _text_part(
    folder: Path, whole: PreTrainedModel, missing: Sequence[str]
) -> tuple[PreTrainedModel, list[str]]:
    """The text decoder of a model with parts for other inputs, and which of the missing weights belong to it.

    Raises:
        UserError: the model has no such part.
    """
    part = whole.get_decoder()
    if part is whole or not isinstance(part, PreTrainedModel):
        raise UserError(
            f"{folder}: {_kind(whole.config)} has parts for other inputs than text, and none for text alone; save its text "
            "model as a model folder of its own"
        )
    own = {id(value) for value in part.state_dict(keep_vars=True).values()}
    names = {name for name, value in whole.state_dict(keep_vars=True).items() if id(value) in own}
    return part, [name for name in missing if name in names]


def _require_all(folder: Path, missing: Sequence[str]) -> None:
    """Refuse a model of which weights are missing, since they would be random."""
    needed = [name for name in missing if not name.startswith(OPTIONAL)]
    if needed:
        raise UserError(
            f"{folder}: the weights lack {listed(needed, LISTED)}, so these would be random; "
            "are they weights of another model, or of a part of it (LoRA adapters that were not merged)?"
        )
