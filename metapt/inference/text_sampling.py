"""Sampling text from a causal language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from metapt import randomness
from metapt.config import GenerateConfig
from metapt.errors import UserError
from metapt.models.causal_lm import load_causal_lm, start_token
from metapt.models.device import torch_device
from metapt.models.pretrained import model_folder
from metapt.tagger.encoding import load_tokenizer


def sample_texts(config: GenerateConfig, prompts: Sequence[str]) -> Iterator[str]:
    """Yield each prompt with a continuation, which ends at the end-of-text token or after `config.tokens` tokens.

    The continuation is a function of the seed and the number of the prompt.

    Raises:
        UserError: there is no causal language model, or a prompt is as long as its window.
    """
    folder, device = model_folder(config.checkpoint), torch_device(config.device)
    model, tokenizer = load_causal_lm(folder).to(device), load_tokenizer(folder)
    start, length = start_token(tokenizer, folder), getattr(model.config, "max_position_embeddings", None)
    for number, prompt in enumerate(prompts):
        ids = [start, *tokenizer.encode(prompt, add_special_tokens=False)]
        if length is not None and len(ids) >= length:
            raise UserError(f"the prompt has {len(ids)} tokens, but {folder} accepts at most {length}")
        room = config.tokens if length is None else min(config.tokens, length - len(ids))
        given = torch.tensor([ids], device=device)
        sampling = {"do_sample": False} if config.temperature == 0 else {"temperature": config.temperature}
        with torch.no_grad(), randomness.torch_seed(config.seed, "sampled text", number):
            output = model.generate(
                given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=room,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.eos_token_id or 0,
                **{"do_sample": True, "top_k": 0, "top_p": 1.0} | sampling,
            )
        yield tokenizer.decode(output[0, 1:], skip_special_tokens=True)
