"""Run identity: a run has another name if, and only if, its configuration or inputs change."""

from __future__ import annotations

import re

import pytest

from metapt.config import commandline, identity, settings
from metapt.launch import grid as planning
from metapt.launch.jobs import Job

WORDS = [
    "cluster=local",
    "grid=demo",
    "grid.sources=[en_demo]",
    "grid.tunings=[head_only]",
    "grid.baselines=[particle]",
]
ORDER = ("prepare", "vanilla", "vanilla tuned", "maml", "maml tuned")


def runs(*words: str) -> dict[str, Job]:
    """The jobs of a small grid by their role, without the report."""
    jobs = planning.plan(commandline.load("submit", [*WORDS, *words])).jobs[:-1]
    named = {}
    for job in jobs:
        objective = "maml" if "maml" in job.id else "vanilla"
        names = {"pretrain": objective, "finetune": f"{objective} tuned"}
        named[names.get(job.kind, job.kind)] = job
    return named


@pytest.fixture(scope="module")
def default() -> dict[str, Job]:
    return runs()


@pytest.mark.parametrize(
    ("word", "changed"),
    [
        ('grid.pretrain=["data=demo","train.lr=1e-2"]', ("vanilla", "vanilla tuned", "maml", "maml tuned")),
        ('grid.per_objective={maml:["meta.inner_steps=2"]}', ("maml", "maml tuned")),
        ('grid.finetune=["data=demo","ner.dropout=0.2"]', ("vanilla tuned", "maml tuned")),
        ('grid.finetune=["data=uner","data.uner_dir=/other"]', ("vanilla tuned", "maml tuned", "baseline")),
        ('grid.pretrain=["data=demo","data.tokenizer=/t.json"]', ORDER),
        ('grid.pretrain=["data=text","data.text_dir=/t"]', ORDER),
        ("grid.checkpoints=[100]", ("vanilla tuned", "maml tuned")),
        # settings without effect on results: logs, folders, resources
        (
            'grid.pretrain=["data=demo","log.tensorboard=true","train.keep_checkpoints=3","train.max_steps=300"]',
            (),
        ),
        ("cluster.timeout_min=7", ()),
        ("grid.hours_per_size={nano:3}", ()),
        ("root=/elsewhere", ()),
    ],
)
def test_a_change_renames_exactly_the_runs_that_it_affects(
    default: dict[str, Job], word: str, changed: tuple[str, ...]
) -> None:
    other = runs(word)
    assert {name for name in default if other[name].id != default[name].id} == set(changed)


def test_names_are_readable_and_commands_have_folder_and_input(default: dict[str, Job]) -> None:
    pretrain, finetune = default["maml"], default["maml tuned"]
    assert re.fullmatch(r"pretrain/nano-maml-s0-[0-9a-f]{6}", pretrain.id)
    assert re.fullmatch(r"finetune/nano-maml-s0-en_demo-head_only-[0-9a-f]{6}", finetune.id)
    assert f"run_dir=runs/demo/{pretrain.id}" in pretrain.argv
    assert {f"run_dir=runs/demo/{finetune.id}", f"checkpoint=runs/demo/{pretrain.id}"} <= set(finetune.argv)
    assert finetune.needs == (pretrain.id,)
    for job in default.values():
        assert job.id == job.run_dir


def test_the_configurations_of_a_plan_equal_those_of_its_commands(default: dict[str, Job]) -> None:
    plan = planning.plan(commandline.load("submit", [*WORDS, "grid.checkpoints=[100]"]))
    assert set(plan.configs) == {job.id for job in plan.jobs if job.is_run}
    for job in plan.jobs:
        if job.is_run:
            assert plan.configs[job.id] == commandline.load(job.kind, job.argv)


def test_settings_are_the_identity_with_dotted_keys() -> None:
    """Paths and logging are in neither; a mapping that is the value of a key stays whole."""
    config = commandline.load(
        "pretrain", ["model=nano", "objective=maml_paper", "train.lr=0.5", "run_dir=elsewhere"]
    )
    flat = settings(config)
    assert flat["train.lr"] == 0.5
    assert flat["meta.objective"] == "maml_paper"
    assert "run_dir" not in flat
    nested = identity(config)
    assert flat == {
        f"{section}.{name}" if isinstance(values, dict) else section: value
        for section, values in nested.items()
        for name, value in (values.items() if isinstance(values, dict) else [("", values)])
    }
