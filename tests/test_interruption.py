"""Killed, told to stop, or out of disk: a run goes on as if nothing had happened. All runs are forks (forks.py)."""

from __future__ import annotations

import os
import random
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

from metapt import atomic_folders
from metapt.errors import EXIT_FAILED, EXIT_INTERRUPTED
from metapt.runs import Run

pytestmark = pytest.mark.commands

STAGES = ["zero0", "zero1", "zero2", "zero2_offload", "zero3"]
STEPS = [0, 3, 6, 9]  # with a checkpoint
TIMING = ("seconds", "seconds_total", "tokens_per_second")
ON_ANY_RANK = ["unit", "backward", "step", "mean", "loss", "evaluation", "checkpoint"]
ON_ANY_RANK += ["engine file", "restore", "engine"]
ON_THE_FIRST = ["metrics", "trimming", "staging", "export", "atomic write", "sync", "commit", "rename"]
ON_THE_FIRST += ["removal", "finish"]
OFTEN = (
    "unit",
    "backward",
    "step",
    "mean",
    "loss",
    "inner loss",
    "metrics",
    "atomic write",
    "sync",
    "rename",
)


class Scene:
    """One configuration, its uninterrupted run, and runs that are to end as that one did."""

    def __init__(self, forks: Forks, words: Sequence[str], ranks: int, folder: Path):
        self.forks, self.words, self.ranks, self.folder = forks, words, ranks, folder
        self.has_episodes = "objective=maml" in words
        self.whole = Run(folder / "whole")
        self.outcome = self.run(self.whole)
        assert self.outcome.codes == [0] * ranks, self.outcome.errors

    def run(self, run: Run, *faults: Fault, **more: Any) -> Outcome:
        """An attempt that must not hang."""
        words = [*self.words, f"run_dir={run.path}"]
        outcome = self.forks.run(words, ranks=self.ranks, faults=faults, **more)
        assert not outcome.hung, outcome.errors
        return outcome

    def copy_of_whole(self, name: str) -> Run:
        """The uninterrupted run as it was just before its result was written."""
        run = Run(self.folder / name)
        shutil.copytree(self.whole.path, run.path)
        run.result_file.unlink()
        return run

    def finish(self, run: Run, also: Sequence[int] = ()) -> Outcome:
        """Gives the command again, and compares all that is left with the uninterrupted run.

        Args:
            also: steps of further checkpoints, where the run was told to stop.
        """
        outcome = self.run(run)
        assert outcome.codes == [0] * self.ranks, outcome.errors
        one, other = ([without_timing(line) for line in each.metrics()] for each in (self.whole, run))
        assert one == other
        assert without_timing(self.whole.result()) == without_timing(run.result())
        assert names(run.checkpoints_dir) == {f"step_{step:06d}" for step in (*STEPS, *also)}
        assert names(run.path) == names(self.whole.path)
        for step in STEPS:
            mine, theirs = (
                load_file(each.checkpoint(step) / "model" / "model.safetensors") for each in (run, self.whole)
            )
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[name], theirs[name]) for name in mine), step
        return outcome


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def without_timing(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in TIMING}


SceneMaker = Callable[..., Scene]


