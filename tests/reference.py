"""A naive implementation of first-order MAML for tests: deep copies, plain SGD, plain sums, no DeepSpeed.

The implementation under test uses functional calls on copies and one backward pass; this one uses neither.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from metapt.config import MetaConfig, TrainConfig
from metapt.data.episodes import Episode, LabelledWindows
from metapt.models.meta_lm import MetaLM


def logits_and_labels(meta_lm: MetaLM, task: Episode, side: str) -> tuple[Tensor, Tensor]:
    """Class logits [n, N] and labels [n] of support or query, from windows that are not truncated."""
    examples: LabelledWindows = getattr(task, side)
    tokens, positions, labels = (
        torch.from_numpy(array) for array in (examples.tokens, examples.positions, examples.labels)
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=meta_lm.dtype is torch.bfloat16):
        states = meta_lm.decoder.model(input_ids=tokens).last_hidden_state
    hidden = torch.stack([states[row, position] for row, position in enumerate(positions)])
    logits = meta_lm.episode_head(hidden)
    return logits[:, task.classes] if meta_lm.episode_head.per_token else logits, labels


def adapted_parameters(meta_lm: MetaLM, meta: MetaConfig) -> dict[str, Tensor]:
    """The parameters that the inner loop adapts, by their names in the MetaLM."""
    prefixes = {"head": ["episode_head."], "full": ["episode_head.", "decoder.model."]}.get(meta.scope)
    if prefixes is None:
        num_layers = len(meta_lm.decoder.model.layers)
        blocks = range(num_layers - meta.last_n, num_layers)
        layers = [f"decoder.model.layers.{block}." for block in blocks]
        prefixes = ["episode_head.", "decoder.model.norm.", *layers]
    return {name: value for name, value in meta_lm.named_parameters() if name.startswith(tuple(prefixes))}


def multiplier(meta_lm: MetaLM, name: str, meta: MetaConfig) -> tuple[str, Tensor] | None:
    """Name and value of the Meta-SGD multiplier of a parameter; None if rates are not learned."""
    if meta_lm.inner_rates is None:
        return None
    adapted_name = name.removeprefix("episode_head.") if meta.scope == "head" else name
    own_name = f"inner_rates.{adapted_name.replace('.', '/')}"
    return own_name, dict(meta_lm.named_parameters())[own_name]


def adapted(
    meta_lm: MetaLM, task: Episode, meta: MetaConfig
) -> tuple[MetaLM, list[float], dict[str, Tensor]]:
    """Run the inner loop.

    Returns: an adapted copy of the MetaLM, the support loss before each inner step, and the sum of the inner gradients.
    """
    copied = copy.deepcopy(meta_lm)
    parameters = adapted_parameters(copied, meta)
    losses = []
    sums = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for _ in range(meta.inner_steps):
        loss = cross_entropy(*logits_and_labels(copied, task, "support"))
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        with torch.no_grad():
            for (name, value), gradient in zip(parameters.items(), gradients, strict=True):
                learned = multiplier(meta_lm, name, meta)
                value.sub_(gradient if learned is None else learned[1] * gradient, alpha=meta.inner_lr)
                sums[name] += gradient
    return copied, losses, sums


def outer_gradient(meta_lm: MetaLM, tasks: list[Episode], meta: MetaConfig) -> dict[str, Tensor]:
    """Mean over tasks of the outer gradient of `meta.algorithm`, by name."""
    mean = {name: torch.zeros_like(value) for name, value in meta_lm.named_parameters()}
    for task in tasks:
        copied, _, sums = adapted(meta_lm, task, meta)
        if meta.algorithm == "reptile":
            for name, value in adapted_parameters(meta_lm, meta).items():
                difference = value - dict(copied.named_parameters())[name]
                mean[name] += (difference / (meta.inner_lr * meta.inner_steps)).detach() / len(tasks)
            continue
        copied.zero_grad()
        cross_entropy(*logits_and_labels(copied, task, "query")).backward()
        for name, value in copied.named_parameters():
            if value.grad is not None:
                mean[name] += value.grad / len(tasks)
        for name in sums:
            if learned := multiplier(meta_lm, name, meta):
                gradient = dict(copied.named_parameters())[name].grad
                mean[learned[0]] += -meta.inner_lr * sums[name] * gradient / len(tasks)
    return mean


class Optimizer:
    """torch's AdamW with gradient clipping; only matrices decay, and learned inner rates do not."""

    def __init__(self, meta_lm: MetaLM, train: TrainConfig):
        self.meta_lm, self.train = meta_lm, train
        groups: dict[float, list[Tensor]] = {train.weight_decay: [], 0.0: []}
        for name, value in meta_lm.named_parameters():
            decay = 0.0 if value.ndim <= 1 or name.startswith("inner_rates.") else train.weight_decay
            groups[decay].append(value)
        self.adamw = torch.optim.AdamW(
            [{"params": params, "weight_decay": decay} for decay, params in groups.items()],
            lr=train.lr,
            betas=(train.beta1, train.beta2),
        )

    def step(self, gradient: dict[str, Tensor], lr: float) -> float:
        """Make one update; return the norm of the gradient before clipping."""
        for name, value in self.meta_lm.named_parameters():
            value.grad = gradient[name].clone()
        norm = torch.nn.utils.clip_grad_norm_(self.meta_lm.parameters(), self.train.grad_clip or float("inf"))
        for group in self.adamw.param_groups:
            group["lr"] = lr
        self.adamw.step()
        return float(norm)
