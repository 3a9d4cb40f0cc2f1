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
from metapt.models.meta_lm import MetaLM


def logits_and_labels(meta_lm: MetaLM, examples: Examples) -> tuple[Tensor, Tensor]:
    tokens, positions, labels = (
        torch.from_numpy(array) for array in (examples.tokens, examples.positions, examples.labels)
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=meta_lm.dtype is torch.bfloat16):
        states = meta_lm.decoder.model(input_ids=tokens).last_hidden_state
    return meta_lm.head(torch.stack([states[row, place] for row, place in enumerate(positions)])), labels


def moved_by(meta_lm: MetaLM, meta: MetaConfig) -> dict[str, Tensor]:
    """What the inner loop moves, by the meta_lm's names."""
    names = {"head": ["head."], "full": ["head.", "decoder.model."]}.get(meta.scope)
    if names is None:
        blocks = len(meta_lm.decoder.model.layers)
        last = range(blocks - meta.last_n, blocks)
        names = ["head.", "decoder.model.norm.", *(f"decoder.model.layers.{block}." for block in last)]
    return {name: value for name, value in meta_lm.named_parameters() if name.startswith(tuple(names))}


def multiplier(meta_lm: MetaLM, name: str, meta: MetaConfig) -> tuple[str, Tensor] | None:
    """The Meta-SGD multiplier of a parameter, and its name."""
    if meta_lm.rates is None:
        return None
    own = f"rates.{(name.removeprefix('head.') if meta.scope == 'head' else name).replace('.', '/')}"
    return own, dict(meta_lm.named_parameters())[own]


def adapted(
    meta_lm: MetaLM, task: Episode, meta: MetaConfig
) -> tuple[MetaLM, list[float], dict[str, Tensor]]:
    """A copy of the meta_lm after the inner loop, the support loss before each inner step, the sum of gradients."""
    pupil = copy.deepcopy(meta_lm)
    moved = moved_by(pupil, meta)
    losses = []
    total = {name: torch.zeros_like(value) for name, value in moved.items()}
    for _ in range(meta.inner_steps):
        loss = cross_entropy(*logits_and_labels(pupil, task.support))
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, list(moved.values()))
        with torch.no_grad():
            for (name, value), gradient in zip(moved.items(), gradients, strict=True):
                found = multiplier(meta_lm, name, meta)
                value.sub_(gradient if found is None else found[1] * gradient, alpha=meta.inner_lr)
                total[name] += gradient
    return pupil, losses, total


def outer_gradient(meta_lm: MetaLM, tasks: list[Episode], meta: MetaConfig) -> dict[str, Tensor]:
    """Mean over tasks of what `meta.algorithm` takes for the gradient."""
    mean = {name: torch.zeros_like(value) for name, value in meta_lm.named_parameters()}
    for task in tasks:
        pupil, _, total = adapted(meta_lm, task, meta)
        if meta.algorithm == "reptile":
            for name, value in moved_by(meta_lm, meta).items():
                step = (value - dict(pupil.named_parameters())[name]) / (meta.inner_lr * meta.inner_steps)
                mean[name] += step.detach() / len(tasks)
            continue
        pupil.zero_grad()
        cross_entropy(*logits_and_labels(pupil, task.query)).backward()
        for name, value in pupil.named_parameters():
            if value.grad is not None:
                mean[name] += value.grad / len(tasks)
        for name in total:
            if found := multiplier(meta_lm, name, meta):
                gradient = dict(pupil.named_parameters())[name].grad
                mean[found[0]] += -meta.inner_lr * total[name] * gradient / len(tasks)
    return mean


class Optimizer:
    """torch's AdamW with clipping, decaying matrices only, and no inner rates."""

    def __init__(self, meta_lm: MetaLM, train: TrainConfig):
        self.meta_lm, self.train = meta_lm, train
        groups: dict[float, list[Tensor]] = {train.weight_decay: [], 0.0: []}
        for name, value in meta_lm.named_parameters():
            decay = 0.0 if value.ndim <= 1 or name.startswith("rates.") else train.weight_decay
            groups[decay].append(value)
        self.adamw = torch.optim.AdamW(
            [{"params": params, "weight_decay": decay} for decay, params in groups.items()],
            lr=train.lr,
            betas=(train.beta1, train.beta2),
        )

    def step(self, gradient: dict[str, Tensor], lr: float) -> float:
        for name, value in self.meta_lm.named_parameters():
            value.grad = gradient[name].clone()
        norm = torch.nn.utils.clip_grad_norm_(self.meta_lm.parameters(), self.train.grad_clip or float("inf"))
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        return float(norm)
