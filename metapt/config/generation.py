"""Keys of `metapt generate`."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from metapt.config.keys import key


@dataclass
class GenerateConfig:
    """Sample text from a causal language model: one continuation of each prompt."""

    checkpoint: str = key(MISSING, "pretraining run, checkpoint, model folder, or hub:NAME")
    tokens: int = key(50, "maximum number of tokens after the prompt", low=1)
    temperature: float = key(
        1.0, "number by which the logits are divided; 0: the most likely token each time", low=0
    )
    seed: int = key(0, "random seed", low=0)
    device: str = key("auto", "torch device: cpu, cuda, cuda:N or mps; auto: the first of cuda, mps and cpu")
