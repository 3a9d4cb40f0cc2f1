"""The grids of the second study: what their runs have in common, what they compare, and the environment variables of grids."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import chosen_rates
import pytest
from test_grid import kinds, planned

from metapt.config import commandline, identity
from metapt.errors import UserError
from metapt.estimate.flops import flops_expected
from metapt.launch.jobs import Plan
from metapt.launch.submission import submit
from metapt.runs import Run

STUDY = ("vanilla", "multitask", "maml", "twin")
TOLERANCE = 0.05  # of FLOPs, as in the report (matched budgets)


@pytest.fixture(autouse=True)
def folders(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("METAPT_TEXT_DIR", "METAPT_UNER_DIR", "METAPT_EXTRA_DIR"):
        monkeypatch.setenv(variable, f"/data/{variable}")


@pytest.mark.parametrize("absent", ["METAPT_TEXT_DIR", "METAPT_TOKENIZER", "METAPT_UNER_DIR"])
def test_a_missing_environment_variable_is_named(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("METAPT_TEXT_DIR", "METAPT_TOKENIZER", "METAPT_UNER_DIR"):
        monkeypatch.setenv(name, "/data")
    monkeypatch.delenv(absent)
    with pytest.raises(UserError, match=absent):
        planned("grid=first")


@cache
def one_seed() -> Plan:
    return planned("grid=study2", "grid.seeds=[0]")


def pretraining(plan: Plan) -> dict[str, Any]:
    """Configurations of one seed by objective and variant."""
    return {
        f"{job.objective}/{job.variant}": plan.configs[job.id]
        for job in plan.jobs
        if job.kind == "pretrain" and job.seed == 0
    }


@pytest.mark.parametrize(
    ("words", "counts"),
    [
        (("grid=study2_rates",), {"prepare": 1, "pretrain": 4, "finetune": 96, "report": 1}),
        (("grid=study2_controls",), {"prepare": 1, "pretrain": 6, "finetune": 18, "report": 1}),
        (("grid=study2_paper",), {"prepare": 1, "pretrain": 9, "finetune": 27, "report": 1}),
        (("grid=study2_longer",), {"prepare": 1, "pretrain": 9, "finetune": 27, "report": 1}),
        (("grid=study2_sizes",), {"prepare": 1, "pretrain": 18, "finetune": 54, "report": 1}),
    ],
)
def test_number_of_jobs(words: tuple[str, ...], counts: dict[str, int]) -> None:
    plan = planned(*words)
    assert kinds(plan) == counts
    if words != ("grid=study2_rates",):
        assert plan.comparisons
        assert not any(comparison["primary"] for comparison in plan.comparisons)


@pytest.mark.parametrize("part", ["", "_rates", "_controls", "_paper", "_longer", "_sizes"])
def test_dry_run_on_slurm(
    part: str,
    tmp_path: Path,
    idner_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("METAPT_EXTRA_DIR", str(idner_dir.parent))
    words = [f"grid=study2{part}", "grid.seeds=[0]", "cluster=slurm", f"root={tmp_path / 'r'}"]
    submit(commandline.load("submit", [*words, "dry_run=true"]))
    assert "--job-name=study2" in capsys.readouterr().out


def test_the_main_grid_has_k_shot_runs_of_frozen_taggers_scored_on_their_target() -> None:
    plan = one_seed()
    finetunes = [job for job in plan.jobs if job.kind == "finetune"]
    shots = [job for job in finetunes if job.needs[0].startswith("finetune/")]
    assert len(shots) == 4 * 3 * 4 * 3 * 2  # arms, sources, targets, k, subset seeds
    # arms, sources, tunings; and multitask at equal FLOPs
    assert len(finetunes) - len(shots) == 4 * 3 * 2 + 3 * 2
    for job in shots:
        config = plan.configs[job.id]
        assert (config.tuning, config.data.eval_sets) == ("head_only", [job.source])
    primary = [entry for entry in plan.comparisons if entry["primary"]]
    assert [(entry["first"], entry["second"], list(entry["tunings"])) for entry in primary] == [
        ("maml/base", "multitask/base", ["head_only"]),
        ("maml/base", "twin/base", ["head_only"]),
    ]


@pytest.mark.parametrize("tunings", ["[full]", "[head_only,full]", "[]"])
def test_the_same_comparison_twice_is_refused(tunings: str) -> None:
    """Also if they have but one tuning in common, or one of them is of all."""
    first, second = (f"{{first: maml, second: vanilla, tunings: {names}}}" for names in ("[full]", tunings))
    with pytest.raises(UserError, match="duplicate comparison of full, maml minus vanilla"):
        planned("grid=demo", f"grid.comparisons=[{first},{second}]")


def test_arms_differ_in_the_objective_alone() -> None:
    """Vanilla has the classes of the others, whose held-out words score its states."""
    arms = pretraining(one_seed())
    assert list(arms) == [f"{objective}/base" for objective in STUDY]
    shared = [
        {
            name: value
            for name, value in identity(config).items()
            if name in ("model", "train", "data", "classes")
        }
        for config in arms.values()
    ]
    assert all(part == shared[0] for part in shared[1:])


def test_multitask_is_also_fine_tuned_where_it_has_spent_the_flops_of_vanilla() -> None:
    plan, arms = one_seed(), pretraining(one_seed())
    for objective in STUDY:
        steps = {
            job.checkpoint_step or plan.configs[job.needs[0]].train.max_steps
            for job in plan.jobs
            if job.kind == "finetune"
            and job.objective == objective
            and job.needs[0] in plan.configs
            and job.needs[0].startswith("pretrain/")
        }
        spent = {step * flops_expected(arms[f"{objective}/base"]) for step in steps}
        of_vanilla = 1200 * flops_expected(arms["vanilla/base"])
        assert min(abs(flops / of_vanilla - 1) for flops in spent) < TOLERANCE, (objective, steps)


def test_runs_of_the_episodes_grid_are_the_first_updates_of_the_study() -> None:
    arms, short = (
        pretraining(planned(f"grid={name}", "grid.seeds=[0]", "grid.shots=[]", "grid.shot_targets=[]"))
        if name == "episodes"
        else pretraining(one_seed())
        for name in ("study2", "episodes")
    )
    for objective in STUDY:
        long, first = identity(arms[f"{objective}/base"]), identity(short[f"{objective}/"])
        assert (long["train"].pop("max_steps"), first["train"].pop("max_steps")) == (1200, 600)
        assert long["train"]["schedule"] == "constant"
        assert long == first


def test_controls_change_one_thing() -> None:
    base = pretraining(one_seed())
    for name, variant, section in (
        ("study2_controls", "shuffled", "classes"),
        ("study2_longer", "longer", "train"),
    ):
        for arm, config in pretraining(planned(f"grid={name}", "grid.seeds=[0]")).items():
            objective, found = arm.partition("/")[0], arm.partition("/")[2]
            own, others = identity(config), identity(base[f"{objective}/base"])
            assert found == variant
            assert [key for key in own if own[key] != others[key]] == [section]
    paper = pretraining(planned("grid=study2_paper", "grid.seeds=[0]"))
    assert set(paper) == {"vanilla/short", "maml_paper/short", "maml_paper/zero"}
    zero = paper["maml_paper/zero"].meta
    assert (zero.task, zero.initial_head, zero.mixing, zero.rho, zero.inner_lr) == (
        "smlmt",
        "zero",
        "sum",
        1.0,
        None,
    )


def test_chosen_rates(tmp_path: Path) -> None:
    """The highest mean over runs, not the highest score; of equal means the lower rate; nothing if runs are missing."""
    scores = {
        "full": {1e-3: (0.3, 0.5), 3e-3: (0.8, 0.0), 1e-2: (0.4, 0.4)},
        "head_only": {1e-3: (0.1, 0.2), 3e-3: (0.2, 0.3)},
    }
    for tuning, rates in scores.items():
        for rate, values in rates.items():
            for seed, f1 in enumerate(values):
                run = Run(tmp_path / "finetune" / f"{tuning}-{rate}-{seed}")
                run.path.mkdir(parents=True)
                result = {"origin": {"objective": "maml"}, "source": "en_ewt", "seed": seed, "tuning": tuning}
                run.finish({**result, "settings": {"ner.lr": rate}, "dev_f1": f1})
    assert {
        tuning: chosen_rates.chosen(rates) for tuning, rates in chosen_rates.dev_scores(tmp_path).items()
    } == {"full": 1e-3, "head_only": 3e-3}
    assert "| head_only | 0.003 | 2 | **25.00** |" in chosen_rates.table(tmp_path)
    file = tmp_path / "finetune" / "full-0.003-1" / "result.json"
    other = {**json.loads(file.read_text()), "seed": 2}
    file.unlink()
    with pytest.raises(ValueError, match=r"0\.003 lacks \('maml', 'en_ewt', 1\)"):
        chosen_rates.table(tmp_path)
    file.write_text(json.dumps(other))  # as many runs as the other rates have, but not the same
    with pytest.raises(ValueError, match=r"0\.001 lacks \('maml', 'en_ewt', 2\); 0\.003 lacks .* 1\)"):
        chosen_rates.table(tmp_path)
