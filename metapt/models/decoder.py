"""The LLaMA-style decoder, which is transformers' LlamaForCausalLM."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from metapt import randomness
from metapt.config import ModelConfig
from metapt.models import attention
from metapt.models.losses import OutputLayer


def llama_config(model: ModelConfig, *, eos_id: int | None = None) -> LlamaConfig:
    """The transformers configuration: RMSNorm, grouped-query attention, RoPE, SwiGLU."""
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
        tie_word_embeddings=model.tied_embeddings,
        use_cache=False,
        bos_token_id=eos_id,
        eos_token_id=eos_id,
    )


def build_decoder(model: ModelConfig, seed: int, *, eos_id: int | None = None) -> LlamaForCausalLM:
    """A randomly initialised decoder in fp32, whose weights depend on (shape, seed) only."""
    with randomness.torch_seed(seed, "decoder"):
        decoder = LlamaForCausalLM._from_config(
            llama_config(model, eos_id=eos_id), attn_implementation=attention.NAME, dtype=torch.float32
        )
    decoder.lm_head = OutputLayer(decoder.lm_head.weight)
    return decoder
