"""Steps of pretraining against the usual ways and against the machine, each case in a process of its own.

`python benchmarks/steps.py CASE SIZE LENGTH PRECISION` measures one and prints its rows as JSON; benchmarks/run.py asks
for all of CASES. The two sides alternate; a row is (what, against, the first's share of the second).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import torch
from machine import precisions
from memory import status_bytes
from timing import Row, compare, medians
from tokens import Tokens

from metapt.config import ModelConfig, PretrainConfig, commandline
from metapt.data.episodes import Episode, EpisodeSampler, WindowIndex
from metapt.estimate.flops import flops_of_step, tokens_of_step
from metapt.meta.objectives import episode_objective, next_token_objective
from metapt.models.meta_lm import build_meta_lm
from metapt.training.engine import Engine

TOKENS = 2048  # of a micro-batch, whatever the length of its sequences

CASES = [
    *[
        ("trainer", size, str(length), precision)
        for size in ("tiny", "small")
        for length in (512, 2048)
        for precision in precisions()
    ],
    *[("peak", size, "512", precision) for size in ("tiny", "small") for precision in ("fp32", "bf16")],
    *[  # straightforward code over longer windows takes minutes a repetition, and its graph gigabytes
        ("straightforward", size, length, precision)
        for size, length in (("tiny", "128"), ("small", "32"))
        for precision in precisions()
    ],
    *[("scopes", "tiny", "64", precision) for precision in precisions()],
]


def configuration(size: str, length: int, precision: str, *words: str) -> PretrainConfig:
    """A run of one micro-batch of TOKENS tokens or one episode of windows of `length` tokens an update."""
    settings = [f"model={size}", "objective=maml", f"train.precision={precision}", f"train.seq_len={length}"]
    settings += [
        f"train.micro_batch={TOKENS // length}",
        "train.micro_batches_per_update=1",
        "meta.tasks_per_step=1",
    ]
    settings += [f"meta.window={length}", f"meta.min_context={length // 4}", "meta.max_window_fraction=1"]
    return commandline.load("pretrain", [*settings, *words])


def random_sequences(config: PretrainConfig) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (config.train.micro_batch, config.train.seq_len + 1)
    return torch.randint(0, config.model.vocab_size, shape, generator=generator)


def random_task(config: PretrainConfig) -> Episode:
    tokens = np.random.default_rng(0).integers(2, 1000, 2_000_000)
    index = WindowIndex.build(tokens, 1024, config.meta.window, config.meta.min_context)
    return EpisodeSampler(Tokens(tokens), index, config.meta, 0, 1, 0).episode(0, 0)  # type: ignore[arg-type]


def our_step(config: PretrainConfig, sequences: torch.Tensor) -> Callable[[], None]:
    """An update of one micro-batch under the engine."""
    engine = Engine(build_meta_lm(config), config)

    def step() -> None:
        engine.backward(next_token_objective(engine.meta_lm, sequences).loss, last=True)
        engine.step(config.train.lr)

    return step


def our_micro_batch(config: PretrainConfig) -> Callable[[], None]:
    """The forward and the backward pass of a next-token micro-batch."""
    meta_lm, sequences = build_meta_lm(config), random_sequences(config)

    def run() -> None:
        next_token_objective(meta_lm, sequences).loss.backward()
        meta_lm.zero_grad()

    return run


def our_episode(config: PretrainConfig, task: Episode) -> Callable[[], None]:
    """The forward and the backward pass of an episode."""
    meta_lm = build_meta_lm(config)

    def run() -> None:
        episode_objective(meta_lm, task, config.meta, 0, 0, 0).loss.backward()
        meta_lm.zero_grad()

    return run


def trainer(size: str, length: int, precision: str) -> list[Row]:
    """A next-token update against transformers' Trainer, and its rate against that of the best product."""
    from peers import trainer_step

    config = configuration(size, length, precision, "objective=vanilla")
    sequences = random_sequences(config)
    theirs = trainer_step(config, sequences[:, :-1])  # before there is a process group
    ours, other = medians(our_step(config, sequences), theirs)
    rate = flops_of_step(config, False) / ours / best_rate(config)
    name = f"{size} {precision} {len(sequences)} x {length}"
    return [
        (f"next-token update, {name}", "transformers' Trainer", ours / other),
        (f"FLOP/s of that update, {name}", "the best product at the model's shapes (MFU)", rate),
    ]


