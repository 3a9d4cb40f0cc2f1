"""The model that `init=` names: which ones pretraining can continue, their shape and tokenizer, their weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PretrainedConfig, PreTrainedModel

from metapt.data.tokenizers import added_ids, content_sha256, read_tokenizer, vocabulary_size
from metapt.errors import UserError, first_line
from metapt.files import file_sha256
from metapt.models import attention
from metapt.models.base_model import LOADING_ERRORS
from metapt.models.causal_lm import load_causal_lm
from metapt.models.losses import OutputLayer
from metapt.models.pretrained import HUB_PREFIX, model_folder, model_origin

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
"""Decoders of the same modules: RMSNorm, rotary positions, SwiGLU, a linear output layer; Qwen2 has biases."""
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary positions whose frequencies do not depend on the length of the input."""


@dataclass(frozen=True)
class InitialModel:
    """What a configuration must know of a model.

    Attributes:
        name: of the model size, for run folders and the report.
        shape: keys of the section `model`; the vocabulary includes the tokens that its tokenizer gets here.
        tokenizer: what `data.tokenizer` must be.
        sha256: of its weights, configuration and tokenizer.
    """

    name: str
    shape: dict[str, Any]
    tokenizer: str
    sha256: str

    def has_tokenizer(self, name: str) -> bool:
        """Whether another tokenizer gives the same token ids. Raises as `read_tokenizer`."""
        return content_sha256(read_tokenizer(name)) == content_sha256(read_tokenizer(self.tokenizer))


@lru_cache(maxsize=8)
def read_initial_model(name: str) -> InitialModel:
    """Read what a configuration must know of a model, without loading its weights.

    Args:
        name: as in `model_folder`.
    Raises:
        UserError: there is no such model, or pretraining cannot continue it.
        OperationalError: the hub is not available.
    """
    folder = model_folder(name)
    config = _read_config(folder, name)
    if problems := list(_unsupported(config)):
        raise UserError(f"init={name}: {problems[0]}")
    tokenizer = _tokenizer(name, folder)
    read = read_tokenizer(tokenizer)
    origin = model_origin(folder, name)
    return InitialModel(
        name=f"{str(origin['model']).rpartition('/')[2]}-continued",
        shape=_shape(config, max(config.vocab_size, vocabulary_size(read))),
        tokenizer=tokenizer,
        sha256=_sha256(folder, content_sha256(read)),
    )


def load_initial_decoder(name: str, vocab_size: int) -> PreTrainedModel:
    """Load the decoder of a model with its output layer, fp32, in training mode.

    Tokens that its tokenizer lacks (a mask token, an end-of-text token) get the mean of the rows of its own tokens in both matrices,
    whether their rows are new or were padding of the vocabulary.

    Raises:
        UserError: the weights cannot be loaded, or some are missing.
    """
    folder = model_folder(name)
    decoder = load_causal_lm(folder, attention.NAME).train()
    old, added = decoder.config.vocab_size, added_ids(_tokenizer(name, folder), folder)
    if old < vocab_size:
        decoder.resize_token_embeddings(vocab_size, mean_resizing=False)
    own, rows = min([old, *added]), [*added, *range(old, vocab_size)]  # tokens are added behind all others
    with torch.no_grad():
        for layer in (decoder.get_input_embeddings(), decoder.get_output_embeddings()):
            layer.weight[rows] = layer.weight[:own].mean(dim=0)
    decoder.lm_head = OutputLayer(decoder.lm_head.weight)
    # settings of sampling are not saved with checkpoints: transformers refuses to save some that it loads
    decoder.generation_config = GenerationConfig.from_model_config(decoder.config)
    return decoder


def is_tied(decoder: PreTrainedModel) -> bool:
    """Whether a decoder has one matrix as embedding and as output layer."""
    return decoder.lm_head.weight is decoder.model.embed_tokens.weight


def _tokenizer(name: str, folder: Path) -> str:
    """The tokenizer of a model and its folder, as `read_tokenizer` takes it."""
    return name.removeprefix(HUB_PREFIX) if name.startswith(HUB_PREFIX) else str(folder)


def _read_config(folder: Path, name: str) -> PretrainedConfig:
    """The configuration of a model.

    Raises:
        UserError: it cannot be read, or is that of another architecture.
    """
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except LOADING_ERRORS as error:
        raise UserError(f"init={name}: its configuration cannot be read ({first_line(error)})") from None
    architecture = next(iter(content.get("architectures") or []), type(config).__name__)
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"init={name}: {architecture} cannot be pretrained further; supported are {', '.join(ARCHITECTURES)}"
        )
    return config


def _unsupported(config: PretrainedConfig) -> Iterator[str]:
    """What a model has that pretraining would not compute as transformers does."""
    rope = config.rope_parameters["rope_type"]
    if rope not in ROPE_TYPES:
        yield f"rotary positions of rope_type={rope} are not supported; supported are {', '.join(ROPE_TYPES)}"
    if getattr(config, "sliding_window", None) is not None:
        yield f"attention in a window (sliding_window={config.sliding_window}) is not supported"
    if config.attention_dropout:
        yield f"attention_dropout={config.attention_dropout} is not supported; it must be 0"
    width = config.hidden_size // config.num_attention_heads
    if (getattr(config, "head_dim", None) or width) != width:
        yield f"head_dim={config.head_dim} is not supported; it must be hidden_size / num_attention_heads = {width}"
    if getattr(config, "quantization_config", None):
        yield "quantized weights cannot be trained"


def _shape(config: PretrainedConfig, vocab_size: int) -> dict[str, Any]:
    """The keys of the section `model`."""
    return {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "vocab_size": vocab_size,
        "max_positions": config.max_position_embeddings,
        "rope_theta": float(config.rope_parameters["rope_theta"]),
        "rms_norm_eps": config.rms_norm_eps,
        "tied_embeddings": config.tie_word_embeddings,
        "biases": _biases(config),
    }


def _biases(config: PretrainedConfig) -> int:
    """Number of bias parameters."""
    width, kv_width = (
        config.hidden_size,
        config.hidden_size // config.num_attention_heads * config.num_key_value_heads,
    )
    block = 0
    if config.model_type == "qwen2":
        block += width + 2 * kv_width
    if getattr(config, "attention_bias", False):
        block += 2 * width + 2 * kv_width
    if getattr(config, "mlp_bias", False):
        block += 2 * config.intermediate_size + width
    return config.num_hidden_layers * block


def _sha256(folder: Path, tokenizer: str) -> str:
    """The hash of everything that a run takes from a model folder."""
    paths = [folder / "config.json", *sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])]
    hashes = [[path.name, file_sha256(path)] for path in paths]
    return hashlib.sha256(json.dumps([hashes, tokenizer]).encode()).hexdigest()
