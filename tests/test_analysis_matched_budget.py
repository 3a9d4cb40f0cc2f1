"""Matched budgets: which checkpoints are compared, and what is missing where there are none."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from analysis_runs import write_finetuning, write_pretraining
from hypothesis import given
from hypothesis import strategies as st

from analysis import report as program
from analysis.figures.curves import pretraining
from analysis.load.collect import Collection, collect
from analysis.load.contrasts import Contrast
from analysis.load.records import FinetuneRun, RunProvenance, Setting
from analysis.load.run_reader import spent_by_update
from analysis.load.schema import FinetuneResult, Origin
from analysis.sections.base import ReportData
from analysis.sections.learning_dynamics import perplexity_table
from analysis.stats import matched_budget
from analysis.stats.budgets import BUDGETS, eval_losses, lm_losses, per_update
from analysis.stats.comparison import comparisons
from analysis.stats.matched_budget import Match, MatchedRuns, matched_pairs, matches, matches_table
from analysis.stats.significance import Scores
from metapt.config import commandline
from metapt.meta.update_plan import plan_update
from metapt.runs import Run
from metapt.training.metrics import MetricsLogger, RunTotals

CONTRAST = Contrast("maml", "vanilla")
FLOPS_PER_UPDATE = {"vanilla": 4e12, "maml": 2.4e12}  # 60 updates of MAML cost as much as 36 of vanilla


def write(root: Path, tuned: dict[str, Sequence[int]], seed: int = 0, source: str = "en_ewt") -> Path:
    """Write a pretraining run of 60 updates for each objective, and a fine-tuning run for each of the checkpoints."""
    for objective, steps in tuned.items():
        origin = write_pretraining(root, objective=objective, seed=seed, flops=FLOPS_PER_UPDATE[objective])
        for step in steps:
            write_finetuning(root, {**origin, "step": step}, source, sets=("tl_trg",))
    return root


def only_match(collection: Collection, budget: str) -> Match:
    (match,) = matches(collection, CONTRAST, budget)
    return match


def test_each_budget_has_its_own_pair_of_checkpoints(tmp_path: Path) -> None:
    collection = collect([write(tmp_path / "grid", {"vanilla": (20, 36, 60), "maml": (20, 60)})])
    assert only_match(collection, "updates").steps == only_match(collection, "tokens").steps == (60, 60)
    found = only_match(collection, "FLOPs")
    assert found.steps == (60, 36)
    assert found.spent == pytest.approx([144e12, 144e12])
    assert found.needed == ""
    (item,) = comparisons(CONTRAST, matched_pairs([found]), ["tl_trg"], Scores(10))
    by_step = {(run.objective, run.setting.step): run for run in collection.finetuning}
    f1 = [Scores(10).value(by_step[key], "tl_trg") for key in (("maml", 60), ("vanilla", 36))]
    assert item.difference.value == pytest.approx(f1[0] - f1[1])
    assert [run.path for run in item.runs] == [by_step["maml", 60].path, by_step["vanilla", 36].path]


def test_a_smaller_budget_is_used_if_the_largest_has_no_pair(tmp_path: Path) -> None:
    collection = collect([write(tmp_path / "grid", {"vanilla": (12, 60), "maml": (20, 60)})])
    found = only_match(collection, "FLOPs")
    assert found.steps == (20, 12)
    assert found.needed == "vanilla at update 36 (any of 35 to 37)"


def test_without_a_fitting_checkpoint_the_missing_ones_are_named(tmp_path: Path) -> None:
    collection = collect([write(tmp_path / "grid", {"vanilla": (60,), "maml": (60,)})])
    found = only_match(collection, "FLOPs")
    assert (found.steps, found.pairs) == ((), [])
    assert found.needed == "vanilla at update 36 (any of 35 to 37)"
    only = collect([write(tmp_path / "other", {"vanilla": (60,), "maml": ()})])
    assert only_match(only, "updates").needed == "maml at update 60"
    assert (
        only_match(only, "FLOPs").needed
        == "maml at update 60 (any of 57 to 60) and vanilla at update 36 (any of 35 to 37)"
    )


def test_a_pair_has_the_same_fine_tuning(tmp_path: Path) -> None:
    root = write(tmp_path / "grid", {"vanilla": (36,)}, source="en_ewt")
    write(root, {"maml": (60,)}, source="sk_snk")
    found = only_match(collect([root]), "FLOPs")
    assert found.steps == ()
    assert (
        found.needed
        == "maml at update 60 (any of 57 to 60) and vanilla at update 36 (any of 35 to 37), with the same fine-tuning"
    )


def test_each_seed_has_its_own_checkpoints(tmp_path: Path) -> None:
    root = write(tmp_path / "grid", {"vanilla": (36, 60), "maml": (60,)})
    write(root, {"vanilla": (37, 60), "maml": (60,)}, seed=1)
    found = matches(collect([root]), CONTRAST, "FLOPs")
    assert [match.steps[1] for match in found] == [36, 37]
    (item,) = comparisons(CONTRAST, matched_pairs(found), ["tl_trg"], Scores(10))
    assert item.seeds == 2


def test_seeds_with_the_same_checkpoints_share_a_row(tmp_path: Path) -> None:
    for seed, vanilla in enumerate([(36, 60), (36, 60), (37, 60)]):
        write(tmp_path, {"vanilla": vanilla, "maml": (60,)}, seed=seed)
    collection = collect([tmp_path])
    found = [match for budget in ("updates", "FLOPs") for match in matches(collection, CONTRAST, budget)]
    table = matches_table(found)
    heads = [column.head for column in table.columns]
    shown = [dict(zip(heads, row, strict=True)) for row in table.rows]
    keys = ("matched budget", "seeds", "update of the second", "pairs")
    assert [tuple(row[key] for key in keys) for row in shown] == [
        ("updates", "0, 1, 2", 60, 3),
        ("FLOPs", "0, 1", 36, 2),
        ("FLOPs", "2", 37, 1),
    ]
    assert [len(row["runs"]) for row in shown] == [12, 8, 4]  # type: ignore[arg-type]


def test_budgets_are_unknown_without_the_pretraining_run(tmp_path: Path) -> None:
    for objective in FLOPS_PER_UPDATE:
        origin = {"model": "nano", "objective": objective, "seed": 0, "step": 60, "corpus_fingerprint": "c0"}
        write_finetuning(tmp_path, origin, sets=("tl_trg",))
    collection = collect([tmp_path])
    assert only_match(collection, "updates").steps == (60, 60)
    assert (
        only_match(collection, "tokens").needed
        == "the pretraining run of maml and of vanilla, whose metrics record the tokens"
    )


TUNED = FinetuneRun(
    Path("tuned"),
    "maml",
    Setting("nano", "", 1, "head_only", "en_ewt"),
    (0, 0),
    None,
    "",
    RunProvenance("", "", "", "", ""),
    FinetuneResult(
        origin=Origin("nano"),
        source="en_ewt",
        tuning="head_only",
        seed=0,
        sets={},
        train_sentences=1,
        seconds_total=1.0,
        steps=1,
        best_step=1,
        dev_f1=0.5,
    ),
    np.empty(0),
    {},
)


def model_runs(steps: set[int], cost: float) -> matched_budget.ModelRuns:
    """A model that spent `cost` FLOPs per update, with one fine-tuning run at each of these checkpoints."""
    updates = {"step": np.arange(1.0, 31), "flops_total": cost * np.arange(1.0, 31)}
    updates |= {field: np.zeros(30) for field in ("tokens_total", "seconds_total", "next_token_tokens")}
    pretraining: Any = SimpleNamespace(updates=updates)
    tuned: Any = msgspec.structs.replace(TUNED)
    return matched_budget.ModelRuns(pretraining, {step: [tuned] for step in steps})


@given(st.sets(st.integers(1, 30), max_size=6), st.sets(st.integers(1, 30), max_size=6), st.floats(0.2, 5))
def test_the_matched_pair_is_the_largest_of_equal_budget(
    first: set[int], second: set[int], cost: float
) -> None:
    """Compared with an enumeration of all pairs."""
    arms = (model_runs(first, cost), model_runs(second, 1.0))
    steps, _ = matched_budget._matched_checkpoints(CONTRAST, "FLOPs", arms)
    candidates = [
        (one, other)
        for one, other in product(first, second)
        if abs(cost * one - other) <= 0.05 * max(cost * one, other)
    ]
    assert bool(steps) == bool(candidates)
    if steps:
        assert steps in candidates
        limiting = int(cost * max(first) > max(second))  # index of the arm that spent less
        assert steps[limiting] == max(candidate[limiting] for candidate in candidates)
        rivals = [candidate for candidate in candidates if candidate[limiting] == steps[limiting]]
        smallest = min(abs(cost * one - other) for one, other in rivals)
        assert abs(cost * steps[0] - steps[1]) == pytest.approx(smallest)


def test_a_report_for_each_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Updates, tokens and seconds have the same pair and are shown together; FLOPs have none, and so neither tables nor figures."""
    root = write(tmp_path / "grid", {"vanilla": (60,), "maml": (60,)})
    program.main([str(root), "--budget", "flops"])
    assert "maml and vanilla cannot be compared at matched FLOPs" in capsys.readouterr().out
    content = json.loads((root / "report" / "report.json").read_text())
    groups = (("updates", "tokens", "seconds"), ("next-token tokens",), ("FLOPs",))
    summaries = {tuple(entry["budgets"]): entry["paragraphs"] for entry in content["summary"]}
    assert set(summaries) == set(groups)
    assert "vanilla at update 36 (any of 35 to 37)" in summaries["FLOPs",][0]
    sections = {
        budgets: [section for section in content["sections"] if section["budgets"] == list(budgets)]
        for budgets in groups
    }
    assert len({tuple(section["name"] for section in group) for group in sections.values()}) == 1
    for section in sections["FLOPs",]:
        assert (section["figures"], section["tables"]) == ([], [])
        assert "vanilla at update 36" in section["paragraphs"][0]
    label = "Maml minus vanilla, matched updates, tokens and seconds."
    for section in sections[groups[0]]:
        assert all(figure["caption"].endswith(label) for figure in section["figures"])
        assert all(label in content["tables"][name]["note"] for name in section["tables"])
    names = {figure["name"] for section in sections[groups[0]] for figure in section["figures"]}
    files = {file.name for file in (root / "report" / "figures").iterdir()}
    assert names
    assert {f"{name}.svg" for name in names} <= files
    assert content["tables"]["differences"]["rows"]
    assert not {"differences-tokens", "differences-flops"} & set(content["tables"])
    page = (root / "report" / "index.html").read_text()
    shown = [f"budget-{BUDGETS.index(budget)}" for budget in groups[0]]
    assert f'<div class="compared contrast-0 {" ".join(shown)}">' in page
    assert page.count('type="radio"') == len(BUDGETS)
    assert f'id="budget-{BUDGETS.index("FLOPs")}" checked' in page
    assert "## Scale (maml minus vanilla, matched FLOPs)" in (root / "report" / "report.md").read_text()


