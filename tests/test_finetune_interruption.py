"""Fine-tuning on one and two ranks, killed, told to stop, or out of disk: it ends as if nothing had happened."""

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

ON_ANY_RANK = ["tuning", "tuning save", "tuning restore", "tagger", "test set", "dev score", "word features"]
ON_THE_FIRST = [
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
ON_THE_FIRST += ["optimizer file"]
OFTEN = ("tuning", "metrics", "atomic write", "sync", "rename")
EXACT = ("ner.dropout=0", "data.max_train_sentences=25")  # the last batch of an epoch is one sentence


class Scene:
    """One configuration, its uninterrupted run, and runs that are to end as that one did."""

    def __init__(self, forks: Forks, words: Sequence[str], ranks: int, folder: Path):
        self.forks, self.words, self.ranks, self.folder = forks, words, ranks, folder
        self.whole = Run(folder / "whole")
        self.outcome = self.run(self.whole)
        assert self.outcome.codes == [0] * ranks, self.outcome.stderr

    def run(self, run: Run, *faults: Fault, ranks: int = 0, **more: Any) -> Outcome:
        """An attempt that must not hang."""
        words = [*self.words, f"run_dir={run.path}"]
        outcome = self.forks.run(words, program="finetune", ranks=ranks or self.ranks, faults=faults, **more)
        assert not outcome.hung, outcome.stderr
        return outcome

    def finish(self, run: Run) -> None:
        """Gives the command again, and compares all that is left with the uninterrupted run."""
        outcome = self.run(run)
        assert outcome.codes == [0] * self.ranks, outcome.stderr
        assert lines(run) == lines(self.whole)
        assert without_timing(run.result()) == without_timing(self.whole.result())
        assert names(run.path) == names(self.whole.path)
        assert not names(run.checkpoints_dir)
        mine, theirs = weights(run), weights(self.whole)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
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
    """Makes a scene, or gives one that an earlier test has made."""
    made: dict[tuple[Any, ...], Scene] = {}
    world = tmp_path_factory.mktemp("world")
    write_checkpoint(world / "model")
    write_collection(world / "uner")

    def make(tuning: str = "full", ranks: int = 1, more: Sequence[str] = ()) -> Scene:
        key = (tuning, ranks, *more)
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{tuning}-{ranks}")
            rate = "0.005" if tuning == "full" else "0.02"
            words = [f"checkpoint={world / 'model'}", f"data.uner_dir={world / 'uner'}", "source=aa_one"]
            words += [f"tuning={tuning}", f"ner.lr={rate}", "ner.batch_size=8", "ner.max_epochs=4", *more]
            if tuning == "head_only":
                words.append(f"ner.cache_dir={folder / 'cache'}")
            made[key] = Scene(forks, words, ranks, folder)
        return made[key]

    return make


# ---- several ranks


@pytest.mark.parametrize(
    "more", [EXACT, pytest.param((*EXACT, "ner.precision=bf16"), marks=pytest.mark.nightly)]
)
def test_two_ranks_learn_what_one_does(scene: SceneMaker, more: tuple[str, ...]) -> None:
    """The same sentences in every update, also where a rank has none; losses and scores agree to rounding."""
    low = "ner.precision=bf16" in more
    one, two = (lines(scene("full", ranks, more).whole) for ranks in (1, 2))
    assert [(line["step"], line["kind"]) for line in one] == [(line["step"], line["kind"]) for line in two]
    for left, right in zip(one, two, strict=True):
        assert left["loss_nats"] == pytest.approx(right["loss_nats"], rel=0.1 if low else 1e-3)
    if not low:
        mine, theirs = (weights(scene("full", ranks, more).whole) for ranks in (1, 2))
        for name, value in mine.items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-2, atol=1e-3)


def test_a_run_goes_on_with_other_ranks(scene: SceneMaker, tmp_path: Path) -> None:
    alone, run = scene("full", 1, EXACT), Run(tmp_path / "run")
    for ranks, steps in ((2, 5), (1, 6), (2, 6)):
        killed = alone.run(run, Fault("tuning", "KILL", call=steps), ranks=ranks)
        assert killed.killed
    assert alone.run(run, ranks=2).codes == [0, 0]
    for left, right in zip(lines(run), lines(alone.whole), strict=True):
        assert left["loss_nats"] == pytest.approx(right["loss_nats"], rel=1e-3)


def test_all_ranks_stop_at_the_epoch_of_the_first(scene: SceneMaker, tmp_path: Path) -> None:
    """Were it for the second rank alone, it would keep another epoch, and stop where the first goes on."""
    here, run = scene("full", 2, (*EXACT, "ner.patience=1")), Run(tmp_path / "run")
    assert here.whole.result()["epochs"] > 2
    assert here.run(run, Fault("dev score", "WORSE", call=2, rank=1)).codes == [0, 0]
    here.finish(run)


