"""Equal terms: the checkpoints that are compared at a budget, and what is said where there are none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from analysis_runs import write_finetuning, write_pretraining
from hypothesis import given
from hypothesis import strategies as st

from analysis import report as program
from analysis.load.collect import Collection, collect, with_reference
from analysis.sections.base import studies
from analysis.sections.learning_dynamics import BUDGETS, budgets_table, eval_losses_of, language_model_loss
from analysis.stats import matched_budget
from analysis.stats.comparison import comparisons
from analysis.stats.matched_budget import Match, matched, matches
from analysis.stats.significance import Scores

CHEAP = {"vanilla": 4e12, "maml": 2.4e12}  # FLOPs an update: 60 updates of MAML are 36 of vanilla


def write(root: Path, tuned: dict[str, Sequence[int]], seed: int = 0, source: str = "en_ewt") -> Path:
    """A pretraining run of 60 updates for each objective, and a tuned model for each of the checkpoints."""
    for objective, steps in tuned.items():
        origin = write_pretraining(root, objective=objective, seed=seed, flops=CHEAP[objective])
        for step in steps:
            write_finetuning(root, {**origin, "step": step}, source, sets=("tl_trg",))
    return root


def one(collection: Collection, term: str) -> Match:
    (found,) = matches(collection, term)
    return found


def test_the_pair_of_a_budget_is_that_of_its_own_checkpoints(tmp_path: Path) -> None:
    collection = collect([write(tmp_path / "grid", {"vanilla": (20, 36, 60), "maml": (20, 60)})])
    assert one(collection, "updates").steps == one(collection, "tokens").steps == {"vanilla": 60, "maml": 60}
    found = one(collection, "FLOPs")
    assert found.steps == {"vanilla": 36, "maml": 60}
    assert found.spent == pytest.approx({"vanilla": 144e12, "maml": 144e12})
    assert found.needed == ""
    part = matched(collection, [found])
    (item,) = comparisons(part, Scores(collection.finetuning, 10))
    by_step = {(run.objective, run.setting.step): run for run in collection.finetuning}
    f1 = [Scores(collection.finetuning, 10).value(by_step[key], "tl_trg") for key in (("maml", 60), ("vanilla", 36))]  # fmt: skip
    assert item.difference.value == pytest.approx(f1[0] - f1[1])
    assert [run.path for run in item.runs] == [by_step["maml", 60].path, by_step["vanilla", 36].path]


def test_a_smaller_budget_is_taken_where_the_largest_has_no_pair(tmp_path: Path) -> None:
    collection = collect([write(tmp_path / "grid", {"vanilla": (12, 60), "maml": (20, 60)})])
    found = one(collection, "FLOPs")
    assert found.steps == {"vanilla": 12, "maml": 20}
    assert found.needed == "vanilla at update 36 (35 to 37 will do)"


def test_without_a_fitting_checkpoint_there_is_no_pair_and_it_is_said_what_to_tune(tmp_path: Path) -> None:
    collection = collect([write(tmp_path / "grid", {"vanilla": (60,), "maml": (60,)})])
    found = one(collection, "FLOPs")
    assert (found.steps, found.runs) == ({}, [])
    assert found.needed == "vanilla at update 36 (35 to 37 will do)"
    assert matched(collection, [found]).finetuning == []
    only = collect([write(tmp_path / "other", {"vanilla": (60,), "maml": ()})])
    assert one(only, "updates").needed == "MAML at update 60"
    assert one(only, "FLOPs").needed == "vanilla at update 36 (35 to 37 will do) and MAML at update 60 (57 to 60 will do)"  # fmt: skip


def test_a_pair_was_tuned_alike(tmp_path: Path) -> None:
    root = write(tmp_path / "grid", {"vanilla": (36,)}, source="en_ewt")
    write(root, {"maml": (60,)}, source="sk_snk")
    found = one(collect([root]), "FLOPs")
    assert found.steps == {}
    assert (
        found.needed
        == "vanilla at update 36 (35 to 37 will do) and MAML at update 60 (57 to 60 will do), tuned alike"
    )


def test_each_seed_has_its_own_checkpoints(tmp_path: Path) -> None:
    root = write(tmp_path / "grid", {"vanilla": (36, 60), "maml": (60,)})
    write(root, {"vanilla": (37, 60), "maml": (60,)}, seed=1)
    found = matches(collect([root]), "FLOPs")
    assert [match.steps["vanilla"] for match in found] == [36, 37]
    (item,) = comparisons(matched(collect([root]), found), Scores(collect([root]).finetuning, 10))
    assert item.seeds == 2


def test_budgets_are_unknown_without_the_pretraining_run(tmp_path: Path) -> None:
    for objective in CHEAP:
        origin = {"model": "nano", "objective": objective, "seed": 0, "step": 60, "corpus_fingerprint": "c0"}
        write_finetuning(tmp_path, origin, sets=("tl_trg",))
    collection = collect([tmp_path])
    assert one(collection, "updates").steps == {"vanilla": 60, "maml": 60}
    assert one(collection, "tokens").needed == "the pretraining run of vanilla and of MAML, whose metrics tell the tokens"  # fmt: skip


def side(steps: set[int], cost: float) -> matched_budget.Side:
    """One objective that spent `cost` FLOPs an update, with a tuned model of one design at these checkpoints."""
    none: dict[str, list[float]] = {field: [] for field in BUDGETS.values()}
    lines = {**none, "step": np.arange(1.0, 31), "flops_total": cost * np.arange(1.0, 31)}
    lines |= {field: np.zeros(30) for field in ("tokens_total", "seconds_total")}
    pretraining = SimpleNamespace(lm=lines, episodes=none, skipped=none)
    tuned = SimpleNamespace(setting=SimpleNamespace(tuning="head_only", source="en_ewt"), seeds=(0, 0))
    return matched_budget.Side(pretraining, {step: [tuned] for step in steps})  # type: ignore[arg-type,misc]


@given(st.sets(st.integers(1, 30), max_size=6), st.sets(st.integers(1, 30), max_size=6), st.floats(0.2, 5))
def test_the_chosen_pair_is_of_equal_budget_and_the_largest(vanilla: set[int], maml: set[int], cost: float) -> None:  # fmt: skip
    """Against every pair, one by one."""
    found = matched_budget._steps("FLOPs", {"vanilla": side(vanilla, 1.0), "maml": side(maml, cost)})
    spent = [(old, new) for old in vanilla for new in maml if abs(old - cost * new) <= 0.05 * max(old, cost * new)]  # fmt: skip
    assert bool(found) == bool(spent)
    if found:
        pair = (found["vanilla"], found["maml"])
        assert pair in spent
        limiting = int(max(vanilla) > cost * max(maml))  # the place of the objective that spent less
        assert pair[limiting] == max(each[limiting] for each in spent)
        rivals = [abs(old - cost * new) for old, new in spent if (old, new)[limiting] == pair[limiting]]
        assert abs(pair[0] - cost * pair[1]) == pytest.approx(min(rivals))


def test_a_report_under_each_term(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """FLOPs have a pair of their own, seconds the one of updates; where one is missing nothing is drawn."""
    root = write(tmp_path / "grid", {"vanilla": (60,), "maml": (60,)})
    program.main([str(root), "--equal", "flops"])
    assert "At equal FLOPs nothing can be compared" in capsys.readouterr().out
    content = json.loads((root / "report" / "report.json").read_text())
    assert set(content["summary"]) == set(BUDGETS)
    assert "vanilla at update 36 (35 to 37 will do)" in content["summary"]["FLOPs"][0]
    by_term = {term: [part for part in content["sections"] if part["equal"] == term] for term in BUDGETS}
    assert len({tuple(part["name"] for part in parts) for parts in by_term.values()}) == 1
    for part in by_term["FLOPs"]:
        assert (part["figures"], part["tables"]) == ([], [])
        assert "vanilla at update 36" in part["paragraphs"][0]
    for part in (*by_term["updates"], *by_term["tokens"]):
        assert all(figure["caption"].endswith(f"At equal {part['equal']}.") for figure in part["figures"])
        assert all(f"At equal {part['equal']}." in content["tables"][name]["note"] for name in part["tables"])
    drawn = {figure["name"] for part in by_term["updates"] for figure in part["figures"]}
    made = {file.name for file in (root / "report" / "figures").iterdir()}
    assert drawn
    assert {f"{name}.svg" for name in drawn} <= made
    assert made.isdisjoint(f"{name}.pdf" for name in drawn)  # those of the term that is shown first have one
    assert content["tables"]["differences"]["rows"] == content["tables"]["differences-tokens"]["rows"]
    assert "differences-flops" not in content["tables"]
    page = (root / "report" / "index.html").read_text()
    assert page.count('type="radio"') == 4
    assert 'id="equal-flops" checked' in page
    assert "## Scale, at equal FLOPs" in (root / "report" / "report.md").read_text()


def test_losses_of_episodes_are_never_mixed_with_those_of_language_modelling(tmp_path: Path) -> None:
    """Absurd losses of episodes change nothing that is said of the language model."""
    found = []
    for name, factor in (("as it is", 1.0), ("absurd", 1e6)):
        root = tmp_path / name
        for objective in CHEAP:
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
        assert len(language_model_loss(maml)[1]) == 30
        assert maml.episodes["query_loss_nats"].max() == 3 * factor
        table = [row[:-1] for row in budgets_table(collection).rows]
        found.append((language_model_loss(maml)[1].tolist(), eval_losses_of(maml)[1].tolist(), table))
    assert found[0] == found[1]


def test_variants_without_a_vanilla_of_their_own_share_the_only_one(tmp_path: Path) -> None:
    for objective, label in (("vanilla", "base"), ("maml", "base"), ("maml", "full")):
        write_finetuning(
            tmp_path, write_pretraining(tmp_path, objective=objective, label=label), sets=("tl_trg",)
        )
    collection = collect([tmp_path])
    found = studies(collection, 10)["updates"].found
    assert [item.setting.variant for item in found] == ["base", "full"]
    assert found[0].pairs[0][1].path == found[1].pairs[0][1].path
    assert found[0].pairs[0][0].path != found[1].pairs[0][0].path
    assert [match.variant for match in matches(with_reference(collection), "updates")] == ["base", "full"]
    write_pretraining(tmp_path, objective="vanilla", label="other")  # which of the two would it be?
    assert [item.setting.variant for item in studies(collect([tmp_path]), 10)["updates"].found] == ["base"]