def test_budgets_of_which_every_update_spends_the_same_share_an_axis(tmp_path: Path) -> None:
    runs = collect([write(tmp_path / "grid", {"vanilla": (60,), "maml": (60,)})]).pretraining
    vanilla = [run for run in runs if run.objective == "vanilla"]
    constant = {"updates": 1, "next-token tokens": 2048, "tokens": 2048, "FLOPs": 4e12, "seconds": 0.5}
    assert per_update(vanilla) == pytest.approx(constant)
    shared = {
        "updates": 1,
        "tokens": 2048,
        "seconds": 0.5,
    }  # half of the updates with MAML predict no next token
    assert per_update(runs) == pytest.approx(shared)
    (drawn,) = pretraining(SimpleNamespace(pretraining=runs))  # type: ignore[arg-type]
    texts = re.findall(r"<text[^>]*>(.*?)</text>", drawn.to_svg())
    assert {"updates", "1 = 2,048 tokens", "1 = 0.5 seconds", "FLOPs", "next-token tokens"} <= set(texts)
    assert not {"tokens", "seconds"} & set(texts)


@pytest.mark.parametrize("mixing", ["alternate", "per_micro_batch", "sum"])
def test_next_token_tokens_are_those_of_next_token_micro_batches(tmp_path: Path, mixing: str) -> None:
    """Whatever the windows of episodes have, as lines that a run writes and the report reads."""
    words = ["objective=maml_paper", f"meta.mixing={mixing}", "train.micro_batches_per_update=3"]
    config = commandline.load("pretrain", [*words, "meta.tasks_per_step=2", f"run_dir={tmp_path}"])
    logger = MetricsLogger(Run(tmp_path), config, RunTotals(), rank=0, updates_done=0)
    plans = [plan_update(config, step) for step in range(20)]
    for step, plan in enumerate(plans, 1):
        logger.log_update(step, plan, 0, lm_loss_nats=1.0)
    logger.close()
    expected = [len(plan.micro_batches) * config.train.micro_batch * config.train.seq_len for plan in plans]
    spent = spent_by_update(Run(tmp_path).metrics())
    assert spent["step"].tolist() == list(range(1, 21))
    assert spent["next_token_tokens"].tolist() == expected
    assert sum(expected) < spent["tokens_total"][-1]


