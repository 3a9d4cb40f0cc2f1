"""Can the classes of episodes be read off a decoder's hidden states? `python benchmarks/probe.py RUN STEP [STEP ...]`.

RUN is a pretraining run with checkpoints at the STEPs; its text, tokenizer and model size are used. Two classifiers are
fitted to the hidden states of 30 episodes (32-way, 4-shot, windows of 32 tokens, with a seed that no run uses): a logistic
regression on the support states, to its optimum, and the inner loop on randomly initialised episode heads of one, two and
four layers at several rates. The table has query accuracies ± their standard errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from metapt.config import commandline
from metapt.data.corpus import prepare_corpus
from metapt.data.episodes import EpisodeSampler
from metapt.errors import UserError, run_command
from metapt.meta.adaptation import Copies
from metapt.meta.window_episodes import accuracy
from metapt.meta.window_examples import example_batches
from metapt.models.causal_lm import load_causal_lm
from metapt.models.episode_head import EpisodeHead
from metapt.models.meta_lm import build_meta_lm
from metapt.runs import MODEL_DIR, Run

EPISODES, SEED, PENALTY = 30, 12345, 0.01
LAYERS, RATES = (1, 2, 4), (1e-3, 1e-2, 0.1, 0.3, 1.0)


class EpisodeStates(NamedTuple):
    """Hidden states [n, d] and labels [n] of an episode."""

    support: Tensor
    support_labels: Tensor
    query: Tensor
    query_labels: Tensor


def episode_states(recorded: Mapping[str, Any], checkpoint: Path) -> list[EpisodeStates]:
    """The hidden states of a checkpoint at the prediction positions of the episodes.

    Args:
        recorded: the configuration of the run.
    """
    data = [
        commandline.quote_override(f"data.{key}", value)
        for key, value in recorded["data"].items()
        if value is not None
    ]
    arguments = [
        f"model={recorded['model']['name']}",
        "objective=maml_paper",
        "meta.window=32",
        "meta.min_context=8",
        *data,
    ]
    config = commandline.load("pretrain", arguments)
    corpus = prepare_corpus(config.data)
    config.train.seed = SEED
    sampler = EpisodeSampler.of(config, corpus)
    meta_lm = build_meta_lm(config).eval()
    meta_lm.decoder.load_state_dict(load_causal_lm(checkpoint / MODEL_DIR).state_dict())
    found = []
    for number in range(EPISODES):
        task = sampler.episode(number, 0)
        with torch.no_grad():
            support, query = example_batches(meta_lm, task, config.meta)
            states = [meta_lm.prediction_states(batch.windows) for batch in (support, query)]
        found.append(EpisodeStates(states[0], support.labels, states[1], query.labels))
    return found


def regression(states: EpisodeStates) -> float:
    """Query accuracy of a logistic regression on standardised support states."""
    mean, deviation = states.support.mean(dim=0), states.support.std(dim=0) + 1e-6
    support, query = ((hidden - mean) / deviation for hidden in (states.support, states.query))
    classes = int(states.support_labels.max()) + 1
    weight = torch.zeros(support.shape[1], classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(support @ weight, states.support_labels) + PENALTY * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return float(accuracy(query @ weight, states.query_labels))


def inner_loop(states: EpisodeStates, layers: int, rate: float) -> float:
    """Query accuracy of a randomly initialised episode head after ten inner steps."""
    classes = int(states.support_labels.max()) + 1
    head = EpisodeHead(states.support.shape[1], 128, classes, layers, 0.0, 0)

    def support_loss(parameters: Mapping[str, Tensor]) -> Tensor:
        return cross_entropy(head.logits(states.support, parameters), states.support_labels)

    copies = Copies(dict(head.named_parameters()), rate)
    for _ in range(10):
        copies.step(support_loss)
    return float(accuracy(head.logits(states.query, copies.detached()), states.query_labels))


def mean_and_error(accuracies: list[float]) -> str:
    """Mean ± standard error."""
    return f"{np.mean(accuracies):.3f} ± {np.std(accuracies, ddof=1) / len(accuracies) ** 0.5:.3f}"


def main(argv: Sequence[str]) -> None:
    if len(argv) < 2:
        raise UserError("usage: python benchmarks/probe.py RUN STEP [STEP ...]")
    run, steps = Run(Path(argv[0])), [int(word) for word in argv[1:]]
    checkpoints = dict(run.checkpoints())
    settings = [(layers, rate) for layers in LAYERS for rate in RATES]
    columns = [f"{layers} layers, {rate:g}" for layers, rate in settings]
    print(f"| step | standard deviation of the states | regression | {' | '.join(columns)} |")
    print(f"|---|---|---|{'---|' * len(columns)}")
    for step in steps:
        episodes = episode_states(run.config(), checkpoints[step])
        deviation = np.mean([float(states.support.std(dim=0).mean()) for states in episodes])
        cells = [mean_and_error([regression(states) for states in episodes])]
        cells += [
            mean_and_error([inner_loop(states, layers, rate) for states in episodes])
            for layers, rate in settings
        ]
        print(f"| {step} | {deviation:.2f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    run_command(main)
