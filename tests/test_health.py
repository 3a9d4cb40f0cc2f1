"""Updates whose loss or gradient is not finite are skipped, counted and logged; too many in a row end the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forks import Fault, Forks, Outcome
from safetensors.torch import load_file

from analysis.load.records import PretrainRun
from analysis.load.run_reader import TOTALS
from analysis.stats.budgets import eval_losses
from metapt.config import commandline
from metapt.data.batches import Batches
from metapt.data.corpus import prepare_corpus
from metapt.errors import EXIT_FAILED
from metapt.files import json_safe
from metapt.launch.run_status import run_status
from metapt.meta.objectives import next_token_objective
from metapt.meta.update_plan import plan_update
from metapt.models.meta_lm import build_meta_lm
from metapt.runs import Run
from metapt.training.engine import Engine

STAGES = ["zero0", "zero1", "zero2", "zero2_offload", "zero3"]
DIVERGING = ["objective=maml_paper", "meta.inner_lr=1e30"]


def backward(engine: Engine, update: torch.Tensor, corrupt: int | None = None) -> None:
    """Accumulate the gradient of micro-batches; that of index `corrupt` has a finite loss and a NaN gradient."""
    for index, sequences in enumerate(update):
        loss = next_token_objective(engine.meta_lm, sequences).loss / len(update)
        if index == corrupt:
            loss.register_hook(lambda gradient: gradient * float("nan"))
        assert torch.isfinite(loss)
        engine.backward(loss, last=index == len(update) - 1)


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("ds", STAGES)
def test_a_skipped_update_changes_nothing(ds: str, clip: float):
    """Later updates are compared as well, since they would show changed moments and leftover gradients."""
    arguments = ["objective=vanilla", f"ds={ds}", f"train.grad_clip={clip}", "model.num_layers=1"]
    config = commandline.load("pretrain", arguments)
    updates = torch.randint(0, 2048, (3, 2, 2, 17), generator=torch.Generator().manual_seed(0))
    skipped = updates.flip(-1)[0]
    plain, disturbed = (Engine(build_meta_lm(config), config) for _ in range(2))
    for update in updates:
        before = disturbed.weights()
        for corrupt, apply in ((0, True), (1, True), (None, False), (0, False)):
            backward(disturbed, skipped, corrupt)
            assert np.isfinite(disturbed.step(1e-3, apply=apply)) == (corrupt is None)
            assert_equal(before, disturbed.weights())
        for engine in (plain, disturbed):
            backward(engine, update)
            assert 0 < engine.step(1e-3) < 100
        assert_equal(plain.weights(), disturbed.weights())
        assert not torch.equal(before["decoder.lm_head.weight"], plain.weights()["decoder.lm_head.weight"])


def assert_equal(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        assert torch.equal(value, expected[name]), name


@pytest.fixture
def pretrain(forks: Forks, small_arguments: list[str], tmp_path: Path):
    def start(*arguments: str, **fields: Any) -> tuple[Run, Outcome]:
        run = Run(tmp_path / "run")
        outcome = forks.run([*small_arguments, *arguments, f"run_dir={run.path}"], **fields)
        assert not outcome.hung
        assert not any("Traceback" in text for text in outcome.stderr)
        return run, outcome

    return start


def update_lines(run: Run) -> list[dict[str, Any]]:
    """The lines of updates in metrics.jsonl, which must be strict JSON and without gaps."""

    def reject(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    text = run.metrics_file.read_text()
    lines = [json.loads(line, parse_constant=reject) for line in text.splitlines()]
    updates = [line for line in lines if line["kind"] not in ("eval", "dynamics")]
    assert [line["step"] for line in updates] == list(range(1, len(updates) + 1))
    return updates


def weights(run: Run, step: int) -> dict[str, torch.Tensor]:
    found = load_file(run.checkpoint(step) / "model" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in found.values())
    return found


@pytest.mark.commands
@pytest.mark.parametrize("ds", STAGES)
def test_a_nan_gradient_on_one_of_two_ranks_skips_the_update(pretrain, small_arguments: list[str], ds: str):
    """In a next-token update, the loss is finite and its gradient is not, on the second rank only."""
    arguments = ["objective=vanilla", f"ds={ds}"]
    run, outcome = pretrain(*arguments, ranks=2, faults=[Fault("backward", "NAN", 5, rank=1)])
    assert outcome.codes == [0, 0], outcome.stderr
    updates = update_lines(run)
    assert [line["step"] for line in updates if line["kind"] == "skipped"] == [3]
    skipped, last = updates[2], updates[-1]
    assert (skipped["objective"], skipped["not_finite"]) == ("lm", ["grad_norm"])
    assert (last["skipped_total"], skipped["skipped_in_row"], last["skipped_in_row"]) == (1, 1, 0)
    assert last["tokens_total"] == 9 * 8 * 32
    assert run.result()["skipped_total"] == 1
    assert "update 3 (lm) skipped, not finite: grad_norm" in outcome.stderr[0]
    weights(run, 9)
    config = commandline.load("pretrain", [*small_arguments, *arguments])
    rows = Batches(prepare_corpus(config.data).train, 32, 0).rows(16, 8)
    assert skipped["batch"] == {"first_sequence": 16, "rows": rows.tolist()}


@pytest.mark.commands
def test_diverging_episodes_do_not_affect_other_updates(pretrain):
    run, outcome = pretrain(*DIVERGING)
    assert outcome.codes == [0], outcome.stderr
    updates = update_lines(run)
    config = commandline.load("pretrain", DIVERGING)
    expected = ["skipped" if plan_update(config, step).episodes else "lm" for step in range(9)]
    assert [line["kind"] for line in updates] == expected
    assert set(expected) == {"skipped", "lm"}
    for line in updates:
        if line["kind"] == "skipped":
            assert line["objective"] == "episode"
            assert "query_loss_nats" in line["not_finite"]
            assert line["batch"] == {"seed": 0, "step": line["step"] - 1, "tasks": [0, 1]}
    assert updates[-1]["skipped_total"] == expected.count("skipped")
    before, after = weights(run, 0), weights(run, 9)
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])


@pytest.mark.commands
def test_consecutive_skipped_updates_end_the_run(pretrain):
    """The count survives an interruption; the run resumes when more skips are allowed, and nothing is lost."""
    arguments = [*DIVERGING, "meta.rho=1"]
    run, outcome = pretrain(
        *arguments, "train.max_consecutive_skips=5", faults=[Fault("backward", "USR1", 3)]
    )
    assert [line["kind"] for line in update_lines(run)] == ["skipped"] * 1
    for _ in range(2):  # a resumed run continues the count
        run, outcome = pretrain(*arguments, "train.max_consecutive_skips=5")
        assert outcome.codes == [EXIT_FAILED]
        assert "the last 5 updates up to 5 were not finite and not applied" in outcome.stderr[0]
        assert [line["kind"] for line in update_lines(run)] == ["skipped"] * 5
        assert [step for step, _ in run.checkpoints()] == [0, 1, 3]
    run, outcome = pretrain(*arguments, "train.max_consecutive_skips=10")
    assert outcome.codes == [0], outcome.stderr
    assert [line["skipped_in_row"] for line in update_lines(run)] == list(range(1, 10))
    assert_equal(weights(run, 0), weights(run, 9))


def test_json_safe_replaces_numbers_that_are_not_finite():
    value = {"a": float("nan"), "b": [1.0, float("-inf")], "c": ("x", {"d": np.float64("inf")})}
    assert json_safe(value) == {"a": None, "b": [1.0, None], "c": ["x", {"d": None}]}


SKIPPED = {
    "step": 2,
    "kind": "skipped",
    "objective": "episode",
    "tokens_total": 20,
    "flops_total": 200,
    "seconds_total": 2.0,
    "seconds": 1.0,
    "tokens_per_second": 10.0,
}


def test_run_status_counts_skipped_updates(tmp_path: Path):
    run = Run(tmp_path)
    run.start({"train": {"max_steps": 10}}, {})
    run.metrics_file.write_text(json.dumps(SKIPPED) + "\n")
    status = run_status(tmp_path)
    assert (status.step, status.loss, status.tokens_per_second) == (2, None, 10.0)


def test_report_includes_evaluations_after_a_skipped_update(tmp_path: Path):
    updates = {name: np.array([SKIPPED[name]]) for name in TOTALS} | {"next_token_tokens": np.array([0.0])}
    none, skipped = {"step": np.array([])}, {"step": np.array([2])}
    measured = {"step": np.array([2]), "eval_loss_nats": np.array([3.0])}
    origin = ("nano", "", "maml", 0, 1, "corpus", 4, {}, {})
    axes, losses = eval_losses(PretrainRun(tmp_path, *origin, updates, none, none, skipped, measured, [], {}))
    assert losses.tolist() == [3.0]
    assert {name: values.tolist() for name, values in axes.items()} == {
        "updates": [2],
        "next-token tokens": [0],  # the update was skipped
        "tokens": [20],
        "FLOPs": [200],
        "seconds": [2],
    }
