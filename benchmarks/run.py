"""What is timed, against what: `make bench`. Two things are measured in turn in one run, and only ratios are told.

The medians of interleaved repetitions; the machine is named, since a ratio belongs to it. What was measured is
in benchmarks/README.md, a column for each kind of processor. `python benchmarks/run.py smoke` measures the short cases and
fails only where a share is more than twice the one recorded of a processor of the same kind.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path

import numpy as np
import ratios
import steps
import torch
import tuning
from machine import bf16_support, machine
from timing import Row, compare
from tokens import Tokens
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from metapt.config import commandline
from metapt.data.episodes import EpisodeSampler, WindowIndex
from metapt.errors import OperationalError, run_command
from metapt.launch.grid_dir import GridDir
from metapt.launch.jobs import Job, Plan
from metapt.meta.objectives import episode_objective
from metapt.models.attention import causal_attention
from metapt.models.losses import linear_cross_entropy
from metapt.models.meta_lm import build_meta_lm
from metapt.runs import Run

FOLDER = Path(__file__).parent
WORSE = 2
Case = tuple[str, Callable[[], object], str, Callable[[], object]]


def output_layer(dtype: torch.dtype) -> Case:
    """Loss and gradient of 2,048 tokens at the width of tiny and the paper's vocabulary."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2048, 96, generator=generator).requires_grad_()
    weight = (0.02 * torch.randn(50304, 96, generator=generator)).requires_grad_()
    targets = torch.randint(0, 50304, (2048,), generator=generator)

    def chunked() -> None:
        torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, dtype), [hidden, weight])

    def plain() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            logits = hidden @ weight.T
        torch.autograd.grad(cross_entropy(logits.float(), targets), [hidden, weight])

    name = str(dtype).removeprefix("torch.")
    return f"output layer and loss in chunks, {name}", chunked, "all logits at once", plain


def attention_tiles(length: int) -> Case:
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

    return f"attention in tiles, bf16, {2048 // length} x {length}", tiled, "torch's flash kernel", flash


def support_states() -> Case:
    """An 8-way episode of scope head at tiny, against scope full, which runs the decoder in every inner step."""
    sides = []
    for scope in ("head", "full"):
        words = [
            "model=tiny",
            "objective=maml",
            f"meta.scope={scope}",
            "meta.n_way=8",
            "meta.max_window_fraction=1",
        ]
        config = commandline.load("pretrain", [*words, "meta.k_shot=2", "meta.q_query=2", "meta.window=64"])
        tokens = np.random.default_rng(0).integers(2, 200, 40_000)
        index = WindowIndex.build(tokens, 256, 64, config.meta.min_context)
        task = EpisodeSampler(Tokens(tokens), index, config.meta, 0, 1, 0).episode(0, 0)  # type: ignore[arg-type]
        meta_lm = build_meta_lm(config)

        def run(meta_lm=meta_lm, task=task, meta=config.meta) -> None:  # type: ignore[no-untyped-def]
            episode_objective(meta_lm, task, meta, 0, 0, 0).loss.backward()

        sides.append(run)
    return "episode, scope head (states once)", sides[0], "scope full (states in every inner step)", sides[1]


def begun_grid(folder: Path, runs: int) -> GridDir:
    """A grid of so many runs that are all begun, with 2,000 updates each."""
    names = [f"pretrain/{number}" for number in range(runs)]
    root = GridDir(folder)
    root.write_plan(Plan("many", tuple(Job(name, "pretrain") for name in names)))
    config = asdict(commandline.load("pretrain", ["model=tiny", "objective=maml", "data=demo"]))
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


def status_of_a_grid(folder: Path, runs: int = 500) -> Case:
    """`metapt.status` of runs that are all begun, against a process that imports torch."""
    begun_grid(folder, runs)

    def process(*words: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)

    status = process("-m", "metapt.status", f"root={folder}")
    return f"metapt.status of {runs} runs", status, "python -c 'import torch'", process("-c", "import torch")


def timed(case: Case) -> Row:
    """The row of a case whose two sides are closures."""
    ours, run, theirs, other = case
    return ours, theirs, compare(run, other)


def short_rows() -> Iterator[Row]:
    """What takes less than a minute."""
    yield timed(output_layer(torch.float32))
    yield timed(output_layer(torch.bfloat16))
    yield timed(attention_tiles(512))
    yield timed(attention_tiles(128))


def all_rows() -> Iterator[Row]:
    yield from short_rows()
    yield timed(support_states())
    with tempfile.TemporaryDirectory() as folder:
        yield timed(status_of_a_grid(Path(folder, "grid")))
        for case in tuning.head_only(Path(folder, "tuning")):
            yield timed(case)
    for step in steps.CASES:
        yield from steps.measured(step)


def told(rows: Iterable[Row]) -> Iterator[Row]:
    """The same rows, each printed as it comes."""
    for what, against, share in rows:
        print(line(what, against, share), flush=True)
        yield what, against, share


def line(what: str, against: str, share: float) -> str:
    return f"| {what} | {against} | {share:.2g} |"


def smoke() -> None:
    """Measures the short cases, and compares them with what is recorded of the same kind of processor.

    Raises:
        OperationalError: one has become twice as slow, beside what it is measured against.
    """
    known = ratios.recorded().get(kind(), {"shares": {}})["shares"]
    halved = []
    for what, against, share in short_rows():
        before = known.get(ratios.name(what, against))
        compared = f"recorded: {before:.2f}" if before else f"nothing recorded with {kind()}"
        print(f"{what}: {share:.2f} of {against} ({compared})", flush=True)
        if before and share > WORSE * before:
            halved.append(what)
    if halved:
        raise OperationalError(
            f"half as fast as recorded in {ratios.FILE.name}, or slower: {'; '.join(halved)}"
        )


def main(argv: Sequence[str]) -> None:
    """Measures every case and writes ratios.json and README.md as it goes; with `smoke`, the short ones, and compares."""
    if argv == ["smoke"]:
        smoke()
        return
    rows = []
    for row in told(all_rows()):
        rows.append(row)
        ratios.record(kind(), machine(), str(date.today()), rows)
        (FOLDER / "README.md").write_text(ratios.table(ratios.recorded()), encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
