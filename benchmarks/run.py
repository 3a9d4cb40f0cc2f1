"""Ratios of time against baselines: `make bench`.

Both sides of a ratio are timed in turn in one process; the machine is recorded, since a ratio depends on it.
benchmarks/README.md has the results, a column for each kind of CPU. `python benchmarks/run.py smoke` measures the short
cases and fails if a ratio is more than twice the recorded one for the same kind of CPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path

import numpy as np
import ratios
import steps
import torch
import tuning
from machine import bf16_support, machine
from timing import Case, Row
from tokens import Tokens
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from metapt.config import commandline
from metapt.data.episodes import EpisodeSampler, WindowIndex
from metapt.errors import OperationalError, run_command
from metapt.launch.grid_dir import GridDir
from metapt.launch.jobs import Job, Plan
from metapt.meta.window_episodes import episode_objective
from metapt.models.attention import causal_attention
from metapt.models.losses import linear_cross_entropy
from metapt.models.meta_lm import build_meta_lm
from metapt.runs import Run

FOLDER = Path(__file__).parent
MAX_INCREASE = 2
"""Largest accepted factor of a ratio over the recorded one."""


def output_layer(precision: str) -> Case:
    """Loss and gradient of 2,048 tokens at the width of tiny with the paper's vocabulary."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2048, 96, generator=generator).requires_grad_()
    weight = (0.02 * torch.randn(50304, 96, generator=generator)).requires_grad_()
    targets = torch.randint(0, 50304, (2048,), generator=generator)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]

    def chunked() -> None:
        torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, dtype), [hidden, weight])

    def plain() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = hidden @ weight.T
        torch.autograd.grad(cross_entropy(logits.float(), targets), [hidden, weight])

    return Case(f"chunked output layer and loss, {precision}", chunked, "full logits", plain)


def tiled_attention(length: int) -> Case:
    """Forward and backward pass of the attention of one block at tiny, 2,048 tokens in bf16."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2048 // length, length, heads, 8, generator=generator)
        .bfloat16()
        .transpose(1, 2)
        .requires_grad_()
        for heads in (12, 4, 4)
    )

    def tiled() -> None:
        causal_attention(query, key, value, 8**-0.5).sum().backward()

    def flash() -> None:
        scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).sum().backward()

    return Case(f"tiled attention, bf16, {2048 // length} x {length}", tiled, "torch's flash kernel", flash)


def scope_head() -> Case:
    """An 8-way episode of scope head at tiny, against scope full, which runs the decoder in every inner step."""
    tokens = np.random.default_rng(0).integers(2, 200, 40_000)

    def episode_of_scope(scope: str) -> Callable[[], None]:
        arguments = [
            "model=tiny",
            "objective=maml_paper",
            f"meta.scope={scope}",
            "meta.n_way=8",
            "meta.k_shot=2",
            "meta.q_query=2",
            "meta.window=64",
            "meta.max_window_fraction=1",
        ]
        config = commandline.load("pretrain", arguments)
        index = WindowIndex.build(tokens, 256, 64, config.meta.min_context)
        task = EpisodeSampler(Tokens(tokens), index, config.meta, 0, 1, 0).episode(0, 0)  # type: ignore[arg-type]
        meta_lm = build_meta_lm(config)
        return lambda: episode_objective(meta_lm, task, config.meta, 0, 0, 0).loss.backward()

    return Case(
        "episode, scope head (hidden states computed once)",
        episode_of_scope("head"),
        "scope full (hidden states in every inner step)",
        episode_of_scope("full"),
    )


def started_grid(folder: Path, runs: int) -> GridDir:
    """A grid whose runs have all started and have 2,000 updates each."""
    names = [f"pretrain/{number}" for number in range(runs)]
    root = GridDir(folder)
    root.write_plan(Plan("many", tuple(Job(name, "pretrain") for name in names)))
    config = asdict(commandline.load("pretrain", ["model=tiny", "objective=maml_paper", "data=demo"]))
    values = (
        "lm_loss_nats",
        "seconds",
        "tokens_per_second",
        "grad_norm",
        "lr",
        "flops_total",
        "seconds_total",
    )
    update = {"kind": "lm", "tokens_total": 10**9, **dict.fromkeys(values, 0.123456789)}
    metrics = "".join(json.dumps({"step": step, **update}) + "\n" for step in range(1, 2001))
    for name in names:
        run = Run(folder / name)
        run.start(config, {})
        run.metrics_file.write_text(metrics)
    return root


def grid_status(folder: Path, runs: int = 500) -> Case:
    """`metapt.status` of a grid whose runs have all started, against a process that imports torch."""
    started_grid(folder, runs)

    def process(*arguments: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)

    status = process("-m", "metapt.status", f"root={folder}")
    return Case(
        f"metapt.status of {runs} runs", status, "python -c 'import torch'", process("-c", "import torch")
    )


def short_rows() -> Iterator[Row]:
    """The rows that take less than a minute."""
    yield output_layer("fp32").row()
    yield output_layer("bf16").row()
    yield tiled_attention(512).row()
    yield tiled_attention(128).row()


def all_rows() -> Iterator[Row]:
    yield from short_rows()
    yield scope_head().row()
    with tempfile.TemporaryDirectory() as folder:
        yield grid_status(Path(folder, "grid")).row()
        for case in tuning.head_only(Path(folder, "tuning")):
            yield case.row()
    for step in steps.CASES:
        yield from steps.measure(step)


def smoke() -> None:
    """Measure the short rows and compare them with those recorded for the same kind of CPU.

    Raises:
        OperationalError: a ratio is more than MAX_INCREASE times the recorded one.
    """
    recorded = ratios.recorded().get(bf16_support(), {"ratios": {}})["ratios"]
    slower = []
    for row in short_rows():
        expected = recorded.get(ratios.key(row.name, row.baseline))
        comparison = f"recorded: {expected:.2f}" if expected else f"not recorded for {bf16_support()}"
        print(f"{row.name}: {row.ratio:.2f} of the time of {row.baseline} ({comparison})", flush=True)
        if expected and row.ratio > MAX_INCREASE * expected:
            slower.append(row.name)
    if slower:
        raise OperationalError(
            f"more than {MAX_INCREASE} times the ratio in {ratios.FILE.name}: {'; '.join(slower)}"
        )


def main(argv: Sequence[str]) -> None:
    """Measure all rows and update ratios.json and README.md after each; with `smoke`, compare the short ones."""
    if argv == ["smoke"]:
        smoke()
        return
    rows = []
    for row in all_rows():
        print(f"| {row.name} | {row.baseline} | {row.ratio:.2g} |", flush=True)
        rows.append(row)
        ratios.record(bf16_support(), machine(), str(date.today()), rows)
        (FOLDER / "README.md").write_text(ratios.table(ratios.recorded()), encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
