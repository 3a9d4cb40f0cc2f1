"""Grids and model sizes in YAML files of the user, axes of fine-tuning, grids of existing models."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_grid import bare, kinds, planned

from metapt import submit as submit_command
from metapt.config import PretrainConfig, commandline
from metapt.errors import UserError
from metapt.launch.submission import submit

MINE = """\
# Half of nano.
defaults: [nano, _self_]
hidden_size: 24
intermediate_size: 64
"""
SECTIONS = """\
model: {hidden_size: 32, intermediate_size: 64, num_layers: 2, num_heads: 4, vocab_size: 4096}
train: {seq_len: 64, lr: 1e-3, micro_batch: 8}
data: {cache_dir: "my texts, all=of them"}
"""


@pytest.fixture
def size(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(MINE)
    return file


def test_a_model_size_in_a_file_is_like_a_shipped_one(size: Path) -> None:
    nano: PretrainConfig = commandline.load("pretrain", ["model=nano", "objective=maml"])
    mine: PretrainConfig = commandline.load("pretrain", [f"model={size}", "objective=maml"])
    assert (mine.model.name, mine.model.hidden_size, mine.model.num_layers) == ("mine", 24, 3)
    assert (mine.train, mine.meta, mine.episodes) == (nano.train, nano.meta, nano.episodes)
    size.write_text(MINE + "name: half\nnum_layers: 2\n")  # a file may change while a process runs
    changed = commandline.load("pretrain", [f"model={size}"]).model
    assert (changed.name, changed.num_layers) == ("half", 2)


def test_a_file_may_hold_whole_sections(tmp_path: Path) -> None:
    file = tmp_path / "wide.yml"
    file.write_text(SECTIONS)
    config = commandline.load("pretrain", [f"model={file}", "train.micro_batch=4", "meta.rho=0"])
    assert (config.model.name, config.model.hidden_size, config.train.seq_len) == ("wide", 32, 64)
    assert (config.train.lr, config.train.micro_batch) == (1e-3, 4)
    assert config.data.cache_dir == "my texts, all=of them"
    with_header = "# @package _global_\n" + SECTIONS
    file.write_text(with_header)
    assert commandline.load("pretrain", [f"model={file}", "train.micro_batch=4"]) == config


@settings(max_examples=5, deadline=None)
@given(
    st.sampled_from([MINE, SECTIONS, "defaults: [laptop, _self_]\nnum_layers: 2\n"]),
    st.sampled_from(["vanilla", "maml", "maml_paper", "multitask"]),
    st.lists(
        st.sampled_from(["train.lr=0.01", "meta.k_shot=2", "data=demo", "classes.sizes=[8,16]"]), unique=True
    ),
)
def test_words_without_files_give_the_same_configuration(
    tmp_path_factory: pytest.TempPathFactory, text: str, objective: str, more: list[str]
) -> None:
    file = tmp_path_factory.mktemp("own") / "mine.yaml"
    file.write_text(text)
    words = [f"model={file}", f"objective={objective}", *more]
    alone = commandline.without_files("pretrain", words)
    config = commandline.load("pretrain", words)
    file.unlink()
    assert commandline.load("pretrain", alone) == config


@pytest.mark.parametrize(
    ("text", "more", "sequences"),
    [
        ("defaults: [tiny, _self_]\n", ["train.micro_batch=auto"], 1024),
        ("defaults: [tiny, _self_]\n", ["train.micro_batch=auto", "train.micro_batches_per_update=8"], 32),
        ("defaults: [tiny, _self_]\n", ["train.micro_batch=auto", "train.sequences_per_update=96"], 96),
        ("train: {micro_batch: auto, sequences_per_update: 48}\ndefaults: [tiny, _self_]\n", [], 48),
        ("train: {micro_batch: auto}\ndefaults: [tiny, _self_]\n", ["train.sequences_per_update=64"], 64),
        ("train: {micro_batch: auto}\ndefaults: [tiny, _self_]\n", ["train.micro_batch=16"], None),
    ],
)
def test_an_automatic_micro_batch_splits_the_sequences_of_the_file(
    tmp_path: Path, text: str, more: list[str], sequences: int | None
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    direct = commandline.load("pretrain", [f"model={file}", "data=demo", *more])
    overrides = ",".join(f"'{word}'" for word in ["data=demo", *more])
    plan = planned(
        "grid=demo", f"grid.sizes=[{file}]", "grid.objectives=[vanilla]", f"grid.pretrain=[{overrides}]"
    )
    (config,) = (config for config in plan.configs.values() if isinstance(config, PretrainConfig))
    assert config.train.sequences == direct.train.sequences
    assert config.train.sequences_per_update == sequences


def test_an_automatic_micro_batch_of_nothing_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("defaults: [tiny, _self_]\ntrain: {micro_batch: auto}\n")
    for load in (
        lambda: commandline.load("pretrain", [f"model={file}"]),
        lambda: planned("grid=demo", f"grid.sizes=[{file}]"),
    ):
        with pytest.raises(UserError, match=r"train.micro_batch=auto: needs train.sequences_per_update"):
            load()


def test_a_grid_in_a_file_with_a_size_in_a_file(size: Path, tmp_path: Path) -> None:
    file = tmp_path / "filipino.yaml"
    file.write_text(
        f"defaults: [demo, _self_]\nsizes: [{size}, nano]\nseeds: [4]\nper_size: {{mine: [train.lr=2e-3]}}\n"
        "gpus_per_size: {mine: 1}\n"
    )
    config = commandline.load("submit", [f"grid={file}"])
    assert (config.grid.name, config.root) == ("filipino", "runs/filipino")
    plan = planned(f"grid={file}")
    size.unlink()  # the jobs do not need it
    jobs = {bare(job.id): job for job in plan.jobs if job.kind == "pretrain"}
    assert set(jobs) == {
        f"pretrain/{name}-{arm}-s4" for name in ("mine", "nano") for arm in ("vanilla", "maml")
    }
    job = jobs["pretrain/mine-maml-s4"]
    mine = commandline.load("pretrain", job.argv)
    assert (job.size, mine.model.name, mine.model.hidden_size, mine.train.lr) == ("mine", "mine", 24, 2e-3)
    assert commandline.load("pretrain", jobs["pretrain/nano-maml-s4"].argv).train.lr == 3e-3


def test_keys_and_seeds_of_fine_tuning_are_axes() -> None:
    words = ["grid.finetune_axes={ner.lr:[1e-4,0.003],ner.head:[crf,softmax]}", "grid.finetune_seeds=[0,5]"]
    plan = planned("grid=demo", "grid.sources=[en_demo]", "grid.objectives=[maml]", *words)
    runs = {
        bare(name): config for name, config in plan.configs.items() if "tuning" in vars(config)
    }  # by name
    found = [(config.tuning, config.ner.lr, config.ner.head, config.train.seed) for config in runs.values()]
    assert sorted(found) == sorted(
        itertools.product(["head_only", "full"], [1e-4, 3e-3], ["crf", "softmax"], [0, 5])
    )
    assert "finetune/nano-maml-s0-en_demo-full-lr_0.003-head_softmax-finetune_s5" in runs
    assert runs["finetune/nano-maml-s0-en_demo-full-lr_0.003-head_softmax-finetune_s5"].ner.max_epochs == 4
    assert kinds(plan)["pretrain"] == 1


def test_what_the_user_writes_for_fine_tuning_wins_over_the_grid() -> None:
    words = ["grid=demo", 'grid.finetune=["data=demo","ner.lr=2e-5"]']
    own = 'grid.finetune_per_tuning={full:["ner.lr=3e-5"],head_only:[]}'

    def rates(*more: str) -> set[tuple[str, float, int]]:
        configs = [config for config in planned(*words, *more).configs.values() if "tuning" in vars(config)]
        return {(config.tuning, config.ner.lr, config.ner.max_epochs) for config in configs}

    assert rates() == {("head_only", 2e-5, 8), ("full", 2e-5, 4)}
    assert {(tuning, rate) for tuning, rate, _ in rates(own)} == {("head_only", 2e-5), ("full", 3e-5)}


def test_what_the_user_writes_for_pretraining_wins_over_the_grid(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "sizes: [nano]\nobjectives: [vanilla, multitask]\nper_size: {nano: [train.lr=1e-3, train.max_steps=9]}\n"
        "per_objective: {multitask: [train.lr=2e-3]}\npretrain: [train.warmup_steps=1]\n"
    )

    def runs(*words: str) -> set[tuple[str, float, int]]:
        configs = planned(f"grid={file}", *words).configs.values()
        return {(config.meta.objective, config.train.lr, config.train.max_steps) for config in configs}

    assert runs() == {("vanilla", 1e-3, 9), ("multitask", 2e-3, 9)}
    written = 'grid.pretrain=["train.lr=5e-4","train.warmup_steps=1"]'
    assert runs(written) == {("vanilla", 5e-4, 9), ("multitask", 5e-4, 9)}
    own = 'grid.per_objective={multitask:["train.lr=3e-3"]}'
    assert runs(written, own) == {("vanilla", 5e-4, 9), ("multitask", 3e-3, 9)}


def test_folds_are_an_axis() -> None:
    """Each fold is a job that tests on its part of the train split, as `metapt finetune folds=3` does one after the other."""
    words = ["grid.sources=[en_demo]", "grid.objectives=[vanilla]", "grid.tunings=[full]"]
    plan = planned("grid=demo", *words, "grid.finetune_axes={data.fold:[1/3,2/3,3/3]}")
    folds = {
        bare(name): config.data.fold for name, config in plan.configs.items() if "tuning" in vars(config)
    }
    assert folds == {f"finetune/nano-vanilla-s0-en_demo-full-fold_{k}of3": f"{k}/3" for k in (1, 2, 3)}


def test_a_grid_of_existing_models_pretrains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "encoders.yaml"
    file.write_text(
        "models: [hub:some/encoder, hub:other/encoder]\nsources: [en_demo]\ntunings: [full]\nfinetune: [data=demo]\n"
        "finetune_seeds: [1, 2, 3]\n"
    )
    assert kinds(planned(f"grid={file}")) == {"finetune": 6, "report": 1}
    submit(commandline.load("submit", [f"grid={file}", "dry_run=true", f"root={tmp_path / 'runs'}"]))
    out = capsys.readouterr().out
    assert "grid encoders: 7 jobs (6 finetune, 1 report)" in out
    assert "pretraining" not in out  # no table of its requirements


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hidden_siz: 24", "model.hidden_siz: no such key; did you mean model.hidden_size"),
        ("num_layers: two", "model.num_layers=two: Value 'two' of type 'str' could not be converted"),
        ("- 24", "must hold keys with values, such as hidden_size: VALUE"),
        ("a: [1\nb: 2", "mine.yaml:2: not YAML"),
        ("defaults: [huge, _self_]", "Could not load 'model/huge'"),
        ("num_heads: 12", "model.hidden_size is required"),
    ],
)
def test_errors_in_a_file(size: Path, text: str, message: str) -> None:
    size.write_text(text)
    with pytest.raises(UserError) as raised:
        commandline.load("pretrain", [f"model={size}"])
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["grid.sizes=[/nowhere/mine.yaml]"], "/nowhere/mine.yaml: cannot be read (No such file"),
        (["grid.sizes=[nano,{tmp}/nano.yaml]"], "there is another size nano; rename the file"),
        (["grid.sizes=[{tmp}/my-size.yaml]"], "'my-size' becomes part of a folder's name"),
        (['grid.finetune=["folds=5"]'], "grid.finetune: folds makes several runs of one"),
        (["grid.finetune_axes={folds:[3,5]}"], "grid.finetune_axes.folds: folds makes several runs of one"),
        (["grid.finetune_axes={train.seed:[1]}"], "set by the grid and cannot be overridden; use grid.finetune_seeds"),
        (["grid.finetune_axes={ner.lrr:[1]}"], "ner.lrr: no such key; did you mean ner.lr"),
        (["grid.finetune_axes={ner.lr:[]}"], "grid.finetune_axes.ner.lr is empty"),
        (["grid.finetune_axes={ner.lr:[1,1]}"], "grid.finetune_axes.ner.lr: duplicate value"),
        (["grid.finetune=['folds=5']"], "jobs of single folds are grid.finetune_axes={data.fold:[1/5,2/5,3/5,4/5,5/5]}"),
        (["grid.sources=[]", "grid.models=[hub:a/b]"], "grid.models: give the labelled sets"),
        (["grid.sizes=tiny,small"], "a list is written in brackets: 'grid.sizes=[tiny,small]'"),
        (["grid=demo,first"], "'grid=demo,first': only key=value with one value is supported; give one value"),
    ],
)  # fmt: skip
def test_errors_of_a_grid(tmp_path: Path, words: list[str], message: str) -> None:
    for name in ("nano", "my-size"):
        (tmp_path / f"{name}.yaml").write_text(MINE)
    with pytest.raises(UserError) as raised:
        planned("grid=demo", *(word.replace("{tmp}", str(tmp_path)) for word in words))
    assert message in str(raised.value)


def test_submit_without_a_grid_lists_the_grids(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="grid= is required") as raised:
        submit_command.main(["cluster=local"])
    assert "  demo             The whole chain on generated data" in str(raised.value)
    with pytest.raises(SystemExit):
        submit_command.main(["--print-config"])
    assert "name: demo" in capsys.readouterr().out