@pytest.fixture(scope="module")
def scene(forks: Forks, small_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> SceneMaker:
    """Makes a scene, or gives one that an earlier test has made."""
    made: dict[tuple[str, ...], Scene] = {}
    folder = tmp_path_factory.mktemp(
        "corpus-only"
    )  # made here, so that no scene has the time for it in its own
    forks.run([*small_arguments, "objective=maml", f"run_dir={folder}"], faults=[Fault("engine", "KILL")])

    def make(ds: str = "zero2", ranks: int = 1, objective: str = "maml", precision: str = "fp32") -> Scene:
        key = (ds, str(ranks), objective, precision)
        if key not in made:
            words = [*small_arguments, f"ds={ds}", f"objective={objective}", f"train.precision={precision}"]
            if ds == "zero3" and objective == "maml":
                words.append("meta.scope=full")  # which adapts the shards in place
            made[key] = Scene(forks, words, ranks, tmp_path_factory.mktemp("-".join(key)))
        return made[key]

    return make


# ---- SIGKILL


def draw_kill(draw: random.Random, scene: Scene) -> tuple[str, dict[str, Any]]:
    """What is to happen, by name, and as arguments of Scene.run: a kill at a named place or after some time."""
    grace = draw.choice([0.0, 0.0, 0.3])  # for the other rank, which may notice
    if draw.random() < 0.4:
        victims = draw.choice([[], *([rank] for rank in range(scene.ranks))])
        seconds = draw.uniform(0, scene.outcome.seconds)
        return "some time", {"seconds": seconds, "signal_ranks": victims, "grace": grace}
    place = draw.choice(ON_ANY_RANK + ON_THE_FIRST + (["inner loss"] if scene.has_episodes else []))
    rank = 0 if place in ON_THE_FIRST else draw.randrange(scene.ranks)
    call = draw.randint(1, 10 if place in OFTEN else 2)
    fault = Fault(place, "KILL", call, after=draw.random() < 0.5, rank=rank)
    return place, {"faults": [fault], "grace": grace}


def kill_often(scene: Scene, kills: int, seed: int) -> Counter[str]:
    """Kills runs of a scene so often, brings all to their end, and compares. Returns where they were killed."""
    draw = random.Random(seed)
    runs: list[Run] = []
    places: Counter[str] = Counter()
    while places.total() < kills:
        if not runs or runs[-1].is_done:
            runs.append(Run(scene.folder / f"killed{seed}-{len(runs)}"))
        place, how = draw_kill(draw, scene)
        outcome = scene.forks.run([*scene.words, f"run_dir={runs[-1].path}"], ranks=scene.ranks, **how)
        assert not outcome.hung, (place, how, outcome.errors)
        assert outcome.killed or not any(outcome.codes), (place, how, outcome.errors)
        places[place] += outcome.killed
    for run in runs:
        scene.finish(run)
    return places


@pytest.mark.parametrize(
    ("ds", "ranks", "precision", "seed"),
    [("zero0", 1, "bf16", 1), ("zero2", 2, "fp32", 2), ("zero3", 2, "fp32", 3)],
)
def test_killed_and_resumed_equals_uninterrupted(
    scene: SceneMaker, ds: str, ranks: int, precision: str, seed: int
):
    kill_often(scene(ds, ranks, precision=precision), 5, seed)


def test_what_a_kill_leaves_is_no_checkpoint_and_is_removed(scene: SceneMaker):
    here = scene()
    run = here.copy_of_whole("leftovers")
    run.checkpoint(9).rename(run.checkpoints_dir / "step_000009.tmp")
    shutil.copytree(run.checkpoint(6), run.checkpoints_dir / "step_000002.deleted")
    (run.path / f".{run.metrics_file.name}.1.tmp").write_text("{")
    text = run.metrics_file.read_text()
    run.metrics_file.write_text(text[: text.rindex("{") + 20])
    assert [step for step, _ in run.checkpoints()] == [0, 3, 6]
    here.finish(run)


@pytest.mark.nightly
@pytest.mark.parametrize(("ds", "ranks", "objective"), list(product(STAGES, (1, 2), ("vanilla", "maml"))))
def test_killed_at_thirty_moments(scene: SceneMaker, ds: str, ranks: int, objective: str):
    places = kill_often(scene(ds, ranks, objective), 30, seed=100)
    assert len(places) >= 10, places


# ---- signals


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("place", "call"),
    [
        ("loss", 1),  # in the evaluation before the first update
        ("inner loss", 4),  # in the probe episode before the first update
        ("inner loss", 18),  # in an episode
        ("backward", 8),  # between the units of an update
    ],
)
def test_a_signal_ends_the_run_before_the_next_piece_of_work(
    scene: SceneMaker, tmp_path: Path, ranks: int, place: str, call: int
):
    """The last rank is told to stop, at work; the first dies if it begins another piece. No other rank was told."""
    run, here = Run(tmp_path / "run"), scene("zero2", ranks)
    faults = [Fault(place, "USR2", call, rank=ranks - 1), Fault(place, "KILL", call + 1)]
    stopped = here.run(run, *faults)
    assert stopped.codes == [EXIT_INTERRUPTED] * ranks, stopped.errors
    assert "SIGUSR2" in stopped.errors[ranks - 1]
    assert not any("Traceback" in text for text in stopped.errors)
    done = [line["step"] for line in run.metrics() if line["kind"] not in ("eval", "dynamics")]
    assert run.checkpoints()[-1][0] == len(done)  # none for half an update
    assert atomic_folders.problem(run.checkpoints()[-1][1]) is None
    assert (len(done) == 0) == ((place, call) in (("loss", 1), ("inner loss", 4)))
    here.finish(run, also=[len(done)])


@pytest.mark.parametrize("after", [False, True])
def test_an_evaluation_is_told_once(scene: SceneMaker, tmp_path: Path, after: bool):
    """A signal at the beginning or after the end of the evaluation of update 4, of which there is no checkpoint else."""
    run, here = Run(tmp_path / "run"), scene()
    stopped = here.run(run, Fault("evaluation", "USR1", 2, after=after))
    assert stopped.codes == [EXIT_INTERRUPTED]
    assert [step for step, _ in run.checkpoints()] == [0, 3, 4]
    assert [line["step"] for line in run.metrics() if line["kind"] == "eval"] == ([0, 4] if after else [0])
    here.finish(run, also=[4])


