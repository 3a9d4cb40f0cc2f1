"""Growth of running time: `python benchmarks/growth.py` writes benchmarks/growth.md and growth.svg.

The points of a curve are timed in turn in one process and given relative to the first, beside the growth of the floating
point operations (metapt/estimate/flops.py). Steps have the size of tiny unless the curve varies it.
"""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, redirect_stdout
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from fitting import Curve, figure, section, sentence
from machine import machine, precisions
from run import started_grid
from steps import configuration, episode_step, micro_batch_step, random_sequences, random_task
from timing import medians

from metapt.config import PretrainConfig, commandline
from metapt.errors import run_command
from metapt.estimate.flops import flops_of_step
from metapt.launch.grid import plan
from metapt.launch.grid_status import grid_status
from metapt.launch.submission import submit
from metapt.meta.objectives import next_token_objective
from metapt.models.meta_lm import build_meta_lm
from metapt.training.engine import Engine

FOLDER = Path(__file__).parent
PRECISION = precisions()[-1]
RANKS = (1, 2)
UNITS = 8
"""Micro-batches of an update that ranks divide."""
Run = Callable[[], object]


def steps_curve(title: str, variable: str, cases: dict[float, PretrainConfig], *, is_episode: bool) -> Curve:
    """The forward and backward pass of a micro-batch or an episode, by the value of a variable."""
    steps = [
        episode_step(config, random_task(config)) if is_episode else micro_batch_step(config)
        for config in cases.values()
    ]
    flops = tuple(flops_of_step(config, is_episode) for config in cases.values())
    return Curve(title, variable, tuple(cases), tuple(medians(*steps)), flops)


def width() -> Curve:
    cases: dict[float, PretrainConfig] = {}
    for hidden_size in (96, 192, 384, 768):
        shape = [
            f"model.hidden_size={hidden_size}",
            f"model.intermediate_size={4 * hidden_size}",
            "train.micro_batch=2",
        ]
        cases[hidden_size] = configuration("tiny", 512, PRECISION, "objective=vanilla", *shape)
    return steps_curve("a next-token micro-batch of 2 x 512", "width", cases, is_episode=False)


def sequence_length() -> Curve:
    cases: dict[float, PretrainConfig] = {
        length: configuration("tiny", length, PRECISION, "objective=vanilla")
        for length in (128, 256, 512, 1024, 2048)
    }
    return steps_curve("a micro-batch of 2,048 tokens", "sequence length", cases, is_episode=False)


def support_windows() -> Curve:
    cases: dict[float, PretrainConfig] = {}
    for classes, shots in ((4, 2), (8, 2), (8, 4), (16, 4), (32, 4)):
        shape = [f"meta.n_way={classes}", f"meta.k_shot={shots}", f"meta.q_query={shots}"]
        cases[classes * shots] = configuration("tiny", 64, PRECISION, *shape)
    title = "an episode of scope head, windows of 64"
    return steps_curve(title, "number of support windows", cases, is_episode=True)


def inner_steps(scope: str) -> Curve:
    shape = ["meta.n_way=8", "meta.k_shot=2", "meta.q_query=2", f"meta.scope={scope}"]
    cases: dict[float, PretrainConfig] = {
        steps: configuration("tiny", 64, PRECISION, f"meta.inner_steps={steps}", *shape)
        for steps in (1, 2, 4, 8, 16)
    }
    title = f"an 8-way 2-shot episode of scope {scope}"
    return steps_curve(title, "number of inner steps", cases, is_episode=True)


