"""Runs that are killed, stopped, or out of disk space resume as if nothing had happened. All runs are forks (forks.py)."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import Fault, Forks, Outcome
from safetensors.torch import load_file
from test_word_class_runs import WORD_TERMS

from metapt import atomic_folders
from metapt.errors import EXIT_CTRL_C, EXIT_FAILED, EXIT_INTERRUPTED
from metapt.runs import Run

pytestmark = pytest.mark.commands

STAGES = ["zero0", "zero1", "zero2", "zero2_offload", "zero3"]
STEPS = [0, 3, 6, 9]  # of the checkpoints
TIMING = ("seconds", "seconds_total", "tokens_per_second")
ALL_RANKS = ["unit", "backward", "step", "mean", "loss", "evaluation", "checkpoint", "restore"]
ALL_RANKS += ["engine", "engine file"]
"""Fault points that every rank calls."""
RANK_0 = [
    "metrics",
    "trimming",
    "staging",
    "export",
    "atomic write",
    "sync",
    "commit",
    "rename",
    "removal",
    "finish",
]
"""Fault points that only rank 0 calls."""
FREQUENT = ["unit", "backward", "step", "mean", "loss", "inner loss"]
FREQUENT += ["metrics", "atomic write", "sync", "rename"]
"""Fault points with at least ten calls in a run."""


class Scenario:
    """One configuration, its uninterrupted run, and runs that must end in the same state.

    Args:
        arguments: of metapt.pretrain, without run_dir.
        ranks: number of ranks.
        folder: for the runs.
    """

    def __init__(self, forks: Forks, arguments: Sequence[str], ranks: int, folder: Path):
        self.forks, self.arguments, self.ranks, self.folder = forks, arguments, ranks, folder
        self.has_episodes = "objective=maml_paper" in arguments
        self.uninterrupted = Run(folder / "uninterrupted")
        self.outcome = self.run(self.uninterrupted)
        assert self.outcome.codes == [0] * ranks, self.outcome.stderr

    def run(self, run: Run, *faults: Fault, **fields: Any) -> Outcome:
        """Start or resume a run, which must not hang."""
        arguments = [*self.arguments, f"run_dir={run.path}"]
        outcome = self.forks.run(arguments, ranks=self.ranks, faults=faults, **fields)
        assert not outcome.hung, outcome.stderr
        return outcome

    def copy_unfinished(self, name: str) -> Run:
        """A copy of the uninterrupted run as it was just before its result was written."""
        run = Run(self.folder / name)
        shutil.copytree(self.uninterrupted.path, run.path)
        run.result_file.unlink()
        return run

    def finish(self, run: Run, extra_steps: Sequence[int] = ()) -> Outcome:
        """Resume a run to its end and compare everything it leaves with the uninterrupted run.

        Args:
            extra_steps: of further checkpoints, which were saved when the run was stopped.
        """
        outcome = self.run(run)
        assert outcome.codes == [0] * self.ranks, outcome.stderr
        expected = self.uninterrupted
        assert [*map(without_timing, run.metrics())] == [*map(without_timing, expected.metrics())]
        assert without_timing(run.result()) == without_timing(expected.result())
        assert names(run.checkpoints_dir) == {f"step_{step:06d}" for step in (*STEPS, *extra_steps)}
        assert names(run.path) == names(expected.path)
        for step in STEPS:
            weights, expected_weights = (
                load_file(each.checkpoint(step) / "model" / "model.safetensors") for each in (run, expected)
            )
            assert weights.keys() == expected_weights.keys()
            assert all(torch.equal(weights[name], expected_weights[name]) for name in weights), step
        return outcome


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def without_timing(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in TIMING}


ScenarioMaker = Callable[..., Scenario]


@pytest.fixture(scope="module")
def scenario(
    forks: Forks, small_arguments: list[str], tmp_path_factory: pytest.TempPathFactory
) -> ScenarioMaker:
    """A function that creates a scenario, or returns the one that an earlier test created."""
    scenarios: dict[tuple[str, ...], Scenario] = {}
    # The corpus is prepared first, so that no scenario's running time includes it.
    folder, episodes = tmp_path_factory.mktemp("corpus-only"), "objective=maml_paper"
    forks.run([*small_arguments, episodes, f"run_dir={folder}"], faults=[Fault("engine", "KILL")])

    def make(
        ds: str = "zero2", ranks: int = 1, objective: str = "maml_paper", precision: str = "fp32"
    ) -> Scenario:
        key = (ds, str(ranks), objective, precision)
        if key not in scenarios:
            arguments = [f"ds={ds}", f"objective={objective}", f"train.precision={precision}"]
            if ds == "zero3" and objective == "maml_paper":
                arguments.append("meta.scope=full")  # which adapts shards in place
            if objective == "both":
                arguments += WORD_TERMS
            scenarios[key] = Scenario(
                forks, [*small_arguments, *arguments], ranks, tmp_path_factory.mktemp("-".join(key))
            )
        return scenarios[key]

    return make


# SIGKILL


def sample_kill(generator: random.Random, scenario: Scenario) -> tuple[str, dict[str, Any]]:
    """A kill at a random fault point or after a random time: its name, and arguments of Scenario.run."""
    grace = generator.choice([0.0, 0.0, 0.3])  # so that the other rank may notice
    if generator.random() < 0.4:
        ranks = generator.choice([[], *([rank] for rank in range(scenario.ranks))])
        seconds = generator.uniform(0, scenario.outcome.seconds)
        return "random time", {"seconds": seconds, "signal_ranks": ranks, "grace": grace}
    point = generator.choice(ALL_RANKS + RANK_0 + (["inner loss"] if scenario.has_episodes else []))
    rank = 0 if point in RANK_0 else generator.randrange(scenario.ranks)
    call = generator.randint(1, 10 if point in FREQUENT else 2)
    fault = Fault(point, "KILL", call, after=generator.random() < 0.5, rank=rank)
    return point, {"faults": [fault], "grace": grace}


def kill_repeatedly(scenario: Scenario, kills: int, seed: int) -> Counter[str]:
    """Kill runs of a scenario `kills` times, finish all, and compare. Returns the number of kills by point."""
    generator = random.Random(seed)
    runs: list[Run] = []
    points: Counter[str] = Counter()
    while points.total() < kills:
        if not runs or runs[-1].is_done:
            runs.append(Run(scenario.folder / f"killed{seed}-{len(runs)}"))
        point, fields = sample_kill(generator, scenario)
        arguments = [*scenario.arguments, f"run_dir={runs[-1].path}"]
        outcome = scenario.forks.run(arguments, ranks=scenario.ranks, **fields)
        assert not outcome.hung, (point, fields, outcome.stderr)
        assert outcome.killed or not any(outcome.codes), (point, fields, outcome.stderr)
        points[point] += outcome.killed
    for run in runs:
        scenario.finish(run)
    return points


@pytest.mark.parametrize(
    ("ds", "ranks", "precision", "seed"),
    [("zero0", 1, "bf16", 1), ("zero2", 2, "fp32", 2), ("zero3", 2, "fp32", 3)],
)
def test_killed_and_resumed_equals_uninterrupted(
    scenario: ScenarioMaker, ds: str, ranks: int, precision: str, seed: int
):
    kill_repeatedly(scenario(ds, ranks, precision=precision), 5, seed)


def test_leftovers_of_a_kill_are_removed(scenario: ScenarioMaker):
    case = scenario()
    run = case.copy_unfinished("leftovers")
    run.checkpoint(9).rename(run.checkpoints_dir / "step_000009.tmp")
    shutil.copytree(run.checkpoint(6), run.checkpoints_dir / "step_000002.deleted")
    (run.path / f".{run.metrics_file.name}.1.tmp").write_text("{")
    text = run.metrics_file.read_text()
    run.metrics_file.write_text(text[: text.rindex("{") + 20])
    assert [step for step, _ in run.checkpoints()] == [0, 3, 6]
    case.finish(run)


@pytest.mark.nightly
@pytest.mark.parametrize("objective", ["vanilla", "maml_paper", "both"])
@pytest.mark.parametrize(("ds", "ranks"), list(product(STAGES, (1, 2))))
def test_killed_thirty_times(scenario: ScenarioMaker, ds: str, ranks: int, objective: str):
    points = kill_repeatedly(scenario(ds, ranks, objective), 30, seed=100)
    assert len(points) >= 10, points


# Signals


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("point", "call"),
    [
        ("loss", 1),  # in the evaluation before the first update
        ("inner loss", 4),  # in the probe episode before the first update
        ("inner loss", 18),  # in a training episode
        ("backward", 8),  # between the units of an update
    ],
)
def test_a_signal_stops_the_run_at_the_next_safe_point(
    scenario: ScenarioMaker, tmp_path: Path, ranks: int, point: str, call: int
):
    """Only the last rank receives the signal, during a unit of work; the first is killed if it begins another unit."""
    run, case = Run(tmp_path / "run"), scenario("zero2", ranks)
    faults = [Fault(point, "USR2", call, rank=ranks - 1), Fault(point, "KILL", call + 1)]
    stopped = case.run(run, *faults)
    assert stopped.codes == [EXIT_INTERRUPTED] * ranks, stopped.stderr
    assert "SIGUSR2" in stopped.stderr[ranks - 1]
    assert not any("Traceback" in text for text in stopped.stderr)
    done = [line["step"] for line in run.metrics() if line["kind"] not in ("eval", "dynamics")]
    assert run.checkpoints()[-1][0] == len(done)  # none within an update
    assert atomic_folders.problem(run.checkpoints()[-1][1]) is None
    assert (len(done) == 0) == ((point, call) in (("loss", 1), ("inner loss", 4)))
    case.finish(run, extra_steps=[len(done)])


@pytest.mark.parametrize("after", [False, True])
def test_an_evaluation_is_logged_once(scenario: ScenarioMaker, tmp_path: Path, after: bool):
    """A signal before or after the evaluation at step 4, which has no checkpoint otherwise."""
    run, case = Run(tmp_path / "run"), scenario()
    stopped = case.run(run, Fault("evaluation", "USR1", 2, after=after))
    assert stopped.codes == [EXIT_INTERRUPTED]
    assert [step for step, _ in run.checkpoints()] == [0, 3, 4]
    assert [line["step"] for line in run.metrics() if line["kind"] == "eval"] == ([0, 4] if after else [0])
    case.finish(run, extra_steps=[4])


def test_further_signals_are_ignored(scenario: ScenarioMaker, tmp_path: Path):
    run, case = Run(tmp_path / "run"), scenario()
    faults = [Fault("step", "USR1", 2), Fault("staging", "TERM", 2), Fault("commit", "USR2", 2, after=True)]
    stopped = case.run(run, *faults)
    assert (stopped.codes, "SIGUSR1 after update 2" in stopped.stderr[0]) == ([EXIT_INTERRUPTED], True)
    assert atomic_folders.problem(run.checkpoint(2)) is None


def test_ctrl_c_saves_and_a_second_one_stops_at_once(scenario: ScenarioMaker, tmp_path: Path):
    run, case = Run(tmp_path / "run"), scenario()
    saved = case.run(run, Fault("step", "INT", 2))
    assert (saved.codes, run.checkpoints()[-1][0]) == ([EXIT_INTERRUPTED], 2)
    assert "press Ctrl-C again" in saved.stderr[0]
    stopped = case.run(run, Fault("step", "INT"), Fault("step", "INT", after=True))
    assert (stopped.codes, "Traceback" in stopped.stderr[0]) == ([EXIT_CTRL_C], False)
    case.finish(run, extra_steps=[2])


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_before_the_first_update(scenario: ScenarioMaker, tmp_path: Path, ranks: int):
    """One rank receives a signal while the corpus is prepared or while DeepSpeed starts; all ranks end."""
    run, case = Run(tmp_path / "run"), scenario("zero2", ranks)
    early = case.run(run, Fault("corpus", "TERM", rank=ranks - 1), Fault("engine", "KILL"))
    assert early.codes == [EXIT_INTERRUPTED] * ranks, early.stderr
    assert not run.checkpoints()
    late = case.run(run, Fault("engine", "TERM", rank=ranks - 1), Fault("loss", "KILL"))
    assert late.codes == [EXIT_INTERRUPTED] * ranks, late.stderr
    assert [step for step, _ in run.checkpoints()] == [0]
    assert not list(run.metrics())
    case.finish(run)


# Damaged checkpoints


def largest_file(run: Run, pattern: str) -> Path:
    return max(run.checkpoint(9).glob(pattern), key=lambda file: file.stat().st_size)


def truncate(run: Run) -> None:
    file = largest_file(run, "engine/*.safetensors")
    os.truncate(file, file.stat().st_size // 2)


def empty(run: Run) -> None:
    os.truncate(largest_file(run, "model/*.safetensors"), 0)


def flip_bit(run: Run) -> None:
    file = largest_file(run, "engine/*.safetensors")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def delete_manifest(run: Run) -> None:
    (run.checkpoint(9) / atomic_folders.MANIFEST).unlink()


def damage_all(run: Run) -> None:
    for _, folder in run.checkpoints():
        os.truncate(folder / "state.json", 1)


@pytest.mark.parametrize("damage", [truncate, empty, flip_bit, delete_manifest, damage_all])
def test_a_damaged_checkpoint_is_skipped(scenario: ScenarioMaker, damage: Callable[[Run], None]):
    case = scenario()
    run = case.copy_unfinished(damage.__name__)
    damage(run)
    outcome = case.finish(run)
    assert re.search(r"checkpoint of step 9 is damaged \(.+\) and is skipped", outcome.stderr[0])
    assert ("checkpoint of step 0 is damaged" in outcome.stderr[0]) == (damage is damage_all)


def test_any_flipped_bit_is_detected(scenario: ScenarioMaker):
    run = scenario().copy_unfinished("bits")
    folder, generator = run.checkpoint(9), random.Random(0)
    for file in [folder / atomic_folders.MANIFEST] * 100 + sorted(folder.rglob("*.*")) * 2:
        content = file.read_bytes()
        if content:
            changed = bytearray(content)
            changed[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
            file.write_bytes(changed)
            assert atomic_folders.problem(folder), file
            file.write_bytes(content)
    assert atomic_folders.problem(folder) is None


# Full disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A function that mounts a disk of the given size in bytes, or resizes it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(size: int) -> Path:
        options = f"{'remount,' if os.path.ismount(folder) else ''}size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a tmpfs needs root")
        return folder

    yield resize
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk_leaves_the_run_resumable(
    scenario: ScenarioMaker, disk: Callable[[int], Path], ranks: int
):
    case = scenario("zero2", ranks)
    size = sum(file.stat().st_size for file in case.uninterrupted.checkpoint(3).rglob("*"))
    run = Run(disk(size * 5 // 2) / "run")
    full = case.run(run)
    assert full.codes == [EXIT_FAILED] * ranks, full.stderr
    assert [step for step, _ in run.checkpoints()] == [0, 3]
    assert all(atomic_folders.problem(folder) is None for _, folder in run.checkpoints())
    assert "the previous one is intact" in full.stderr[0]
    assert not any("Traceback" in text for text in full.stderr)
    assert not list(run.checkpoints_dir.glob("*.tmp"))
    disk(size * 10)
    case.finish(run)


@pytest.mark.parametrize(
    ("point", "call", "ranks", "rank"),
    [
        ("engine file", 3, 2, 1),
        ("engine file", 3, 2, 0),
        ("export", 2, 2, 0),
        ("sync", 40, 1, 0),
        ("commit", 2, 1, 0),
        ("metrics", 5, 1, 0),
    ],
)
def test_failed_writes_leave_the_run_resumable(
    scenario: ScenarioMaker, tmp_path: Path, point: str, call: int, ranks: int, rank: int
):
    """No rank waits for the one that failed, and no partial checkpoint remains."""
    run, case = Run(tmp_path / "run"), scenario("zero2", ranks)
    failed = case.run(run, Fault(point, "ENOSPC", call, rank=rank))
    assert failed.codes == [EXIT_FAILED] * ranks, failed.stderr
    assert "No space left on device" in failed.stderr[rank]
    assert not any("Traceback" in text for text in failed.stderr)
    assert not list(run.checkpoints_dir.glob("*.*"))
    case.finish(run)
