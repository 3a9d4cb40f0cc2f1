"""Updates of every objective, under DeepSpeed at every ZeRO stage and on several ranks, equal those of plain PyTorch.

The reference is written here: a loop over micro-batches, words and episodes with autograd, no batching, no padding, no ranks.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import reference
import torch
import unit_cases
from forks import Forks
from test_engine import relative_error, saved
from test_state_episodes import naive_loss
from torch import Tensor
from torch.nn.functional import cross_entropy
from unit_cases import CASES, LR, STAGES, UPDATES

from metapt.config import PretrainConfig
from metapt.data.batch_episodes import BatchEpisode
from metapt.data.word_classes import label_words
from metapt.meta.terms import WordGroup, active_weights
from metapt.meta.update_plan import plan_update
from metapt.models.meta_lm import MetaLM
from metapt.training.units import TrainingData, UpdateUnits

# After two updates; AdamW turns rounding errors of near-zero gradients into steps of up to LR in the first.
FP32_BOUND, BF16_BOUND = 2e-4, 0.1  # relative errors of AdamW's first moments; in bf16 against fp32
EVERY_RUN = {1: ["zero0"], 2: ["zero2", "zero3"]}
RANKS_AND_STAGES = [
    *[pytest.param(ranks, stages, id=f"{ranks} ranks") for ranks, stages in EVERY_RUN.items()],
    *[
        pytest.param(ranks, STAGES, id=f"{ranks} ranks, all stages", marks=pytest.mark.nightly)
        for ranks in (1, 2, 3, 4, 8)
    ],
]


def words_of(term: Any, group: WordGroup) -> list[tuple[int, int]]:
    """Position in the group and type of each word that is not held out."""
    examples, length = group.examples, group.shape[1]
    words = zip(examples.rows, examples.positions, examples.types, strict=True)
    held_out = term.classes.is_held_out
    return [(int(row * length + place), int(kind)) for row, place, kind in words if not held_out[kind]]


def multitask_loss(term: Any, states: Tensor, group: WordGroup) -> Tensor:
    heads, sizes = term.parameters, list(unit_cases.SIZES[:-1])
    losses = []
    for place, kind in words_of(term, group):
        logits = (states[place] @ heads.weight.T + heads.bias).split(sizes)
        losses += [
            cross_entropy(each, torch.tensor(int(partition[kind])))
            for each, partition in zip(logits, term.classes.partitions, strict=False)
        ]
    return torch.stack(losses).mean() if losses else states.sum() * 0


def rows_of(term: Any, episode: BatchEpisode) -> tuple[Tensor, Tensor] | None:
    """The trained rows of an episode's labels; None where the classifier is made anew."""
    if term.term.initial_head not in ("persistent", "learned"):
        return None
    first = [0, *np.cumsum(unit_cases.SIZES)][episode.partition]
    is_persistent = term.term.initial_head == "persistent"
    numbers = first + episode.classes if is_persistent else np.arange(episode.ways)
    rows = term.parameters.rows
    return rows.weight[numbers].double(), rows.bias[numbers].double()


def episodes_loss(term: Any, states: Tensor, group: WordGroup, update: int) -> Tensor:
    """The mean over the episodes of a group that have at least two classes."""
    settings, losses = term.term, []
    scale = dict(term.parameters.named_parameters()).get("scale.log_scale", torch.zeros(1)).exp()
    for task in range(settings.per_group):
        episode = term.sampler.episode(group.examples, group.shape, update, group.index, task)
        if episode.ways >= 2:
            losses.append(
                naive_loss(
                    states.double(),
                    episode,
                    settings.inner_steps,
                    settings.rate_scale,
                    settings.initial_head,
                    scale.double(),
                    rows_of(term, episode),
                    normalize=settings.normalize,
                )[0]
            )
    return torch.stack(losses).mean() if losses else states.sum() * 0


def micro_batch_loss(
    meta_lm: MetaLM, terms: Any, config: PretrainConfig, data: TrainingData, step: int, unit: int
) -> Tensor:
    train, size = config.train, config.meta.batch_sequences
    first = (step * train.micro_batches_per_update + unit) * train.micro_batch
    tokens = data.batches.sequences(first, train.micro_batch)
    hidden = meta_lm.decoder.model(input_ids=torch.from_numpy(tokens[:, :-1])).last_hidden_state
    logits = hidden @ meta_lm.decoder.lm_head.weight.T
    loss = cross_entropy(logits.flatten(0, 1), torch.from_numpy(tokens[:, 1:]).flatten())
    groups = len(tokens) // size
    for number in range(groups if terms else 0):
        rows = slice(number * size, (number + 1) * size)
        words = label_words(tokens[rows, :-1], data.token_kinds, data.classes)
        group = WordGroup(words, (size, train.seq_len), unit * groups + number)
        states = hidden[rows].flatten(0, 1)
        for name, weight in active_weights(config, step).items():
            found = (
                multitask_loss(terms[name], states, group)
                if name == "multitask"
                else episodes_loss(terms[name], states, group, step)
            )
            loss = loss + weight * found / groups
    return loss


