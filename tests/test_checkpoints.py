"""Which checkpoints keep the optimizer state, and from which one all ranks resume. All runs are forks (forks.py)."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forks import Fault, Forks
from safetensors.torch import load_file

from metapt import atomic_folders
from metapt.runs import ENGINE_DIR, Run
from metapt.training.checkpoints import Checkpoints
from metapt.training.sharded_state import save_file

pytestmark = pytest.mark.commands


@pytest.fixture(scope="module")
def words(small_arguments: list[str]) -> list[str]:
    return [*small_arguments, "objective=vanilla", "ds=zero2", "train.keep_optimizer_states=2"]


@pytest.fixture(scope="module")
def finished(forks: Forks, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run on two ranks, with checkpoints of steps 0, 3, 6 and 9."""
    run = Run(tmp_path_factory.mktemp("runs") / "finished")
    ended = forks.run([*words, f"run_dir={run.path}"], ranks=2)
    assert ended.codes == [0, 0], ended.stderr
    return run


@pytest.fixture
def unfinished(finished: Run, tmp_path: Path) -> Run:
    run = Run(tmp_path / "unfinished")
    shutil.copytree(finished.path, run.path)
    run.result_file.unlink()
    return run


def with_state(run: Run) -> list[int]:
    """Steps of the checkpoints with an optimizer state, by their manifests, which must agree with the files."""
    listed = [step for step, folder in run.checkpoints() if atomic_folders.lists(folder, ENGINE_DIR)]
    assert listed == [step for step, folder in run.checkpoints() if (folder / ENGINE_DIR).exists()]
    return listed


def damage(run: Run, step: int) -> None:
    file = next((run.checkpoint(step) / ENGINE_DIR).iterdir())
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def assert_same_weights(run: Run, expected: Run) -> None:
    for step in (3, 6, 9):
        ours, theirs = (
            load_file(each.checkpoint(step) / "model" / "model.safetensors") for each in (run, expected)
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), step


def test_checksum_of_an_optimizer_state_is_computed_without_reading_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(1)}
    with monkeypatch.context() as patch:
        patch.setattr("metapt.files.file_sha256", lambda path: pytest.fail("read back"))
        entry = save_file(tensors, tmp_path / "state.safetensors", {"updates": "3"})
    assert entry == atomic_folders.entry(tmp_path / "state.safetensors")
    torch.testing.assert_close(load_file(tmp_path / "state.safetensors"), tensors)


def test_only_the_newest_checkpoints_keep_the_optimizer_state(finished: Run) -> None:
    """All of them stay complete, and their models usable."""
    assert [step for step, _ in finished.checkpoints()] == [0, 3, 6, 9]
    assert with_state(finished) == [6, 9]
    assert [atomic_folders.problem(folder) for _, folder in finished.checkpoints()] == [None] * 4


@pytest.mark.parametrize(("damaged", "restart"), [([9], 6), ([9, 6], 0)])
def test_a_checkpoint_without_optimizer_state_is_never_resumed_from(
    forks: Forks, words: list[str], finished: Run, unfinished: Run, damaged: list[int], restart: int
) -> None:
    for step in damaged:
        damage(unfinished, step)
    resumed = forks.run([*words, f"run_dir={unfinished.path}"], ranks=2)
    assert resumed.codes == [0, 0], resumed.stderr
    assert f"restarts from step {restart}" in resumed.stderr[0]
    assert ("checkpoint of step 3 has no optimizer state" in resumed.stderr[0]) == (restart == 0)
    assert with_state(unfinished) == [6, 9]
    assert_same_weights(unfinished, finished)


def test_damaged_checkpoints_do_not_count_as_kept(tmp_path: Path) -> None:
    """The state before a damaged one stays until enough intact ones follow; what a kill left of a deletion is removed."""
    run = Run(tmp_path)
    checkpoints = Checkpoints(run, SimpleNamespace(rank=0), {}, tmp_path, keep=(0, 2))
    for step in range(5):
        folder = atomic_folders.staging(run.checkpoint(step))
        (folder / ENGINE_DIR).mkdir()
        (folder / ENGINE_DIR / "state_000.safetensors").write_text(f"state of step {step}")
        atomic_folders.commit(folder, run.checkpoint(step))
        if step == 2:
            damage(run, 2)
            checkpoints._prune(newest=2)
        elif step == 3:
            checkpoints._prune(newest=3)
            assert with_state(run) == [1, 2, 3]
            (run.checkpoint(0) / ENGINE_DIR).mkdir()
    checkpoints._prune(newest=4)
    assert with_state(run) == [3, 4]


def test_rank_0_decides_from_which_checkpoint_all_resume(
    forks: Forks, words: list[str], finished: Run, unfinished: Run
) -> None:
    """A network file system shows the other rank that of step 0 as the newest, and the chosen one a second later."""
    stale = [Fault("newest checkpoint", "STALE", rank=1), Fault("view", "STALE", rank=1)]
    resumed = forks.run([*words, f"run_dir={unfinished.path}"], ranks=2, faults=stale)
    assert (resumed.codes, resumed.seconds > 1) == ([0, 0], True), resumed.stderr
    assert "restarts" not in resumed.stderr[0]
    assert [line["step"] for line in unfinished.metrics()] == [line["step"] for line in finished.metrics()]
    assert_same_weights(unfinished, finished)


def test_a_failing_all_reduce_ends_all_ranks_at_the_start(
    forks: Forks, words: list[str], tmp_path: Path
) -> None:
    """The rank whose all-reduce fails is named, with its node."""
    failing = Fault("all-reduce", "ENOSPC", after=True, rank=1)
    ended = forks.run([*words, f"run_dir={tmp_path / 'run'}"], ranks=2, faults=[failing])
    assert ended.codes == [1, 1], ended.stderr
    for text in ended.stderr:
        assert f"all-reduce fails at the start; rank 1 on {socket.gethostname()}: " in text
    assert not (tmp_path / "run" / "config.yaml").exists()
