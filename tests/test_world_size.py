"""The number of ranks does not affect the result, even if it changes during a run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from forks import Forks
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
# Of the first updates: Adam's steps there are pure rounding error for some weights (see compare_weights), which moves the
# norm of the next gradient by 0.6 % at ZeRO 3. From equal weights the norms of four updates agree to 1e-8.
FROM_THE_START = dict.fromkeys(LOGGED, 1e-3) | {"grad_norm": 1e-2}


def test_two_ranks_equal_one(forks: Forks, nano_arguments: list[str], tmp_path: Path):
    """Batches and episodes are the same on any number of ranks and at every ZeRO stage; weights agree up to rounding."""
    fixed = [*nano_arguments, "train.max_steps=3", "train.lr=1e-3", "train.checkpoint_every=3"]
    runs = {ranks: {kind: Run(tmp_path / f"{kind}-{ranks}") for kind in KINDS} for ranks in (1, 2)}
    for ranks, by_kind in runs.items():
        forks.pretrain_many(
            [[*fixed, *KINDS[kind], f"run_dir={run.path}"] for kind, run in by_kind.items()], ranks
        )
    for kind in KINDS:
        compare_runs(runs[1][kind], runs[2][kind], FROM_THE_START)
        compare_weights(runs[1][kind], runs[2][kind], 3)


@pytest.mark.parametrize(
    "ranks",
    [pytest.param((2, 1), id="1, 2, 1"), pytest.param((4, 3), id="1, 4, 3", marks=pytest.mark.nightly)],
)
def test_a_run_resumes_on_another_number_of_ranks(
    forks: Forks, nano_arguments: list[str], tmp_path: Path, ranks: tuple[int, int]
):
    """With two updates on one rank and on each of these numbers, losses and gradient norms equal those of one rank.

    The first updates are those of one rank, since Adam turns the signs of pure rounding errors into whole steps there.
    """
    schedule = ["train.max_steps=6", "train.checkpoint_every=2", "train.eval_every=2", "train.lr=1e-3"]
    units = ["train.micro_batches_per_update=4", "meta.tasks_per_step=4"]
    arguments = {kind: [*nano_arguments, *schedule, *units, *own] for kind, own in KINDS.items()}

    def train(runs: dict[str, Run], count: int) -> str:
        words = [[*arguments[kind], f"run_dir={run.path}"] for kind, run in runs.items()]
        return forks.pretrain_many(words, count)[0]

    one_rank = {kind: Run(tmp_path / "one" / kind) for kind in KINDS}
    resumed = {kind: Run(tmp_path / "resumed" / kind) for kind in KINDS}
    train(one_rank, 1)
    for kind, run in one_rank.items():
        shutil.copytree(run.path, resumed[kind].path)
    for done, count in zip((2, 4), ranks, strict=True):
        for run in resumed.values():
            truncate(run, done)
        assert f"now there are {count}: the data and their order stay the same" in train(resumed, count)
    for kind in KINDS:
        compare_runs(resumed[kind], one_rank[kind], dict.fromkeys(LOGGED, 1e-5))


def truncate(run: Run, step: int) -> None:
    """Change a run folder to what an interruption after `step` updates leaves."""
    run.result_file.unlink()
    for saved, folder in run.checkpoints():
        if saved > step:
            shutil.rmtree(folder)
    run.trim_metrics(step)


def compare_runs(run: Run, expected: Run, bounds: Mapping[str, float]) -> None:
    """Lines of metrics.jsonl are equal up to rounding, with a bound on the relative error of each value."""
    for line, expected_line in zip(run.metrics(), expected.metrics(), strict=True):
        step, kind = line["step"], line["kind"]
        assert (step, kind) == (expected_line["step"], expected_line["kind"])
        for name in LOGGED:
            if name in line:
                assert line[name] == pytest.approx(expected_line[name], rel=bounds[name]), (
                    run.path,
                    step,
                    name,
                )


def compare_weights(run: Run, expected: Run, step: int) -> None:
    weights, expected_weights = (
        load_file(each.checkpoint(step) / "model" / "model.safetensors") for each in (run, expected)
    )
    for name, value in weights.items():
        # Adam turns the sign of a gradient that is pure rounding error into a step of up to lr.
        differs = (value - expected_weights[name]).abs() > 1e-5
        assert differs.float().mean() < 0.01, (run.path, name)