def test_head_only_takes_one_rank(scene: SceneMaker, tmp_path: Path) -> None:
    refused = scene("head_only").run(Run(tmp_path / "run"), ranks=2)
    assert refused.codes == [EXIT_USER] * 2
    assert "one process" in refused.stderr[0]


# ---- SIGKILL


def draw_kill(draw: random.Random, scene: Scene, tuning: str) -> tuple[str, dict[str, Any]]:
    """What is to happen, by name, and as arguments of Scene.run: a kill at a named place or after some time."""
    grace = draw.choice([0.0, 0.3])  # for the other rank, which may notice
    if draw.random() < 0.3:
        victims = draw.choice([[], *([rank] for rank in range(scene.ranks))])
        seconds = draw.uniform(0, scene.outcome.seconds)
        return "some time", {"seconds": seconds, "signal_ranks": victims, "grace": grace}
    place = draw.choice(ON_ANY_RANK + ON_THE_FIRST + (["cache"] if tuning == "head_only" else []))
    rank = 0 if place in ON_THE_FIRST else draw.randrange(scene.ranks)
    call = draw.randint(1, 12 if place in OFTEN else 2)
    fault = Fault(place, "KILL", call, after=draw.random() < 0.5, rank=rank)
    return place, {"faults": [fault], "grace": grace}


def kill_often(scene: Scene, tuning: str, kills: int, seed: int) -> Counter[str]:
    """Kills runs of a scene so often, brings all to their end, and compares. Returns where they were killed."""
    draw = random.Random(seed)
    runs: list[Run] = []
    places: Counter[str] = Counter()
    while places.total() < kills:
        if not runs or runs[-1].is_done:
            runs.append(Run(scene.folder / f"killed{seed}-{len(runs)}"))
        place, how = draw_kill(draw, scene, tuning)
        faults = how.pop("faults", [])
        outcome = scene.run(runs[-1], *faults, **how)
        assert outcome.killed or not any(outcome.codes), (place, how, outcome.stderr)
        places[place] += outcome.killed
    for run in runs:
        scene.finish(run)
    return places


@pytest.mark.parametrize(("tuning", "ranks", "seed"), [("head_only", 1, 1), ("full", 2, 2)])
def test_killed_and_resumed_equals_uninterrupted(
    scene: SceneMaker, tuning: str, ranks: int, seed: int
) -> None:
    kill_often(scene(tuning, ranks), tuning, 3, seed)


@pytest.mark.nightly
@pytest.mark.parametrize(("tuning", "ranks"), [("head_only", 1), ("full", 1), ("full", 2), ("lora", 2)])
def test_killed_at_thirty_moments(scene: SceneMaker, tuning: str, ranks: int) -> None:
    places = kill_often(scene(tuning, ranks), tuning, 30, seed=100)
    assert len(places) >= 10, places


# ---- signals and a full disk


@pytest.mark.parametrize(
    ("place", "call", "step"),
    [
        pytest.param("tuning", 3, 3, marks=pytest.mark.nightly),
        pytest.param("tuning", 6, 6, marks=pytest.mark.nightly),
        ("dev score", 2, 12),
        ("test set", 1, 24),
    ],
)
def test_a_signal_to_one_rank_ends_all(
    scene: SceneMaker, tmp_path: Path, place: str, call: int, step: int
) -> None:
    """In the middle of an epoch, in its last step, in its score, and while a test set is tagged."""
    here, run = scene("full", 2), Run(tmp_path / "run")
    stopped = here.run(run, Fault(place, "USR1", call, rank=1))
    assert stopped.codes == [EXIT_INTERRUPTED] * 2, stopped.stderr
    assert "SIGUSR1" in stopped.stderr[1]
    assert not any("Traceback" in text for text in stopped.stderr)
    assert [done for done, _ in run.checkpoints()] == [step]
    assert atomic_folders.problem(run.checkpoint(step)) is None
    if step == 12:  # the score is told, and the process dies before it is part of a checkpoint
        assert here.run(run, Fault("tuning save", "KILL")).killed
    here.finish(run)


@pytest.mark.parametrize(
    ("place", "call"),
    [
        ("optimizer file", 2),
        *(pytest.param(*each, marks=pytest.mark.nightly) for each in (("commit", 2), ("sync", 12))),
    ],
)
def test_a_full_disk_ends_all_ranks_and_the_checkpoint_before_stands(
    scene: SceneMaker, tmp_path: Path, place: str, call: int
) -> None:
    here, run = scene("full", 2), Run(tmp_path / "run")
    failed = here.run(run, Fault(place, "ENOSPC", call))
    assert failed.codes == [EXIT_FAILED] * 2, failed.stderr
    assert all("No space left on device" in text for text in failed.stderr)
    assert not any("Traceback" in text for text in failed.stderr)
    assert not list(run.checkpoints_dir.glob("*.*"))
    here.finish(run)
