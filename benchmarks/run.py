"""What is timed, against what: `make bench`. Two things are measured in turn in one run, and only ratios are told.

The medians of interleaved repetitions; the machine is named, since a ratio belongs to it. The last table that
was measured is benchmarks/README.md.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median

import dynamics
import numpy as np
import torch
import tuning
from tokens import Tokens
from torch.nn.functional import cross_entropy

from metapt import commandline
from metapt.data.episodes import EpisodeSampler, WindowIndex
from metapt.launch.jobs import Job, Plan
from metapt.launch.root import Root
from metapt.meta.objectives import episode
from metapt.models.learner import build_learner
from metapt.models.losses import linear_cross_entropy
from metapt.runs import Run

REPETITIONS = 7
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


def support_states() -> Case:
    """An 8-way episode of scope head at tiny, against scope full, which runs the decoder in every inner step."""
    sides = []
    for scope in ("head", "full"):
        words = ["model=tiny", "objective=maml", f"meta.scope={scope}", "meta.n_way=8", "meta.max_share=1"]
        config = commandline.load("pretrain", [*words, "meta.k_shot=2", "meta.q_query=2", "meta.window=64"])
        tokens = np.random.default_rng(0).integers(2, 200, 40_000)
        index = WindowIndex.build(tokens, 256, 64, config.meta.min_context)
        task = EpisodeSampler(Tokens(tokens), index, config.meta, 0, 1, 0).episode(0, 0)  # type: ignore[arg-type]
        learner = build_learner(config)

        def run(learner=learner, task=task, meta=config.meta) -> None:  # type: ignore[no-untyped-def]
            episode(learner, task, meta, 0, 0, 0).loss.backward()

        sides.append(run)
    return "episode, scope head (states once)", sides[0], "scope full (states in every inner step)", sides[1]


def status_of_a_grid(folder: Path, runs: int = 500) -> Case:
    """`metapt.status` of runs that are all begun, with 2,000 updates each, against a process that imports torch."""
    names = [f"pretrain/{number}" for number in range(runs)]
    root = Root(folder)
    root.write_plan(Plan("many", tuple(Job(name, "pretrain", (), (), name) for name in names)))
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
    update = {"kind": "autoregressive", "tokens_total": 10**9, **dict.fromkeys(values, 0.123456789)}
    metrics = "".join(json.dumps({"step": step, **update}) + "\n" for step in range(1, 2001))
    for name in names:
        run = Run(folder / name)
        run.begin(config, {})
        run.metrics_file.write_text(metrics)

    def process(*words: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)

    status = process("-m", "metapt.status", f"root={folder}")
    return f"metapt.status of {runs} runs", status, "python -c 'import torch'", process("-c", "import torch")


def compare(ours: Callable[[], object], theirs: Callable[[], object]) -> float:
    """Median over interleaved repetitions of the time of `ours` as a share of that of `theirs`."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPETITIONS + 1):
        for run, kept in zip((ours, theirs), times, strict=True):
            started = time.perf_counter()
            run()
            kept.append(time.perf_counter() - started)
    return median(times[0][1:]) / median(times[1][1:])  # the first repetition warms up


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> None:
    """Measures every case and writes benchmarks/README.md."""
    lines = [
        f"Machine: {machine()}.",
        "",
        "| what | against | time of the first, share of the second |",
        "|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for ours, run, theirs, other in (
            output_layer(torch.float32),
            output_layer(torch.bfloat16),
            support_states(),
            status_of_a_grid(Path(folder, "grid")),
            *tuning.head_only(Path(folder, "tuning")),
        ):
            lines.append(f"| {ours} | {theirs} | {compare(run, other):.2f} |")
            print(lines[-1], flush=True)
    lines += [
        "",
        "What measuring the learning dynamics costs at the defaults of a scale: the time of one measurement as a share of that",
        "of train.dynamics_every updates. An update is taken as train.accumulation times a micro-batch or meta.tasks_per_step",
        "times an episode, each as often as meta.rho says, without the optimizer's step. The bound is 0.03.",
        "",
        "| what | against | share |",
        "|---|---|---|",
    ]
    for model in ("nano", "tiny"):
        for ours, theirs, share in dynamics.shares(model):
            lines.append(f"| {ours} | {theirs} | {share:.1g} |")
            print(lines[-1], flush=True)
    head = "# Benchmarks\n\n`make bench` measured this; ratios of interleaved medians in one run.\n\n"
    (Path(__file__).parent / "README.md").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
