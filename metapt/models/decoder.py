"""LLaMA-style decoders: transformers' LlamaForCausalLM at the project's scales, and the episode head."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from metapt import randomness
from metapt.config import ModelConfig


def llama_config(model: ModelConfig, *, eos_id: int | None = None) -> LlamaConfig:
    """The transformers configuration of a scale: RMSNorm, grouped-query attention, RoPE, SwiGLU, untied embeddings."""
    return LlamaConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads,
        max_position_embeddings=model.max_positions,
        rms_norm_eps=model.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        tie_word_embeddings=False,
        use_cache=False,
        bos_token_id=eos_id,
        eos_token_id=eos_id,
        pad_token_id=eos_id,
    )


def build_decoder(model: ModelConfig, seed: int, *, eos_id: int | None = None) -> LlamaForCausalLM:
    """A freshly initialised decoder in fp32. The weights are a function of (shape, seed) alone."""
    with randomness.torch_seed(seed, "decoder"):
        return LlamaForCausalLM._from_config(
            llama_config(model, eos_id=eos_id), attn_implementation="sdpa", dtype=torch.float32
        )


def load_decoder(folder: Path) -> LlamaForCausalLM:
    """A decoder from a model folder (safetensors), in fp32."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)


class EpisodeHead(nn.Module):
    """The MLP that the inner loop adapts: hidden states [..., d] to class logits [..., N].

    METHOD: four linear layers, hidden width 128, dropout 0.1, Xavier initialisation.
    """

    def __init__(self, width: int, hidden: int, classes: int, layers: int, dropout: float, seed: int):
        super().__init__()
        widths = [width, *[hidden] * (layers - 1), classes]
        modules: list[nn.Module] = []
        with randomness.torch_seed(seed, "episode head"):
            for index in range(layers):
                linear = nn.Linear(widths[index], widths[index + 1])
                nn.init.xavier_uniform_(linear.weight)
                nn.init.zeros_(linear.bias)
                modules += [linear] if index == layers - 1 else [linear, nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*modules)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.layers(hidden)
