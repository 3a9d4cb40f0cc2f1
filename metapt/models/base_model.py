"""Loading the decoder or encoder of a model folder, without its output layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from metapt.errors import UserError, first_line, listed

# What DistributedDataParallel, torch.compile and peft put before the names of the weights that are saved from them.
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "base_model.model.")
OPTIONAL = ("pooler.",)  # of an encoder; fine-tuning does not use it
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


def load_base_model(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load the decoder or encoder of a model folder, without its output layer, from *.safetensors, or else *.bin.

    Of pickled files (*.bin) only tensors are read. The attention implementation is the default of transformers for the architecture.

    Raises:
        UserError: the model cannot be loaded; weights of it are missing in the files (they would be random); it is not
            one stack of layers that turns subwords into hidden states.
    """
    transformers_logging.set_verbosity_error()  # it would warn that the output layer is not loaded, which is intended
    transformers_logging.disable_progress_bar()
    try:
        _check_architecture(AutoConfig.from_pretrained(folder, local_files_only=True), folder)
        model, report = AutoModel.from_pretrained(
            folder,
            dtype=dtype,
            weights_only=True,
            local_files_only=True,
            key_mapping={f"^({'|'.join(map(re.escape, WRAPPER_PREFIXES))})+": ""},
            output_loading_info=True,
        )
    except LOADING_ERRORS as error:
        raise UserError(f"{folder}: cannot be loaded as a model ({first_line(error)})") from None
    _require_all(folder, report["missing_keys"])
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


def _check_architecture(config: PretrainedConfig, folder: Path) -> None:
    """Refuse models of several stacks.

    Raises:
        UserError: an encoder-decoder, or a model with a text part among others.
    """
    what = type(config).__name__.removesuffix("Config")
    if config.is_encoder_decoder:
        raise UserError(
            f"{folder}: {what} is an encoder-decoder, which cannot be fine-tuned as a tagger; use a decoder or an encoder"
        )
    if config.get_text_config() is not config:
        raise UserError(
            f"{folder}: {what} has parts for other inputs than text; save its text model as a model folder of its own"
        )


def _require_all(folder: Path, missing: Sequence[str]) -> None:
    """Refuse a model of which weights are missing, since they would be random."""
    needed = sorted(name for name in missing if not name.startswith(OPTIONAL))
    if needed:
        raise UserError(
            f"{folder}: the weights lack {listed(needed, LISTED)}, so these would be random; "
            "are they weights of another model, or of a part of it (LoRA adapters that were not merged)?"
        )
