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

Head = tuple[Tensor, Tensor]
"""Weight [N, d] and bias [N] of a linear classifier that an episode makes anew."""


def states_and_labels(meta_lm: MetaLM, task: Episode, side: str) -> tuple[Tensor, Tensor]:
    """Hidden states [n, d] and labels [n] of support or query, from windows that are not truncated."""
    examples: LabelledWindows = getattr(task, side)
    tokens, positions, labels = (
        torch.from_numpy(array) for array in (examples.tokens, examples.positions, examples.labels)
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=meta_lm.dtype is torch.bfloat16):
        states = meta_lm.decoder.model(input_ids=tokens).last_hidden_state
    return torch.stack([states[row, position] for row, position in enumerate(positions)]), labels


def logits_and_labels(
    meta_lm: MetaLM, task: Episode, side: str, meta: MetaConfig, head: Head | None = None
) -> tuple[Tensor, Tensor]:
    """Class logits [n, N] and labels [n] of support or query."""
    hidden, labels = states_and_labels(meta_lm, task, side)
    if meta.normalize:
        mean = states_and_labels(meta_lm, task, "support")[0].mean(dim=0).detach()
        hidden = torch.stack([(h - mean) / (((h - mean) ** 2).mean().sqrt() + 1e-4) for h in hidden])
    if head is not None:
        return hidden @ head[0].T + head[1], labels
    logits = meta_lm.episode_head(hidden)
    return logits[:, task.classes] if meta_lm.episode_head.per_class else logits, labels


def made_head(meta_lm: MetaLM, task: Episode, meta: MetaConfig) -> Head | None:
    """The classifier that an episode makes anew, with gradient; None if the head is trained."""
    width = meta_lm.decoder.config.hidden_size
    bias = next(meta_lm.parameters()).new_zeros(meta.n_way)
    if meta.initial_head == "zero":
        return bias.new_zeros(meta.n_way, width), bias
    if meta.initial_head != "prototypes":
        return None
    hidden, labels = states_and_labels(meta_lm, task, "support")
    if meta.normalize:
        mean = hidden.mean(dim=0).detach()
        hidden = torch.stack([(h - mean) / (((h - mean) ** 2).mean().sqrt() + 1e-4) for h in hidden])
    means = torch.stack([hidden[labels == label].mean(dim=0) for label in range(meta.n_way)])
    scale = meta_lm.term_heads["windows"].scale.log_scale.exp()
    return scale * means / (means.norm(dim=1, keepdim=True) * width**0.5), bias


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
        The weights of a head that is made anew are in the copy's episode head.
    """
    copied = copy.deepcopy(meta_lm)
    parameters = adapted_parameters(copied, meta)
    start, head = made_head(meta_lm, task, meta), None
    if start is not None:
        head = tuple(value.detach().clone().requires_grad_() for value in start)
        copied.episode_head.weight0, copied.episode_head.bias0 = head
        parameters |= dict(zip(("made weight", "made bias"), head, strict=True))
    losses = []
    rate = inner_rate(meta_lm, meta)
    sums = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for _ in range(meta.inner_steps):
        loss = cross_entropy(*logits_and_labels(copied, task, "support", meta, head))
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        with torch.no_grad():
            for (name, value), gradient in zip(parameters.items(), gradients, strict=True):
                learned = multiplier(meta_lm, name, meta)
                value.sub_(gradient if learned is None else learned[1] * gradient, alpha=rate)
                sums[name] += gradient
    return copied, losses, sums


def inner_rate(meta_lm: MetaLM, meta: MetaConfig) -> float:
    """alpha, or c N / (T d)."""
    automatic = meta.rate_scale * meta.n_way / (max(1, meta.inner_steps) * meta_lm.decoder.config.hidden_size)
    return automatic if meta.inner_lr is None else meta.inner_lr


def outer_gradient(meta_lm: MetaLM, tasks: list[Episode], meta: MetaConfig) -> dict[str, Tensor]:
    """Mean over tasks of the outer gradient of `meta.algorithm`, by name."""
    mean = {name: torch.zeros_like(value) for name, value in meta_lm.named_parameters()}
    rate = inner_rate(meta_lm, meta)

    def add(gradients: MetaLM) -> None:
        for name, value in gradients.named_parameters():
            if value.grad is not None:
                mean[name] += value.grad / len(tasks)

    for task in tasks:
        copied, _, sums = adapted(meta_lm, task, meta)
        if meta.algorithm == "reptile":
            for name, value in adapted_parameters(meta_lm, meta).items():
                difference = value - dict(copied.named_parameters())[name]
                mean[name] += (difference / (rate * meta.inner_steps)).detach() / len(tasks)
            continue
        copied.zero_grad()
        is_made = copied.episode_head.is_made_anew
        head = (copied.episode_head.weight0, copied.episode_head.bias0) if is_made else None
        cross_entropy(*logits_and_labels(copied, task, "query", meta, head)).backward()
        add(copied)
        if meta.initial_head == "prototypes":
            original = copy.deepcopy(meta_lm)
            original.zero_grad()
            (made_head(original, task, meta)[0] * head[0].grad).sum().backward()
            add(original)
        for name in sums:
            if learned := multiplier(meta_lm, name, meta):
                gradient = dict(copied.named_parameters())[name].grad
                mean[learned[0]] += -rate * sums[name] * gradient / len(tasks)
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
