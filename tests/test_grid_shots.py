"""Plans of k-shot runs: an axis of a grid."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from ner_world import labelled, write_checkpoint, write_collection
from test_grid import bare, planned

from metapt import finetune_command as finetune
from metapt.config import commandline
from metapt.data.iob2 import write_iob2
from metapt.errors import UserError
from metapt.launch.submission import submit

SHOTS = ("grid=demo", "grid.shots=[30,5]", "grid.shot_targets=[sk_demo,en_demo]", "grid.subset_seeds=[0,4]")


def test_models_whose_runs_would_have_the_same_name_are_refused() -> None:
    with pytest.raises(UserError, match=r"grid.models: /x/a-b, hub:x/a_b: .* the same name x_a_b; rename"):
        planned(*SHOTS, "grid.models=[/x/a-b,hub:x/a_b]")


def test_few_shot_runs_follow_the_taggers_that_they_train_further() -> None:
    words = ['grid.finetune=["data=demo","data.max_train_sentences=200"]', "grid.models=['hub:some/encoder']"]
    words.append("grid.finetune_shots=['ner.lr=1e-4']")
    plan = planned(*SHOTS, *words, "grid.shot_updates=70", "grid.checkpoints=[100]")
    jobs = {job.id: job for job in plan.jobs}
    shots = [job for job in plan.jobs if job.kind == "finetune" and "finetune/" in "".join(job.needs)]
    # (2 objectives and 1 model) x 2 sources x 2 tunings, each on the one target that is not its source
    assert len(shots) == 12 * 2 * 2
    for job in shots:
        (needed,) = job.needs
        tagger, config = jobs[needed], plan.configs[job.id]
        assert plan.jobs.index(tagger) < plan.jobs.index(job)
        assert {tagger.source, config.source} == {"en_demo", "sk_demo"}
        assert config == commandline.load("finetune", job.argv)
        assert config.checkpoint == f"runs/demo/{needed}"
        assert (config.tuning, config.train.seed) == (tagger.tuning, tagger.seed)
        assert (config.ner.max_steps, config.data.entities_per_type, config.ner.lr) == (70, None, 1e-4)
        name = f"{bare(needed)}-{config.source}-k{config.data.max_train_sentences}-subset{config.data.subset_seed}"
        assert bare(job.id) == name
        assert (tagger.size, tagger.objective, tagger.gpus_per_node) == (
            job.size,
            job.objective,
            job.gpus_per_node,
        )
        assert plan.configs[needed].data.max_train_sentences == 200
    assert {plan.configs[job.id].data.max_train_sentences for job in shots} == {5, 30}
    assert {plan.configs[job.id].data.subset_seed for job in shots} == {0, 4}
    assert set(Counter(job.needs for job in shots).values()) == {4}  # one Slurm array for each tagger
    assert set(jobs) - {"report"} == set(jobs["report"].needs)


def test_identities_of_few_shot_runs_follow_their_tagger_and_nothing_else() -> None:
    def shots(*words: str) -> set[str]:
        return {job.id for job in planned(*SHOTS, *words).jobs if "-subset" in job.id}

    assert shots() < shots("grid.shots=[5,30,100]", "grid.seeds=[0,1]")
    assert shots().isdisjoint(shots('grid.pretrain=["data=demo","train.lr=1e-2"]'))
    assert shots().isdisjoint(shots("grid.shot_updates=50"))
    assert shots().isdisjoint(shots("grid.shot_unit=entities_per_type"))
    entities = planned(*SHOTS, "grid.shot_unit=entities_per_type").configs
    data = [config.data for job_id, config in entities.items() if "-subset" in job_id]
    assert {(each.max_train_sentences, each.entities_per_type) for each in data} == {(None, 5), (None, 30)}


def test_only_taggers_of_some_tunings_are_trained_further() -> None:
    def shots(*words: str) -> set[str]:
        return {job.id for job in planned(*SHOTS, *words).jobs if "-subset" in job.id}

    frozen = {job_id for job_id in shots() if "-head_only-" in job_id}
    assert len(frozen) == len(shots()) / 2
    assert shots("grid.shot_tunings=[head_only]") == frozen
    assert shots("grid.shot_tunings=[full,head_only]") == shots()
    assert shots("grid.extra_checkpoints={maml:[100]}") == shots()


def test_a_target_needs_no_dev_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uner = write_collection(tmp_path / "uner")
    words = [
        *SHOTS,
        "cluster=local",
        f'grid.finetune=["data=uner","data.uner_dir={uner}"]',
        "grid.sources=[aa_one]",
        "grid.shot_targets=[bb_two]",
        "dry_run=true",
    ]
    submit(commandline.load("submit", words))
    assert "'bb_two' has no train split" in capsys.readouterr().out
    write_iob2(uner / "bb_two" / "train.iob2", labelled(20, 5))
    submit(commandline.load("submit", words))
    out = capsys.readouterr().out
    assert "20 finetune" in out  # 4 taggers, each with 4 samples
    assert "would be refused" not in out
    finetune.main(
        [
            f"checkpoint={write_checkpoint(tmp_path / 'model')}",
            "source=bb_two",
            f"data.uner_dir={uner}",
            "ner.max_steps=3",
            f"run_dir={tmp_path / 'run'}",
            "check=true",
        ]
    )
    assert "nothing to refuse" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["grid.shots=[5]"], "grid.shots and grid.shot_targets: give both or neither"),
        ([*SHOTS[1:], "grid.shots=[0,5]"], "grid.shots: 0 must be at least 1"),
        ([*SHOTS[1:], "grid.shots=[5,5]"], "grid.shots: duplicate value 5"),
        ([*SHOTS[1:], "grid.subset_seeds=[]"], "no k-shot runs without grid.sources and grid.subset_seeds"),
        ([*SHOTS[1:], "grid.sources=[all]"], "grid.shots: name the sets of grid.sources=[all]"),
        (
            [*SHOTS[1:], "grid.shot_tunings=[lora]"],
            "grid.shot_tunings: 'lora' is not one of grid.tunings (head",
        ),
        ([*SHOTS[1:], "grid.shot_tunings=[full,full]"], "grid.shot_tunings: duplicate value full"),
        (["grid.shot_tunings=[full]"], "grid.shot_tunings: has no effect without grid.shots"),
        ([*SHOTS[1:], "grid.shot_targets=[a-b]"], "'a-b' becomes part of a folder's name"),
        (
            [*SHOTS[1:], "grid.finetune_shots=['ner.max_steps=3']"],
            "grid.finetune_shots: ner.max_steps is set by",
        ),
        ([*SHOTS[1:], "grid.finetune_shots=['train.seed=3']"], "grid.finetune_shots: train.seed is set by"),
    ],
)
def test_errors_of_the_axis(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match="configuration error") as raised:
        planned("grid=demo", *words)
    assert message in str(raised.value)