def best_rate(config: PretrainConfig) -> float:
    """FLOP/s of the fastest matrix product of a step with TOKENS rows: of those forward, and for either gradient."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[config.train.precision]
    return max(_product_rate(shape, dtype) for shape in products(config.model))


def products(model: ModelConfig) -> set[tuple[int, int, int]]:
    """(rows, inner, columns) of the products with a weight matrix: x W, dy W^T and x^T dy."""
    d, wide, vocabulary = model.hidden_size, model.intermediate_size, model.vocab_size
    shapes = set()
    for inputs, outputs in ((d, d), (d, wide), (wide, d), (d, vocabulary)):
        shapes |= {(TOKENS, inputs, outputs), (TOKENS, outputs, inputs), (inputs, TOKENS, outputs)}
    return shapes


def _product_rate(shape: tuple[int, int, int], dtype: torch.dtype) -> float:
    """FLOP/s of a product, all matrices in memory and its result written to one that is there."""
    rows, inner, columns = shape
    left, right = torch.randn(rows, inner, dtype=dtype), torch.randn(inner, columns, dtype=dtype)
    out = torch.empty(rows, columns, dtype=dtype)
    (seconds,) = medians(lambda: torch.mm(left, right, out=out))
    return 2 * rows * inner * columns / seconds


def peak(size: str, length: int, precision: str) -> list[Row]:
    """The memory that two updates add to a process, against transformers' Trainer."""
    ours, theirs = (
        json.loads(_output(side, size, str(length), precision)) for side in ("peak_ours", "peak_trainer")
    )
    return [
        (
            f"peak memory of that update, {size} {precision} {TOKENS // length} x {length}",
            "Trainer",
            ours / theirs,
        )
    ]


def peak_of(side: str, size: str, length: int, precision: str) -> int:
    """Bytes that two updates add at their peak to what the libraries take."""
    from peers import trainer_step

    config = configuration(size, length, precision, "objective=vanilla")
    sequences, before = random_sequences(config), status_bytes("VmRSS")
    step = our_step(config, sequences) if side == "peak_ours" else trainer_step(config, sequences[:, :-1])
    for _ in range(2):
        step()
    return status_bytes("VmHWM") - before


def straightforward(size: str, length: int, precision: str) -> list[Row]:
    """The episode of the paper, scope head, against straightforward code, and against next-token prediction."""
    from peers import StraightforwardEpisode

    config = configuration(size, length, precision)
    task = random_task(config)
    ours = our_episode(config, task)
    name = f"episode, scope head, 32-way 4-shot, {size} {precision}, windows of {length}"
    return [
        (name, "straightforward code", compare(ours, StraightforwardEpisode(config, task))),
        _per_token(name, config, ours, 1),
    ]


def scopes(size: str, length: int, precision: str) -> list[Row]:
    """An episode of scope full, 8-way, against as many next-token updates as it has inner steps and one."""
    config = configuration(size, length, precision, "meta.scope=full", "meta.n_way=8")
    name = f"episode, scope full, 8-way 4-shot, {size} {precision}, windows of {length}"
    return [_per_token(name, config, our_episode(config, random_task(config)), config.meta.inner_steps + 1)]


def _per_token(name: str, config: PretrainConfig, run: Callable[[], None], times: int) -> Row:
    """An episode against `times` next-token passes over as many tokens (forward and backward, micro-batches of TOKENS)."""
    share = compare(run, our_micro_batch(config)) * TOKENS / tokens_of_step(config, True) / times
    return name, f"{times} x next-token prediction over as many tokens", share


def _output(*words: str) -> str:
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()[-1]


def measured(case: tuple[str, str, str, str]) -> list[Row]:
    """The rows of a case, from a process of its own: Accelerate and the engine both keep state that is global."""
    return [(what, against, share) for what, against, share in json.loads(_output(*case))]


def main(name: str, size: str, length: str, precision: str) -> None:
    if name.startswith("peak_"):
        print(json.dumps(peak_of(name, size, int(length), precision)))
        return
    kinds = {"trainer": trainer, "peak": peak, "straightforward": straightforward, "scopes": scopes}
    print(json.dumps(kinds[name](size, int(length), precision)))


if __name__ == "__main__":
    main(*sys.argv[1:])
