"""What a decoder's states hold of the words that episodes ask for: `python benchmarks/probe.py RUN STEP [STEP ...]`.

RUN is a pretraining run with checkpoints; its text, tokenizer and shape are used. The states of 30 episodes (32-way, 4-shot, windows of 32; drawn with a seed that no
run has) go to two meta_lms: a logistic regression on the support states, to its optimum, and the inner loop of
the episodes, from fresh heads of one, two and four layers, at several rates. Told is the query accuracy, ± its standard error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from metapt.config import commandline
from metapt.data.corpus import prepare_corpus
from metapt.data.episodes import EpisodeSampler, corpus_index
from metapt.errors import UserError, run_command
from metapt.meta.adaptation import adapt
from metapt.meta.objectives import Side, accuracy
from metapt.models.decoder import EpisodeHead, load_decoder
from metapt.models.meta_lm import build_meta_lm
from metapt.runs import MODEL_DIR, Run

EPISODES, SEED, PENALTY = 30, 12345, 0.01
LAYERS, RATES = (1, 2, 4), (1e-3, 1e-2, 0.1, 0.3, 1.0)
Sides = tuple[Tensor, Tensor, Tensor, Tensor]
"""states and labels of support and query"""


def episodes(recorded: Mapping[str, Any], checkpoint: Path) -> list[Sides]:
    """The states of a checkpoint on the episodes."""
    data = [
        commandline.quote_override(f"data.{key}", value) for key, value in recorded["data"].items() if value is not None
    ]
    config = commandline.load("pretrain", [f"model={recorded['model']['name']}", "objective=maml", "meta.window=32", "meta.min_context=8", *data])  # fmt: skip
    corpus = prepare_corpus(config.data)
    tokenizer = corpus.tokenizer
    sampler = EpisodeSampler(corpus.train, corpus_index(corpus, config.meta), config.meta, SEED, tokenizer.mask_id, tokenizer.eos_id)  # fmt: skip
    meta_lm = build_meta_lm(config).eval()
    meta_lm.decoder.load_state_dict(load_decoder(checkpoint / MODEL_DIR).state_dict())
    found = []
    for number in range(EPISODES):
        task = sampler.episode(number, 0)
        with torch.no_grad():
            sides = [Side.of(examples, meta_lm) for examples in (task.support, task.query)]
            states = [meta_lm.prediction_states(side.windows) for side in sides]
        found.append((states[0], sides[0].labels, states[1], sides[1].labels))
    return found


def regression(sides: Sides) -> float:
    """Query accuracy of a logistic regression on standardised support states."""
    support, labels, query, wanted = sides
    mean, spread = support.mean(dim=0), support.std(dim=0) + 1e-6
    support, query = (support - mean) / spread, (query - mean) / spread
    classes = int(labels.max()) + 1
    weight = torch.zeros(support.shape[1], classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(support @ weight, labels) + PENALTY * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return float(accuracy(query @ weight, wanted))


def inner_loop(sides: Sides, layers: int, rate: float) -> float:
    """Query accuracy of a fresh head after ten inner steps."""
    support, labels, query, wanted = sides
    head = EpisodeHead(support.shape[1], 128, int(labels.max()) + 1, layers, 0.0, 0)
    start = dict(head.named_parameters())
    adapted = adapt(lambda values: cross_entropy(head.logits(support, values), labels), start, 10, rate)
    return float(accuracy(head.logits(query, adapted.values), wanted))


def told(accuracies: list[float]) -> str:
    return f"{np.mean(accuracies):.3f} ± {np.std(accuracies, ddof=1) / len(accuracies) ** 0.5:.3f}"


def main(argv: Sequence[str]) -> None:
    if len(argv) < 2:
        raise UserError("give a pretraining run and steps of its checkpoints")
    run, steps = Run(Path(argv[0])), [int(word) for word in argv[1:]]
    checkpoints = dict(run.checkpoints())
    print(f"| step | spread of the states | regression | {' | '.join(f'{n} layers, {rate:g}' for n in LAYERS for rate in RATES)} |")  # fmt: skip
    print(f"|---|---|---|{'---|' * len(LAYERS) * len(RATES)}")
    for step in steps:
        found = episodes(run.config(), checkpoints[step])
        spread = np.mean([float(sides[0].std(dim=0).mean()) for sides in found])
        loops = [told([inner_loop(sides, layers, rate) for sides in found]) for layers in LAYERS for rate in RATES]  # fmt: skip
        print(f"| {step} | {spread:.2f} | {told([regression(sides) for sides in found])} | {' | '.join(loops)} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    run_command(main)