@cache
def expected(case: str) -> tuple[dict[str, Tensor], dict[str, Tensor], list[float]]:
    """Weights, first moments and gradient norms after the updates of a case."""
    config = unit_cases.config_of(case)
    config.train.precision = "fp32"
    (meta_lm, terms), data = unit_cases.model_of(config), unit_cases.data_of(case, config)
    optimizer, norms = reference.Optimizer(meta_lm, config.train), []
    meta, named = config.meta, dict(meta_lm.named_parameters())
    for step in range(UPDATES):
        plan, meta_lm_gradient = (
            plan_update(config, step),
            {name: torch.zeros_like(value) for name, value in named.items()},
        )
        lm_units, task_units = len(plan.micro_batches), len(plan.episodes)
        everything = lm_units + task_units
        if meta.mixing == "sum":
            lm_weight, episode_weight = 1.0, meta.weight
        elif meta.mixing == "alternate":
            lm_weight, episode_weight = 1.0, 1.0
        else:
            lm_weight, episode_weight = lm_units / everything, task_units / everything
        if plan.episodes:
            tasks = [data.sampler.episode(step, unit) for unit in plan.episodes]
            for name, value in reference.outer_gradient(meta_lm, tasks, meta).items():
                meta_lm_gradient[name] += episode_weight * value
        meta_lm.zero_grad()
        for unit in plan.micro_batches:
            (lm_weight * micro_batch_loss(meta_lm, terms, config, data, step, unit) / lm_units).backward()
        for name, value in named.items():
            if value.grad is not None:
                meta_lm_gradient[name] += value.grad
        norms.append(optimizer.step(meta_lm_gradient, LR))
    moments = {name: optimizer.adamw.state[value]["exp_avg"] for name, value in named.items()}
    return {name: value.detach() for name, value in named.items()}, moments, norms


@pytest.mark.commands
@pytest.mark.parametrize(("ranks", "stages"), RANKS_AND_STAGES)
def test_updates_equal_the_reference(forks: Forks, tmp_path: Path, ranks: int, stages: list[str]):
    """Rounds in which a rank has no unit of its own, groups without words, and all ways to mix are among the cases."""
    forks.succeed("unit_cases", [str(tmp_path), ",".join(stages), ",".join(CASES)], ranks)
    problems = [
        found for case in CASES for ds in stages for found in problems_of(tmp_path / f"{case}-{ds}", case)
    ]
    assert not problems, "\n".join(problems)


def problems_of(folder: Path, case: str) -> list[str]:
    """How the results of a case differ from the reference."""
    weights, moments, norms = expected(case)
    state, results = saved(folder), json.loads((folder / "results.json").read_text())
    bound = BF16_BOUND if case.endswith("bf16") else FP32_BOUND
    error = relative_error({name: state[f"{name}:exp_avg"] for name in moments}, moments)
    problems = [f"{folder.name}: error of first moments {error:.1e} > {bound:.1e}"] if error > bound else []
    found = [line["grad_norm"] for line in results]
    if found != pytest.approx(norms, rel=max(bound, 1e-4)):
        problems.append(f"{folder.name}: gradient norms {found}, expected {norms}")
    wrong = sum(int(((state[name] - value).abs() > LR / 20).sum()) for name, value in weights.items())
    if not case.endswith("bf16") and wrong > 0.001 * sum(value.numel() for value in weights.values()):
        problems.append(f"{folder.name}: {wrong} weights differ")
    return problems


@pytest.mark.parametrize("case", CASES)
def test_every_unit_gives_every_parameter_a_gradient(case: str):
    """Without one, an optimizer skips the parameter at ZeRO stage 0, and adds up old gradients with offload."""
    config = unit_cases.config_of(case)
    (meta_lm, terms), data = unit_cases.model_of(config), unit_cases.data_of(case, config)
    engine = SimpleNamespace(device=torch.device("cpu"), meta_lm=meta_lm)
    units = UpdateUnits(config, data, terms, engine, lambda: None)
    for make in [units._next_token, *([units._episode] if data.sampler else [])]:
        meta_lm.zero_grad()
        make(1, 0).loss.backward()
        assert not [name for name, value in meta_lm.named_parameters() if value.grad is None], make


def test_the_cases_have_what_they_are_named_for():
    """Uneven numbers of micro-batches and episodes, and groups without an episode beside groups with some."""
    kinds = [plan_update(unit_cases.config_of("per_micro_batch"), step) for step in range(UPDATES)]
    assert any(len(plan.episodes) % 2 and len(plan.micro_batches) % 2 for plan in kinds)
    for case in ("episodes before text", "text before episodes"):
        plans = [plan_update(unit_cases.config_of(case), step) for step in range(UPDATES)]
        assert [bool(plan.episodes) for plan in plans] == [case[0] == "e", case[0] == "t"]
    config = unit_cases.config_of("few words")
    data, (_, terms) = unit_cases.data_of("few words", config), unit_cases.model_of(config)
    ways = set()
    for first in range(0, 32, 2):
        tokens = data.batches.sequences(first, 2)[:, :-1]
        words = label_words(tokens, data.token_kinds, data.classes)
        ways.add(terms["episodes"].sampler.episode(words, tokens.shape, 0, first // 2, 0).ways)
    assert ways == {0, 2}
    assert np.isfinite(expected("few words")[2]).all()
