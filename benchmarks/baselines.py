"""Baselines that the updates of this project are timed against: transformers' Trainer and a naive episode."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

from metapt.config import PretrainConfig
from metapt.data.episodes import Episode
from metapt.models.decoder import llama_config
from metapt.models.episode_head import EpisodeHead


def trainer_step(config: PretrainConfig, sequences: Tensor) -> Callable[[], None]:
    """An update of transformers' Trainer with one micro-batch: its training step, its clipping and its AdamW.

    Its loop, callbacks and logging are not timed, which is in its favour.
    """
    decoder = LlamaForCausalLM(llama_config(config.model))
    arguments = TrainingArguments(
        output_dir=tempfile.gettempdir(),
        use_cpu=True,
        bf16=config.train.precision == "bf16",
        per_device_train_batch_size=len(sequences),
        max_grad_norm=config.train.grad_clip,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(decoder, arguments)
    model, optimizer = trainer.accelerator.prepare(decoder, trainer.create_optimizer())
    trainer.current_gradient_accumulation_steps = 1  # which its loop sets
    batch = {"input_ids": sequences, "labels": sequences}

    def step() -> None:
        trainer.training_step(model, batch)
        trainer.accelerator.clip_grad_norm_(model.parameters(), config.train.grad_clip)
        optimizer.step()
        model.zero_grad()

    return step


class NaiveEpisode:
    """Forward and backward pass of an episode with scope head, implemented as in published code.

    Each task copies the episode head; the decoder runs in each inner step; the last layer of the head has a row for each
    token of the vocabulary, of which those of the classes are used; the outer gradient is copied back by hand.
    """

    def __init__(self, config: PretrainConfig, task: Episode):
        model, meta = config.model, config.meta
        self.config = config
        self.decoder = LlamaForCausalLM(llama_config(model))
        self.head = EpisodeHead(
            model.hidden_size, meta.head_hidden, model.vocab_size, meta.head_layers, meta.head_dropout, 0
        )
        self.classes = torch.arange(meta.n_way)  # which rows these are does not affect the time
        self.support, self.query = (
            tuple(torch.from_numpy(array) for array in (examples.tokens, examples.positions, examples.labels))
            for examples in (task.support, task.query)
        )

    def loss(self, head: nn.Module, examples: tuple[Tensor, ...]) -> Tensor:
        """Cross-entropy over the classes of the episode."""
        tokens, positions, labels = examples
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.train.precision == "bf16"):
            hidden = self.decoder.model(input_ids=tokens, use_cache=False).last_hidden_state
        logits = head(hidden[torch.arange(len(tokens)), positions])
        return cross_entropy(logits[:, self.classes], labels)

    def __call__(self) -> None:
        head, meta = copy.deepcopy(self.head), self.config.meta
        for _ in range(meta.inner_steps):
            gradients = torch.autograd.grad(self.loss(head, self.support), list(head.parameters()))
            with torch.no_grad():
                for value, gradient in zip(head.parameters(), gradients, strict=True):
                    value.sub_(gradient, alpha=meta.inner_lr)
        self.loss(head, self.query).backward()
        for original, adapted in zip(self.head.parameters(), head.parameters(), strict=True):
            original.grad = adapted.grad
        self.decoder.zero_grad()
