"""LLaMA-style decoders: transformers' LlamaForCausalLM at the project's scales, and the episode head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import grad_and_value
from torch.nn.functional import cross_entropy, dropout, linear, relu
from transformers import LlamaConfig, LlamaForCausalLM

from metapt import randomness
from metapt.config import ModelConfig
from metapt.models import attention
from metapt.models.losses import OutputLayer


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
        decoder = LlamaForCausalLM._from_config(
            llama_config(model, eos_id=eos_id), attn_implementation=attention.NAME, dtype=torch.float32
        )
    decoder.lm_head = OutputLayer(decoder.lm_head.weight)
    return decoder


def load_decoder(folder: Path) -> LlamaForCausalLM:
    """A decoder from a model folder (safetensors), in fp32."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)


class EpisodeHead(nn.Module):
    """The MLP that the inner loop adapts: hidden states [..., d] to class logits [..., N].

    METHOD: four linear layers, hidden width 128, dropout 0.1, Xavier initialisation. Its parameters are its own,
    not those of modules inside it: a call of it is all that ZeRO 3 needs to see to make them whole.
    """

    def __init__(self, width: int, hidden: int, classes: int, layers: int, dropout: float, seed: int):
        super().__init__()
        widths = [width, *[hidden] * (layers - 1), classes]
        self.num_layers, self.dropout = layers, dropout
        with randomness.torch_seed(seed, "episode head"):
            for index in range(layers):
                layer = nn.Linear(widths[index], widths[index + 1])
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
                for name, value in layer.named_parameters():
                    self.register_parameter(f"{name}{index}", value)

    def forward(
        self,
        hidden: Tensor,
        replace: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda own: own,
    ) -> Tensor:
        """Logits with the own parameters, or with what `replace` makes of them."""
        return self.logits(hidden, replace(dict(self.named_parameters())))

    def inner_step(
        self, values: Mapping[str, Tensor], states: Tensor, labels: Tensor, rate: float
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """An inner step on the support set as a pure function, which can be compiled as one graph.

        Args:
            values: phi_t by name.
            states, labels: [n, d] and [n].
        Returns: phi_{t+1} = phi_t - rate * grad L_S(phi_t); L_S(phi_t) in nats; the logits [n, N] at phi_t.
        """

        def loss(values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            logits = self.logits(states, values)
            return cross_entropy(logits, labels), logits

        gradients, (value, logits) = grad_and_value(loss, has_aux=True)(values)
        return {name: start - rate * gradients[name] for name, start in values.items()}, value, logits

    def logits(self, hidden: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Logits with any parameters, by the names of the own ones."""
        for index in range(self.num_layers):
            hidden = linear(hidden, values[f"weight{index}"], values[f"bias{index}"])
            if index < self.num_layers - 1:
                hidden = dropout(relu(hidden), self.dropout, self.training)
        return hidden
