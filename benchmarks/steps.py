"""Pretraining updates against baselines and against the peak speed of the machine, each case in its own process.

`python benchmarks/steps.py CASE SIZE LENGTH PRECISION` measures one case and prints its rows as JSON; benchmarks/run.py
runs all of CASES.
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
from timing import Row, medians, time_ratio
from tokens import Tokens

from metapt.config import ModelConfig, PretrainConfig, commandline
from metapt.data.episodes import Episode, EpisodeSampler, WindowIndex
from metapt.estimate.flops import flops_of_step, tokens_of_step
from metapt.meta.objectives import next_token_objective
from metapt.meta.window_episodes import episode_objective
from metapt.models.meta_lm import build_meta_lm
from metapt.training.engine import Engine

TOKENS = 2048
"""Tokens per micro-batch, whatever the length of its sequences."""

CASES = [
    *[
        ("trainer", size, str(length), precision)
        for size in ("tiny", "small")
        for length in (512, 2048)
        for precision in precisions()
    ],
    *[("peak", size, "512", precision) for size in ("tiny", "small") for precision in ("fp32", "bf16")],
    *[  # longer windows take the naive implementation minutes per repetition, and gigabytes for its graph
        ("naive", size, length, precision)
        for size, length in (("tiny", "128"), ("small", "32"))
        for precision in precisions()
    ],
    *[("scopes", "tiny", "64", precision) for precision in precisions()],
]


def configuration(size: str, length: int, precision: str, *overrides: str) -> PretrainConfig:
    """A run whose updates are one micro-batch of TOKENS tokens, or one episode of windows of `length` tokens."""
    arguments = [
        f"model={size}",
        "objective=maml_paper",
        f"train.precision={precision}",
        f"train.seq_len={length}",
        f"train.micro_batch={TOKENS // length}",
        "train.micro_batches_per_update=1",
        "meta.tasks_per_step=1",
        f"meta.window={length}",
        f"meta.min_context={length // 4}",
        "meta.max_window_fraction=1",
    ]
    return commandline.load("pretrain", [*arguments, *overrides])


def random_sequences(config: PretrainConfig) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (config.train.micro_batch, config.train.seq_len + 1)
    return torch.randint(0, config.model.vocab_size, shape, generator=generator)


def random_task(config: PretrainConfig, count: int = 2_000_000) -> Episode:
    """An episode of a stream of `count` random tokens."""
    tokens = np.random.default_rng(0).integers(2, 1000, count)
    index = WindowIndex.build(tokens, 1024, config.meta.window, config.meta.min_context)
    return EpisodeSampler(Tokens(tokens), index, config.meta, 0, 1, 0).episode(0, 0)  # type: ignore[arg-type]


def update_step(config: PretrainConfig, sequences: torch.Tensor) -> Callable[[], None]:
    """A next-token update of one micro-batch, with the engine."""
    engine = Engine(build_meta_lm(config), config)

    def step() -> None:
        engine.backward(next_token_objective(engine.meta_lm, sequences).loss, last=True)
        engine.step(config.train.lr)

    return step


def micro_batch_step(config: PretrainConfig) -> Callable[[], None]:
    """Forward and backward pass of a next-token micro-batch."""
    meta_lm, sequences = build_meta_lm(config), random_sequences(config)

    def run() -> None:
        next_token_objective(meta_lm, sequences).loss.backward()
        meta_lm.zero_grad()

    return run


def episode_step(config: PretrainConfig, task: Episode) -> Callable[[], None]:
    """Forward and backward pass of an episode."""
    meta_lm = build_meta_lm(config)

    def run() -> None:
        episode_objective(meta_lm, task, config.meta, 0, 0, 0).loss.backward()
        meta_lm.zero_grad()

    return run


def trainer(size: str, length: int, precision: str) -> list[Row]:
    """A next-token update against transformers' Trainer, and its FLOP/s against those of the fastest matrix product."""
    from baselines import trainer_step

    config = configuration(size, length, precision, "objective=vanilla")
    sequences = random_sequences(config)
    baseline = trainer_step(config, sequences[:, :-1])  # before a process group exists
    seconds, baseline_seconds = medians(update_step(config, sequences), baseline)
    utilisation = flops_of_step(config, False) / seconds / peak_flops_per_second(config)
    name = f"{size} {precision} {len(sequences)} x {length}"
    fastest = "fastest matrix product of the model's shapes (MFU)"
    return [
        Row(f"next-token update, {name}", "transformers' Trainer", seconds / baseline_seconds),
        Row(f"FLOP/s of the next-token update, {name}", fastest, utilisation),
    ]


