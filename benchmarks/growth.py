"""How cost grows: `python benchmarks/growth.py` writes benchmarks/growth.md and growth.svg.

The points of a curve are measured in turn in one run, each told as a share of the first; `metapt/estimate/flops.py` says what the operations
alone would give. All steps are at the shape of tiny unless the curve says otherwise.
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
from run import begun_grid
from steps import configuration, our_episode, our_micro_batch, random_sequences, random_task
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
UNITS = 8  # micro-batches of an update that ranks share
Run = Callable[[], object]


def steps_curve(what: str, by: str, cases: dict[float, PretrainConfig], *, is_episode: bool) -> Curve:
    """The forward and backward pass of a micro-batch or an episode, by something that its configuration holds."""
    runs = [_episode(config) if is_episode else our_micro_batch(config) for config in cases.values()]
    operations = tuple(flops_of_step(config, is_episode) for config in cases.values())
    return Curve(what, by, tuple(cases), tuple(medians(*runs)), operations)


def _episode(config: PretrainConfig) -> Run:
    return our_episode(config, random_task(config))


def width() -> Curve:
    cases: dict[float, PretrainConfig] = {}
    for wide in (96, 192, 384, 768):
        shape = [f"model.hidden_size={wide}", f"model.intermediate_size={4 * wide}", "train.micro_batch=2"]
        cases[wide] = configuration("tiny", 512, PRECISION, "objective=vanilla", *shape)
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
    return steps_curve("an episode of scope head, windows of 64", "n_way x k_shot", cases, is_episode=True)


def inner_steps(scope: str) -> Curve:
    shape = ["meta.n_way=8", "meta.k_shot=2", "meta.q_query=2", f"meta.scope={scope}"]
    cases: dict[float, PretrainConfig] = {
        steps: configuration("tiny", 64, PRECISION, f"meta.inner_steps={steps}", *shape)
        for steps in (1, 2, 4, 8, 16)
    }
    return steps_curve(
        f"an 8-way 2-shot episode of scope {scope}", "number of inner steps", cases, is_episode=True
    )


class Ranks:
    """Processes of one thread each that share the micro-batches of an update, and make one whenever called."""

    def __init__(self, count: int):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
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
        """Ends the processes."""
        for process in self.processes:
            process.communicate()


def rank() -> None:
    """One process of `Ranks`: an update for every line on stdin."""
    words = ["objective=vanilla", "train.micro_batch=1", f"train.micro_batches_per_update={UNITS}"]
    config = configuration("tiny", 512, PRECISION, *words)
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
    what = f"an update of {UNITS} micro-batches of 512, a thread a rank"
    return Curve(what, "number of ranks", RANKS, seconds, tuple(1 / count for count in RANKS))


def dry_run(folder: Path) -> Curve:
    jobs, runs = [], []
    for seeds in (1, 2, 4, 8, 16):
        listed = f"grid.seeds={[*range(seeds)]}".replace(" ", "")
        words = ["grid=demo", "cluster=local", listed, "dry_run=true", f"root={folder / str(seeds)}"]
        config: Any = commandline.load("submit", words)
        jobs.append(len(plan(config).jobs))
        runs.append(partial(submit, config))
    with redirect_stdout(io.StringIO()):
        return Curve("a dry run of a grid", "number of jobs", tuple(jobs), tuple(medians(*runs)))


def status(folder: Path) -> Curve:
    counts = (10, 30, 90, 270)
    runs = [partial(grid_status, begun_grid(folder / f"begun{count}", count)) for count in counts]
    return Curve(
        "what metapt.status reads of a grid at work", "number of runs", counts, tuple(medians(*runs))
    )


def curves() -> Iterator[Curve]:
    """All of them, each as soon as it is measured."""
    yield width()
    yield sequence_length()
    yield support_windows()
    yield from map(inner_steps, ("head", "full"))
    yield ranks()
    with tempfile.TemporaryDirectory() as folder:
        yield dry_run(Path(folder))
        yield status(Path(folder))


def main(argv: Sequence[str]) -> None:
    """Measures all curves and writes them; with `rank`, is one of the processes of `Ranks`."""
    if argv == ["rank"]:
        rank()
        return
    found, started = [], time.monotonic()
    for curve in curves():
        print(f"{curve.what}: {sentence(curve)}", flush=True)
        found.append(curve)
    head = [
        "# How cost grows",
        "",
        "`python benchmarks/growth.py` measured this. Times are medians of repetitions in turn, as shares of the first point's; exponents are fitted",
        f"by least squares to their logarithms, ± the standard error. Steps are forward and backward passes in {PRECISION} at the shape of `model=tiny` (but for",
        "what varies). Operations are those of `metapt/estimate/flops.py`, in which the episode head, norms, activations and embedding count nothing.",
        "Projection to GPUs: [docs/results/projection.md](../docs/results/projection.md).",
        "",
        f"Machine: {machine()}; {date.today()}.",
        "",
        "![The curves](growth.svg)",
        "",
    ]
    lines = [line for curve in found for line in section(curve)]
    (FOLDER / "growth.md").write_text("\n".join([*head, *lines]).rstrip() + "\n", encoding="utf-8")
    (FOLDER / "growth.svg").write_text(figure(found), encoding="utf-8")
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