def test_further_signals_are_ignored(scene: SceneMaker, tmp_path: Path):
    run, here = Run(tmp_path / "run"), scene()
    faults = [Fault("step", "USR1", 2), Fault("staging", "TERM", 2), Fault("commit", "USR2", 2, after=True)]
    stopped = here.run(run, *faults)
    assert stopped.codes == [EXIT_INTERRUPTED]
    assert "SIGUSR1 after update 2" in stopped.errors[0]
    assert atomic_folders.problem(run.checkpoint(2)) is None


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_before_the_first_update(scene: SceneMaker, tmp_path: Path, ranks: int):
    """One rank is told while the corpus is being made, or while DeepSpeed starts; all end."""
    run, here = Run(tmp_path / "run"), scene("zero2", ranks)
    early = here.run(run, Fault("corpus", "TERM", rank=ranks - 1), Fault("engine", "KILL"))
    assert early.codes == [EXIT_INTERRUPTED] * ranks, early.errors
    assert not run.checkpoints()
    late = here.run(run, Fault("engine", "TERM", rank=ranks - 1), Fault("loss", "KILL"))
    assert late.codes == [EXIT_INTERRUPTED] * ranks, late.errors
    assert [step for step, _ in run.checkpoints()] == [0]
    assert not list(run.metrics())
    here.finish(run)


# ---- damage


def newest_file(run: Run, pattern: str) -> Path:
    return max(run.checkpoint(9).glob(pattern), key=lambda file: file.stat().st_size)


def truncate(run: Run) -> None:
    file = newest_file(run, "engine/*.safetensors")
    os.truncate(file, file.stat().st_size // 2)


def empty(run: Run) -> None:
    os.truncate(newest_file(run, "model/*.safetensors"), 0)


def flip(run: Run) -> None:
    file = newest_file(run, "engine/*.safetensors")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def lose_manifest(run: Run) -> None:
    (run.checkpoint(9) / atomic_folders.MANIFEST).unlink()


def damage_all(run: Run) -> None:
    for _, folder in run.checkpoints():
        os.truncate(folder / "state.json", 1)


@pytest.mark.parametrize("damage", [truncate, empty, flip, lose_manifest, damage_all])
def test_a_damaged_checkpoint_is_passed_over(scene: SceneMaker, damage: Callable[[Run], None]):
    here = scene()
    run = here.copy_of_whole(damage.__name__)
    damage(run)
    outcome = here.finish(run)
    assert "checkpoint of step 9 is damaged and is skipped" in outcome.errors[0]
    assert ("checkpoint of step 0 is damaged" in outcome.errors[0]) == (damage is damage_all)


def test_any_flipped_bit_is_noticed(scene: SceneMaker):
    run = scene().copy_of_whole("bits")
    folder, draw = run.checkpoint(9), random.Random(0)
    for file in [folder / atomic_folders.MANIFEST] * 100 + sorted(folder.rglob("*.*")) * 2:
        content = file.read_bytes()
        if content:
            changed = bytearray(content)
            changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            file.write_bytes(changed)
            assert atomic_folders.problem(folder), file
            file.write_bytes(content)
    assert atomic_folders.problem(folder) is None


# ---- full disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of a given size, or makes the one that is mounted larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(size: int) -> Path:
        options = f"{'remount,' if os.path.ismount(folder) else ''}size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small disk needs root")
        return folder

    yield resize
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk_leaves_the_run_resumable(scene: SceneMaker, disk: Callable[[int], Path], ranks: int):
    here = scene("zero2", ranks)
    size = sum(file.stat().st_size for file in here.whole.checkpoint(3).rglob("*"))
    run = Run(disk(size * 5 // 2) / "run")
    full = here.run(run)
    assert full.codes == [EXIT_FAILED] * ranks, full.errors
    assert [step for step, _ in run.checkpoints()] == [0, 3]
    assert all(atomic_folders.problem(folder) is None for _, folder in run.checkpoints())
    assert "the one before stands" in full.errors[0]
    assert not any("Traceback" in text for text in full.errors)
    assert not list(run.checkpoints_dir.glob("*.tmp"))
    disk(size * 10)
    here.finish(run)


@pytest.mark.parametrize(
    ("place", "call", "ranks", "rank"),
    [
        ("engine file", 3, 2, 1),
        ("engine file", 3, 2, 0),
        ("export", 2, 2, 0),
        ("sync", 40, 1, 0),
        ("commit", 2, 1, 0),
        ("metrics", 5, 1, 0),
    ],
)
def test_any_write_may_fail(scene: SceneMaker, tmp_path: Path, place: str, call: int, ranks: int, rank: int):
    """No rank is left waiting for the one that failed, and no half checkpoint remains."""
    run, here = Run(tmp_path / "run"), scene("zero2", ranks)
    failed = here.run(run, Fault(place, "ENOSPC", call, rank=rank))
    assert failed.codes == [EXIT_FAILED] * ranks, failed.errors
    assert "No space left on device" in failed.errors[rank]
    assert not any("Traceback" in text for text in failed.errors)
    assert not list(run.checkpoints_dir.glob("*.*"))
    here.finish(run)
