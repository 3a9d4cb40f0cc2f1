"""Fine-tuning on one and two ranks survives kills, signals and a full disk with unchanged results."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import Fault, Forks, Outcome
from ner_world import write_checkpoint, write_collection
from safetensors.torch import load_file

from metapt import atomic_folders
from metapt.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USER
from metapt.runs import Run

pytestmark = pytest.mark.commands

ANY_RANK_PLACES = [
    "tuning",
    "tuning save",
    "tuning restore",
    "tagger",
    "test set",
    "dev score",
    "word features",
]
MAIN_RANK_PLACES = [
    "metrics",
    "trimming",
    "staging",
    "atomic write",
    "sync",
    "commit",
    "rename",
    "removal",
    "finish",
]
MAIN_RANK_PLACES += ["optimizer file"]
FREQUENT_PLACES = ("tuning", "metrics", "atomic write", "sync", "rename")
EXACT = ("ner.dropout=0", "data.max_train_sentences=25")  # the last batch of an epoch has one sentence


class Scene:
    """A configuration, its uninterrupted run, and further runs that must end with the same results."""

    def __init__(self, forks: Forks, words: Sequence[str], ranks: int, folder: Path):
        self.forks, self.words, self.ranks, self.folder = forks, words, ranks, folder
        self.whole = Run(folder / "whole")
        self.outcome = self.run(self.whole)
        assert self.outcome.codes == [0] * ranks, self.outcome.stderr

    def run(self, run: Run, *faults: Fault, ranks: int = 0, **more: Any) -> Outcome:
        """Run the command once; it must not hang."""
        words = [*self.words, f"run_dir={run.path}"]
        outcome = self.forks.run(words, program="finetune", ranks=ranks or self.ranks, faults=faults, **more)
        assert not outcome.hung, outcome.stderr
        return outcome

    def finish(self, run: Run) -> None:
        """Run the command again to the end, and compare all files with the uninterrupted run."""
        outcome = self.run(run)
        assert outcome.codes == [0] * self.ranks, outcome.stderr
        assert lines(run) == lines(self.whole)
        assert without_timing(run.result()) == without_timing(self.whole.result())
        assert names(run.path) == names(self.whole.path)
        assert not names(run.checkpoints_dir)
        resumed, uninterrupted = weights(run), weights(self.whole)
        assert resumed.keys() == uninterrupted.keys()
        assert all(torch.equal(resumed[name], uninterrupted[name]) for name in resumed)
        for file in self.whole.predictions_dir.iterdir():
            assert (run.predictions_dir / file.name).read_bytes() == file.read_bytes()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def without_timing(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name != "seconds_total"}


def lines(run: Run) -> list[dict[str, Any]]:
    return [without_timing(line) for line in run.metrics()]


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {
        name: value
        for file in run.tagger_dir.glob("*.safetensors")
        for name, value in load_file(file).items()
    }


SceneMaker = Callable[..., Scene]


@pytest.fixture(scope="module")
def scene(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> SceneMaker:
    """Create a scene, or return the one that an earlier test created with the same arguments."""
    scenes: dict[tuple[Any, ...], Scene] = {}
    world = tmp_path_factory.mktemp("world")
    write_checkpoint(world / "model")
    write_collection(world / "uner")

    def make(tuning: str = "full", ranks: int = 1, more: Sequence[str] = ()) -> Scene:
        key = (tuning, ranks, *more)
        if key not in scenes:
            folder = tmp_path_factory.mktemp(f"{tuning}-{ranks}")
            rate = "0.005" if tuning == "full" else "0.02"
            words = [f"checkpoint={world / 'model'}", f"data.uner_dir={world / 'uner'}", "source=aa_one"]
            words += [f"tuning={tuning}", f"ner.lr={rate}", "ner.batch_size=8", "ner.max_epochs=4", *more]
            if tuning == "head_only":
                words.append(f"ner.cache_dir={folder / 'cache'}")
            scenes[key] = Scene(forks, words, ranks, folder)
        return scenes[key]

    return make


# ---- several ranks


@pytest.mark.parametrize(
    "more", [EXACT, pytest.param((*EXACT, "ner.precision=bf16"), marks=pytest.mark.nightly)]
)
def test_two_ranks_equal_one_rank(scene: SceneMaker, more: tuple[str, ...]) -> None:
    """Every update uses the same sentences, even if a rank has none; losses and scores agree up to rounding."""
    low = "ner.precision=bf16" in more
    one, two = (lines(scene("full", ranks, more).whole) for ranks in (1, 2))
    assert [(line["step"], line["kind"]) for line in one] == [(line["step"], line["kind"]) for line in two]
    for left, right in zip(one, two, strict=True):
        assert left["loss_nats"] == pytest.approx(right["loss_nats"], rel=0.1 if low else 1e-3)
    if not low:
        one_rank, two_ranks = (weights(scene("full", ranks, more).whole) for ranks in (1, 2))
        for name, value in one_rank.items():
            torch.testing.assert_close(value, two_ranks[name], rtol=1e-2, atol=1e-3)


def test_resuming_with_another_number_of_ranks(scene: SceneMaker, tmp_path: Path) -> None:
    alone, run = scene("full", 1, EXACT), Run(tmp_path / "run")
    for ranks, steps in ((2, 5), (1, 6), (2, 6)):
        killed = alone.run(run, Fault("tuning", "KILL", call=steps), ranks=ranks)
        assert killed.killed
    assert alone.run(run, ranks=2).codes == [0, 0]
    for left, right in zip(lines(run), lines(alone.whole), strict=True):
        assert left["loss_nats"] == pytest.approx(right["loss_nats"], rel=1e-3)


def test_early_stopping_follows_the_main_process(scene: SceneMaker, tmp_path: Path) -> None:
    """With its own scores, the second rank would choose another best epoch and stop while the first continues."""
    here, run = scene("full", 2, (*EXACT, "ner.patience=1")), Run(tmp_path / "run")
    assert here.whole.result()["epochs"] > 2
    assert here.run(run, Fault("dev score", "WORSE", call=2, rank=1)).codes == [0, 0]
    here.finish(run)


def test_head_only_requires_a_single_process(scene: SceneMaker, tmp_path: Path) -> None:
    refused = scene("head_only").run(Run(tmp_path / "run"), ranks=2)
    assert refused.codes == [EXIT_USER] * 2
    assert "single process" in refused.stderr[0]


# ---- SIGKILL


def random_kill(rng: random.Random, scene: Scene, tuning: str) -> tuple[str, dict[str, Any]]:
    """Choose a kill at a named place or after some time; return its name and the arguments of Scene.run."""
    grace = rng.choice([0.0, 0.3])  # seconds in which the other rank may notice
    if rng.random() < 0.3:
        victims = rng.choice([[], *([rank] for rank in range(scene.ranks))])
        seconds = rng.uniform(0, scene.outcome.seconds)
        return "some time", {"seconds": seconds, "signal_ranks": victims, "grace": grace}
    place = rng.choice(ANY_RANK_PLACES + MAIN_RANK_PLACES + (["cache"] if tuning == "head_only" else []))
    rank = 0 if place in MAIN_RANK_PLACES else rng.randrange(scene.ranks)
    call = rng.randint(1, 12 if place in FREQUENT_PLACES else 2)
    fault = Fault(place, "KILL", call, after=rng.random() < 0.5, rank=rank)
    return place, {"faults": [fault], "grace": grace}


def kill_repeatedly(scene: Scene, tuning: str, kills: int, seed: int) -> Counter[str]:
    """Kill runs of a scene `kills` times, finish and compare all of them, and count the places of the kills."""
    rng = random.Random(seed)
    runs: list[Run] = []
    places: Counter[str] = Counter()
    while places.total() < kills:
        if not runs or runs[-1].is_done:
            runs.append(Run(scene.folder / f"killed{seed}-{len(runs)}"))
        place, how = random_kill(rng, scene, tuning)
        faults = how.pop("faults", [])
        outcome = scene.run(runs[-1], *faults, **how)
        assert outcome.killed or not any(outcome.codes), (place, how, outcome.stderr)
        places[place] += outcome.killed
    for run in runs:
        scene.finish(run)
    return places


@pytest.mark.parametrize(("tuning", "ranks", "seed"), [("head_only", 1, 1), ("full", 2, 2)])
def test_killed_runs_resume_to_the_same_results(
    scene: SceneMaker, tuning: str, ranks: int, seed: int
) -> None:
    kill_repeatedly(scene(tuning, ranks), tuning, 3, seed)


@pytest.mark.nightly
@pytest.mark.parametrize(("tuning", "ranks"), [("head_only", 1), ("full", 1), ("full", 2), ("lora", 2)])
def test_killed_runs_resume_to_the_same_results_thirty_kills(
    scene: SceneMaker, tuning: str, ranks: int
) -> None:
    places = kill_repeatedly(scene(tuning, ranks), tuning, 30, seed=100)
    assert len(places) >= 10, places


# ---- signals and full disk


@pytest.mark.parametrize(
    ("place", "call", "step"),
    [
        pytest.param("tuning", 3, 3, marks=pytest.mark.nightly),
        pytest.param("tuning", 6, 6, marks=pytest.mark.nightly),
        ("dev score", 2, 12),
        ("test set", 1, 24),
    ],
)
def test_signal_to_one_rank_stops_all_ranks(
    scene: SceneMaker, tmp_path: Path, place: str, call: int, step: int
) -> None:
    """The signal arrives within an epoch, in its last step, in the dev scores, or while a test set is tagged."""
    here, run = scene("full", 2), Run(tmp_path / "run")
    stopped = here.run(run, Fault(place, "USR1", call, rank=1))
    assert stopped.codes == [EXIT_INTERRUPTED] * 2, stopped.stderr
    assert "SIGUSR1" in stopped.stderr[1]
    assert not any("Traceback" in text for text in stopped.stderr)
    assert [done for done, _ in run.checkpoints()] == [step]
    assert atomic_folders.problem(run.checkpoint(step)) is None
    if step == 12:  # the score is logged, but the process dies before the checkpoint
        assert here.run(run, Fault("tuning save", "KILL")).killed
    here.finish(run)


@pytest.mark.parametrize(
    ("place", "call"),
    [
        ("optimizer file", 2),
        *(pytest.param(*each, marks=pytest.mark.nightly) for each in (("commit", 2), ("sync", 12))),
    ],
)
def test_full_disk_stops_all_ranks_and_keeps_the_previous_checkpoint(
    scene: SceneMaker, tmp_path: Path, place: str, call: int
) -> None:
    here, run = scene("full", 2), Run(tmp_path / "run")
    failed = here.run(run, Fault(place, "ENOSPC", call))
    assert failed.codes == [EXIT_FAILED] * 2, failed.stderr
    assert all("No space left on device" in text for text in failed.stderr)
    assert not any("Traceback" in text for text in failed.stderr)
    assert not list(run.checkpoints_dir.glob("*.*"))
    here.finish(run)
