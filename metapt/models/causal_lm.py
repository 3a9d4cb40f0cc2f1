"""Loading a causal language model with its output layer, to score or to sample text."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from metapt.errors import UserError, first_line, listed
from metapt.models.base_model import LISTED, LOADING_ERRORS, is_causal, load_weights


def load_causal_lm(folder: Path, attention: str | None = None) -> PreTrainedModel:
    """Load a causal language model with its output layer, fp32, in evaluation mode.

    Args:
        attention: name of the attention implementation; None: the default of transformers.

    Raises:
        UserError: it cannot be loaded, weights are missing, or its states depend on later tokens.
    """
    try:
        model, missing = load_weights(AutoModelForCausalLM, folder, torch.float32, attention)
    except LOADING_ERRORS as error:
        raise UserError(
            f"{folder}: cannot be loaded as a causal language model ({first_line(error)})"
        ) from None
    if missing:
        raise UserError(f"{folder}: no language model: the weights lack {listed(missing, LISTED)}")
    if not is_causal(model.base_model):
        raise UserError(
            f"{folder}: {type(model).__name__} sees later tokens, so it assigns no probability to text"
        )
    return model.eval()


def start_token(tokenizer: PreTrainedTokenizerBase, folder: Path) -> int:
    """The token before a text: the beginning-of-text token, or else the end-of-text token of the text before it.

    Raises:
        UserError: the tokenizer of the model folder has neither.
    """
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if start is None:
        raise UserError(f"{folder}: the tokenizer has neither a beginning-of-text nor an end-of-text token")
    return int(start)
