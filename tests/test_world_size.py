"""The number of ranks does not affect the result, even if it changes during a run."""

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
    "maml-zero0": ["objective=maml_paper", "ds=zero0"],
    "maml-zero1": ["objective=maml_paper", "ds=zero1", "meta.scope=last_n"],
    "maml-zero2": ["objective=maml_paper", "ds=zero2"],
    "maml-zero2_offload": ["objective=maml_paper", "ds=zero2_offload"],
    "maml-zero3": ["objective=maml_paper", "ds=zero3"],
    "maml-zero3-full": ["objective=maml_paper", "ds=zero3", "meta.scope=full"],
}
LOGGED = ("lm_loss_nats", "query_loss_nats", "eval_loss_nats", "grad_norm", "mask_position_tokens")


def test_two_ranks_equal_one(nano_arguments: list[str], tmp_path: Path):
    """Batches and episodes are the same on any number of ranks and at every ZeRO stage; weights agree up to rounding."""
    fixed = [*nano_arguments, "train.max_steps=3", "train.lr=1e-3", "train.checkpoint_every=3"]
    runs = {ranks: {kind: Run(tmp_path / f"{kind}-{ranks}") for kind in KINDS} for ranks in (1, 2)}
    for ranks, by_kind in runs.items():
        done = pretrain_many(
            [[*fixed, *KINDS[kind], f"run_dir={run.path}"] for kind, run in by_kind.items()], ranks
        )
        assert done.returncode == 0, done.stderr
    for kind in KINDS:
        compare_runs(runs[1][kind], runs[2][kind])
        compare_weights(runs[1][kind], runs[2][kind], 3)


@pytest.mark.parametrize(
    "ranks",
    [pytest.param((2, 1, 2), id="2, 1, 2"), pytest.param((2, 4, 1), id="2, 4, 1", marks=pytest.mark.nightly)],
)
def test_a_run_resumes_on_another_number_of_ranks(
    nano_arguments: list[str], tmp_path: Path, ranks: tuple[int, int, int]
):
    """With two updates on each number of ranks, the losses equal those of one rank."""
    schedule = ["train.max_steps=6", "train.checkpoint_every=2", "train.eval_every=2", "train.lr=1e-3"]
    units = ["train.micro_batches_per_update=4", "meta.tasks_per_step=4"]
    arguments = {kind: [*nano_arguments, *schedule, *units, *own] for kind, own in KINDS.items()}

    def train(runs: dict[str, Run], count: int) -> str:
        done = pretrain_many([[*arguments[kind], f"run_dir={run.path}"] for kind, run in runs.items()], count)
        assert done.returncode == 0, done.stderr
        return done.stderr

    one_rank = {kind: Run(tmp_path / "one" / kind) for kind in KINDS}
    resumed = {kind: Run(tmp_path / "resumed" / kind) for kind in KINDS}
    train(one_rank, 1)
    train(resumed, ranks[0])
    for done, count in zip((2, 4), ranks[1:], strict=True):
        for run in resumed.values():
            truncate(run, done)
        assert f"now there are {count}: the data and their order stay the same" in train(resumed, count)
    for kind in KINDS:
        compare_runs(resumed[kind], one_rank[kind])


def truncate(run: Run, step: int) -> None:
    """Change a run folder to what an interruption after `step` updates leaves."""
    run.result_file.unlink()
    for saved, folder in run.checkpoints():
        if saved > step:
            shutil.rmtree(folder)
    run.trim_metrics(step)


def compare_runs(run: Run, expected: Run) -> None:
    """Lines of metrics.jsonl are equal up to rounding."""
    for line, expected_line in zip(run.metrics(), expected.metrics(), strict=True):
        step, kind = line["step"], line["kind"]
        assert (step, kind) == (expected_line["step"], expected_line["kind"])
        for name in LOGGED:
            if name in line:
                # Steps that are pure rounding error (see compare_weights) move the norm of small gradients most.
                bound = 1e-2 if name == "grad_norm" else 1e-3
                assert line[name] == pytest.approx(expected_line[name], rel=bound), (run.path, step, name)


def compare_weights(run: Run, expected: Run, step: int) -> None:
    weights, expected_weights = (
        load_file(each.checkpoint(step) / "model" / "model.safetensors") for each in (run, expected)
    )
    for name, value in weights.items():
        # Adam turns the sign of a gradient that is pure rounding error into a step of up to lr.
        differs = (value - expected_weights[name]).abs() > 1e-5
        assert differs.float().mean() < 0.01, (run.path, name)