def peak_flops_per_second(config: PretrainConfig) -> float:
    """FLOP/s of the fastest matrix product in an update, forward or for either gradient, with TOKENS rows."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[config.train.precision]
    return max(_flops_per_second(shape, dtype) for shape in products(config.model))


def products(model: ModelConfig) -> set[tuple[int, int, int]]:
    """Shapes (rows, inner, columns) of the products with weight matrices: x W, dy W^T and x^T dy."""
    d, wide, vocabulary = model.hidden_size, model.intermediate_size, model.vocab_size
    shapes = set()
    for inputs, outputs in ((d, d), (d, wide), (wide, d), (d, vocabulary)):
        shapes |= {(TOKENS, inputs, outputs), (TOKENS, outputs, inputs), (inputs, TOKENS, outputs)}
    return shapes


def _flops_per_second(shape: tuple[int, int, int], dtype: torch.dtype) -> float:
    """FLOP/s of a matrix product whose result is written to an existing matrix."""
    rows, inner, columns = shape
    left, right = torch.randn(rows, inner, dtype=dtype), torch.randn(inner, columns, dtype=dtype)
    out = torch.empty(rows, columns, dtype=dtype)
    (seconds,) = medians(lambda: torch.mm(left, right, out=out))
    return 2 * rows * inner * columns / seconds


def peak(size: str, length: int, precision: str) -> list[Row]:
    """Peak memory of two updates, without that of the libraries, against transformers' Trainer."""
    arguments = size, str(length), precision
    ours, baseline = (json.loads(_output(kind, *arguments)) for kind in ("peak_ours", "peak_trainer"))
    name = f"{size} {precision} {TOKENS // length} x {length}"
    return [Row(f"peak memory of the next-token update, {name}", "transformers' Trainer", ours / baseline)]


def peak_bytes(kind: str, size: str, length: int, precision: str) -> int:
    """Bytes that two updates add, at their peak, to the resident set with all libraries imported.

    Args:
        kind: peak_ours or peak_trainer.
    """
    from baselines import trainer_step

    config = configuration(size, length, precision, "objective=vanilla")
    sequences, before = random_sequences(config), status_bytes("VmRSS")
    step = update_step(config, sequences) if kind == "peak_ours" else trainer_step(config, sequences[:, :-1])
    for _ in range(2):
        step()
    return status_bytes("VmHWM") - before


def naive(size: str, length: int, precision: str) -> list[Row]:
    """The paper's episode with scope head, against a naive implementation and against next-token prediction."""
    from baselines import NaiveEpisode

    config = configuration(size, length, precision)
    task = random_task(config)
    step = episode_step(config, task)
    name = f"episode, scope head, 32-way 4-shot, {size} {precision}, windows of {length}"
    return [
        Row(name, "naive implementation", time_ratio(step, NaiveEpisode(config, task))),
        Row(name, "next-token prediction on as many tokens", _ratio_to_next_token(config, step)),
    ]


def scopes(size: str, length: int, precision: str) -> list[Row]:
    """An 8-way episode of scope full, against one pass of next-token prediction per inner step and one for the query."""
    config = configuration(size, length, precision, "meta.scope=full", "meta.n_way=8")
    name = f"episode, scope full, 8-way 4-shot, {size} {precision}, windows of {length}"
    passes = config.meta.inner_steps + 1
    ratio = _ratio_to_next_token(config, episode_step(config, random_task(config))) / passes
    return [Row(name, f"{passes} passes of next-token prediction on as many tokens", ratio)]


def _ratio_to_next_token(config: PretrainConfig, step: Callable[[], None]) -> float:
    """Time per token of an episode, divided by that of next-token prediction in micro-batches of TOKENS tokens."""
    return time_ratio(step, micro_batch_step(config)) * TOKENS / tokens_of_step(config, True)


def _output(*arguments: str) -> str:
    """The last line that this script prints in its own process."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()[-1]


def measure(case: tuple[str, str, str, str]) -> list[Row]:
    """The rows of a case, from its own process, since accelerate and the engine keep global state."""
    return [Row(*row) for row in json.loads(_output(*case))]


def main(name: str, size: str, length: str, precision: str) -> None:
    if name.startswith("peak_"):
        print(json.dumps(peak_bytes(name, size, int(length), precision)))
        return
    cases = {"trainer": trainer, "peak": peak, "naive": naive, "scopes": scopes}
    print(json.dumps(cases[name](size, int(length), precision)))


if __name__ == "__main__":
    main(*sys.argv[1:])