def test_language_model_losses_exclude_the_losses_of_episodes(tmp_path: Path) -> None:
    """Absurd losses of episodes change no loss of the language model."""
    found = []
    for name, factor in (("plausible", 1.0), ("absurd", 1e6)):
        root = tmp_path / name
        for objective in FLOPS_PER_UPDATE:
            write_pretraining(root, objective=objective)
        file = root / "pretrain" / "nano-maml-s0" / "metrics.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            if line["kind"] == "episode":
                line["query_loss_nats"] *= factor
                line["support_loss_nats"] = [loss * factor for loss in line["support_loss_nats"]]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        collection = collect([root])
        maml = next(run for run in collection.pretraining if run.objective == "maml")
        assert len(lm_losses(maml)[1]) == 30
        assert maml.episodes["query_loss_nats"].max() == 3 * factor
        table = [row[:-1] for row in perplexity_table(collection).rows]
        found.append((lm_losses(maml)[1].tolist(), eval_losses(maml)[1].tolist(), table))
    assert found[0] == found[1]


def test_variants_without_vanilla_runs_share_the_only_ones(tmp_path: Path) -> None:
    for objective, label in (("vanilla", "base"), ("maml", "base"), ("maml", "full")):
        origin = write_pretraining(tmp_path, objective=objective, label=label)
        write_finetuning(tmp_path, origin, sets=("tl_trg",))
    collection = collect([tmp_path])
    found = ReportData(
        collection, Scores(10), None, MatchedRuns(collection, CONTRAST), ["updates"]
    ).comparisons
    assert [item.setting.variant for item in found] == ["base", "full"]
    assert found[0].pairs[0][1].path == found[1].pairs[0][1].path
    assert found[0].pairs[0][0].path != found[1].pairs[0][0].path
    assert [match.model.variant for match in matches(collection, CONTRAST, "updates")] == ["base", "full"]
    write_pretraining(tmp_path, objective="vanilla", label="other")  # now there are two
    collection = collect([tmp_path])
    ambiguous = ReportData(collection, Scores(10), None, MatchedRuns(collection, CONTRAST), ["updates"])
    assert [item.setting.variant for item in ambiguous.comparisons] == ["base"]
    assert [entry.reason for entry in ambiguous.matched.pairing.unmatched] == [
        "2 counterparts fit equally: base, other"
    ]