class Ranks:
    """Processes of one thread each that divide the micro-batches of an update; a call makes one update."""

    def __init__(self, count: int):
        with socket.socket() as unbound:
            unbound.bind(("127.0.0.1", 0))
            port = unbound.getsockname()[1]
        shared = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        self.processes = []
        for rank in range(count):
            variables = {**shared, "RANK": rank, "LOCAL_RANK": rank}
            environment = os.environ | {name: str(value) for name, value in variables.items()}
            command = [sys.executable, __file__, "rank"]
            self.processes.append(
                subprocess.Popen(
                    command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )

    def __call__(self) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        for process in self.processes:
            assert process.stdout is not None
            while (line := process.stdout.readline()) != "done\n":
                if not line:
                    raise RuntimeError(f"a rank ended with exit code {process.wait()}")

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.communicate()


def rank() -> None:
    """One process of `Ranks`: an update for every line on stdin."""
    shape = ["train.micro_batch=1", f"train.micro_batches_per_update={UNITS}"]
    config = configuration("tiny", 512, PRECISION, "objective=vanilla", *shape)
    engine, sequences = Engine(build_meta_lm(config), config), random_sequences(config)
    units = range(engine.rank, UNITS, engine.world_size)
    for _ in sys.stdin:
        for unit in units:
            loss = next_token_objective(engine.meta_lm, sequences).loss
            engine.backward(loss / len(units), last=unit == units[-1])
        engine.step(config.train.lr)
        print("done", flush=True)


def ranks() -> Curve:
    with ExitStack() as stack:
        groups = [Ranks(count) for count in RANKS]
        for group in groups:
            stack.callback(group.close)
        seconds = tuple(medians(*groups))
    title = f"an update of {UNITS} micro-batches of 512, one thread per rank"
    return Curve(title, "number of ranks", RANKS, seconds, tuple(1 / count for count in RANKS))


def dry_run(folder: Path) -> Curve:
    jobs, runs = [], []
    for seeds in (1, 2, 4, 8, 16):
        seed_list = f"grid.seeds={[*range(seeds)]}".replace(" ", "")
        arguments = [
            "grid=demo",
            "cluster=local",
            seed_list,
            "dry_run=true",
            f"root={folder / str(seeds)}",
        ]
        config: Any = commandline.load("submit", arguments)
        jobs.append(len(plan(config).jobs))
        runs.append(partial(submit, config))
    with redirect_stdout(io.StringIO()):
        return Curve("a dry run of a grid", "number of jobs", tuple(jobs), tuple(medians(*runs)))


def status(folder: Path) -> Curve:
    counts = (10, 30, 90, 270)
    runs = [partial(grid_status, started_grid(folder / f"started{count}", count)) for count in counts]
    return Curve("metapt.status of a running grid", "number of runs", counts, tuple(medians(*runs)))


def curves() -> Iterator[Curve]:
    """All curves, each as soon as it is measured."""
    yield width()
    yield sequence_length()
    yield support_windows()
    yield from map(inner_steps, ("head", "full"))
    yield ranks()
    with tempfile.TemporaryDirectory() as folder:
        yield dry_run(Path(folder))
        yield status(Path(folder))


def main(argv: Sequence[str]) -> None:
    """Measure all curves and write them; with the argument `rank`, run as a process of `Ranks`."""
    if argv == ["rank"]:
        rank()
        return
    found, started = [], time.monotonic()
    for curve in curves():
        print(f"{curve.title}: {sentence(curve)}", flush=True)
        found.append(curve)
    introduction = [
        "# Growth of running time",
        "",
        "`python benchmarks/growth.py` measured this. Times are medians of interleaved repetitions, relative to the first point. Exponents are",
        f"least-squares fits to their logarithms, ± the standard error. Steps are forward and backward passes in {PRECISION} at the size of `model=tiny`,",
        "except for the variable. `metapt/estimate/flops.py` counts operations, without the episode head, norms, activations and embedding.",
        "Projection to GPUs: [docs/results/projection.md](../docs/results/projection.md).",
        "",
        f"Machine: {machine()}; {date.today()}.",
        "",
        "![The curves](growth.svg)",
        "",
    ]
    lines = [line for curve in found for line in section(curve)]
    (FOLDER / "growth.md").write_text("\n".join([*introduction, *lines]).rstrip() + "\n", encoding="utf-8")
    (FOLDER / "growth.svg").write_text(figure(found), encoding="utf-8")
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
