"""The number of ranks does not change what is learned, nor does changing it on the way."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import pretrain_many
from safetensors.torch import load_file

from metapt.runs import Run

pytestmark = pytest.mark.commands

KINDS = {
    "vanilla-zero2": ["objective=vanilla", "ds=zero2"],
    "maml-zero0": ["objective=maml", "ds=zero0"],
    "maml-zero1": ["objective=maml", "ds=zero1", "meta.scope=last_n"],
    "maml-zero2": ["objective=maml", "ds=zero2"],
    "maml-zero2_offload": ["objective=maml", "ds=zero2_offload"],
    "maml-zero3": ["objective=maml", "ds=zero3"],
    "maml-zero3-full": ["objective=maml", "ds=zero3", "meta.scope=full"],
}
LOGGED = ("lm_loss_nats", "query_loss_nats", "eval_loss_nats", "grad_norm", "mask_position_tokens")


def test_two_ranks_learn_what_one_does(nano_arguments: list[str], tmp_path: Path):
    """Same batches and episodes on any number of ranks, at every stage; weights agree to rounding."""
    fixed = [*nano_arguments, "train.max_steps=3", "train.lr=1e-3", "train.checkpoint_every=3"]
    runs = {ranks: {kind: Run(tmp_path / f"{kind}-{ranks}") for kind in KINDS} for ranks in (1, 2)}
    for ranks, chosen in runs.items():
        done = pretrain_many(
            [[*fixed, *KINDS[kind], f"run_dir={run.path}"] for kind, run in chosen.items()], ranks
        )
        assert done.returncode == 0, done.stderr
    for kind in KINDS:
        compare_runs(runs[1][kind], runs[2][kind])
        compare_weights(runs[1][kind], runs[2][kind], 3)


@pytest.mark.parametrize(
    "ranks",
    [pytest.param((2, 1, 2), id="2, 1, 2"), pytest.param((2, 4, 1), id="2, 4, 1", marks=pytest.mark.nightly)],
)
def test_a_run_goes_on_with_other_ranks(
    nano_arguments: list[str], tmp_path: Path, ranks: tuple[int, int, int]
):
    """Two updates on each number of ranks in turn: the same data in the same order, the losses of one rank."""
    schedule = ["train.max_steps=6", "train.checkpoint_every=2", "train.eval_every=2", "train.lr=1e-3"]
    units = ["train.micro_batches_per_update=4", "meta.tasks_per_step=4"]
    words = {kind: [*nano_arguments, *schedule, *units, *more] for kind, more in KINDS.items()}

    def train(runs: dict[str, Run], count: int) -> str:
        done = pretrain_many([[*words[kind], f"run_dir={run.path}"] for kind, run in runs.items()], count)
        assert done.returncode == 0, done.stderr
        return done.stderr

    alone = {kind: Run(tmp_path / "alone" / kind) for kind in KINDS}
    moved = {kind: Run(tmp_path / "moved" / kind) for kind in KINDS}
    train(alone, 1)
    train(moved, ranks[0])
    for done, count in zip((2, 4), ranks[1:], strict=True):
        for run in moved.values():
            go_back(run, done)
        assert f"these are {count}: the same data in the same order" in train(moved, count)
    for kind in KINDS:
        compare_runs(alone[kind], moved[kind])


def go_back(run: Run, step: int) -> None:
    """Leaves the folder as an interruption after `step` updates would have left it."""
    run.result_file.unlink()
    for _, folder in [each for each in run.checkpoints() if each[0] > step]:
        shutil.rmtree(folder)
    run.trim_metrics(step)


def compare_runs(one: Run, other: Run) -> None:
    """The same lines of metrics.jsonl, to rounding."""
    for left, right in zip(one.metrics(), other.metrics(), strict=True):
        assert (left["step"], left["kind"]) == (right["step"], right["kind"])
        for name in LOGGED:
            if name in left:
                assert left[name] == pytest.approx(right[name], rel=1e-3), (one.path, left["step"], name)


def compare_weights(one: Run, other: Run, step: int) -> None:
    left, right = (load_file(run.checkpoint(step) / "model" / "model.safetensors") for run in (one, other))
    for name, value in left.items():
        # Adam turns the sign of a gradient that is all rounding into a step of up to lr.
        assert ((value - right[name]).abs() > 1e-5).float().mean() < 0.01, (one.path, name)


def test_units_must_divide_by_the_ranks(nano_arguments: list[str], tmp_path: Path):
    done = pretrain_many(
        [[*nano_arguments, f"run_dir={tmp_path / 'odd'}", "train.micro_batches_per_update=3"]], ranks=2
    )
    assert done.returncode != 0
    assert "train.micro_batches_per_update=3 must be a multiple of the number of ranks, 2" in done.stderr
