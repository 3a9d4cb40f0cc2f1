"""First-order MAML written by hand, as plainly as it can be: deep copies, plain SGD, plain sums. No DeepSpeed.

The implementation under test uses functional calls on copies and one backward pass; this uses neither.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from metapt.config import MetaConfig, TrainConfig
from metapt.data.episodes import Episode, Examples
from metapt.models.learner import Learner


def logits_and_labels(learner: Learner, examples: Examples) -> tuple[Tensor, Tensor]:
    tokens, positions, labels = (
        torch.from_numpy(array) for array in (examples.tokens, examples.positions, examples.labels)
    )
    states = learner.decoder.model(input_ids=tokens).last_hidden_state
    return learner.head(torch.stack([states[row, place] for row, place in enumerate(positions)])), labels


def adapted(learner: Learner, task: Episode, meta: MetaConfig) -> tuple[Learner, list[float]]:
    """A copy of the learner after the inner loop, and the support loss before each inner step."""
    pupil = copy.deepcopy(learner)
    blocks = len(pupil.decoder.model.layers)
    moved = list(pupil.head.parameters())
    if meta.scope == "full":
        moved += list(pupil.decoder.model.parameters())
    elif meta.scope == "last_n":
        moved += [*pupil.decoder.model.norm.parameters()]
        for block in range(blocks - meta.last_n, blocks):
            moved += list(pupil.decoder.model.layers[block].parameters())
    losses = []
    for _ in range(meta.inner_steps):
        loss = cross_entropy(*logits_and_labels(pupil, task.support))
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, moved)
        with torch.no_grad():
            for value, gradient in zip(moved, gradients, strict=True):
                value.sub_(gradient, alpha=meta.inner_lr)
    return pupil, losses


def outer_gradient(learner: Learner, tasks: list[Episode], meta: MetaConfig) -> dict[str, Tensor]:
    """Mean over tasks of the gradient of the query loss at the adapted parameters."""
    total = {name: torch.zeros_like(value) for name, value in learner.named_parameters()}
    for task in tasks:
        pupil, _ = adapted(learner, task, meta)
        pupil.zero_grad()
        cross_entropy(*logits_and_labels(pupil, task.query)).backward()
        for name, value in pupil.named_parameters():
            if value.grad is not None:
                total[name] += value.grad / len(tasks)
    return total


class Optimizer:
    """torch's AdamW with clipping, decaying matrices only."""

    def __init__(self, learner: Learner, train: TrainConfig):
        self.learner, self.train = learner, train
        groups = [
            {
                "params": [value for value in learner.parameters() if value.ndim > 1],
                "weight_decay": train.weight_decay,
            },
            {"params": [value for value in learner.parameters() if value.ndim <= 1], "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW(groups, lr=train.lr, betas=(train.beta1, train.beta2))

    def step(self, gradient: dict[str, Tensor], lr: float) -> float:
        for name, value in self.learner.named_parameters():
            value.grad = gradient[name].clone()
        norm = torch.nn.utils.clip_grad_norm_(self.learner.parameters(), self.train.grad_clip or float("inf"))
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        return float(norm)
