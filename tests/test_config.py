"""Configurations and command lines: what is accepted, what is rejected, and the error messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import REPO, run_module
from hypothesis import given
from hypothesis import strategies as st

from metapt.config import DS_CONFIGS, TUNINGS, commandline, deepspeed_settings, identity, tuning_lr
from metapt.config.learning_rates import RATES, auto_lr
from metapt.errors import UserError
from metapt.launch.grid import plan
from metapt.launch.run_checks import check_plan

SIZES = ("nano", "laptop", "laptop_48", "laptop_192", "tiny", "small", "medium", "large")
REQUIRED = {
    "finetune": ["checkpoint=x", "source=en_ewt", "run_dir=y"],
    "pretrain": [],
    "submit": [],
    "status": [],
}


def shipped_options() -> list[tuple[str, str, str]]:
    files = (REPO / "metapt" / "config" / "conf").glob("*/*/[!_]*.yaml")
    return sorted((path.parts[-3], path.parts[-2], path.stem) for path in files)


@pytest.mark.parametrize(("command", "group", "option"), shipped_options())
def test_every_shipped_configuration_loads(
    command: str, group: str, option: str, world: Path, monkeypatch: pytest.MonkeyPatch
):
    for variable in ("METAPT_TEXT_DIR", "METAPT_UNER_DIR", "METAPT_EXTRA_DIR", "METAPT_TOKENIZER"):
        monkeypatch.setenv(variable, "/somewhere")
    extra = {"text": ["data.text_dir=/somewhere"], "custom": ["data.corpora=[tl_tlunified]"]}
    extra["pretrained"] = [f"init={world / 'model'}", "train.seq_len=128"]
    commandline.load(command, [*REQUIRED[command], f"{group}={option}", *extra.get(option, [])])


@pytest.mark.parametrize("file", sorted(DS_CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_shipped_deepspeed_files_set_clipping_and_stage(file: Path):
    settings = json.loads(file.read_text())
    assert "gradient_clipping" in settings  # its default changed between DeepSpeed versions
    assert str(settings["zero_optimization"]["stage"]) in file.stem


@pytest.mark.parametrize(
    ("words", "lr"),
    [
        (["tuning=head_only", "ner.lr=3e-5"], 3e-5),
        (["tuning=full", "ner.lr=1e-3"], 1e-3),
        (["tuning=full", "ner.lr=1e-3", "ner.lr=auto"], None),
        (["tuning=full"], None),
        (["tuning=lora"], None),
    ],
)
def test_the_learning_rate_is_that_of_the_table_unless_it_is_given(words: list[str], lr: float | None):
    config = commandline.load("finetune", [*REQUIRED["finetune"], "data=demo", *words])
    for width in (96, 500):
        assert tuning_lr(config, width) == (lr or auto_lr(config.tuning, width))


@given(st.sampled_from(sorted(TUNINGS)), st.integers(1, 10_000), st.integers(1, 10_000))
def test_the_default_learning_rate_never_rises_with_the_width(tuning: str, width: int, more: int):
    rates = RATES[tuning]
    assert auto_lr(tuning, width) >= auto_lr(tuning, width + more)
    assert min(rates.values()) <= auto_lr(tuning, width) <= max(rates.values())
    assert all(auto_lr(tuning, known) == rate for known, rate in rates.items())


@pytest.mark.parametrize("size", SIZES)
def test_objective_maml_paper_has_the_papers_episodes(size: str):
    """arXiv 2509.02160: 32-way 4-shot, ten steps of 1e-3 on four layers of 128 with dropout 0.1, in half of the updates."""
    meta = commandline.load("pretrain", [f"model={size}", "objective=maml_paper", "data=demo"]).meta
    assert (meta.objective, meta.rho, meta.algorithm, meta.scope) == ("maml_paper", 0.5, "fomaml", "head")
    assert (meta.n_way, meta.k_shot, meta.inner_steps, meta.inner_lr) == (32, 4, 10, 1e-3)
    assert (meta.head_layers, meta.head_hidden, meta.head_dropout) == (4, 128, 0.1)


@pytest.mark.parametrize(
    ("size", "width", "feed_forward", "batch"),
    [
        ("tiny", 96, 384, 1024),
        ("small", 384, 1536, 2048),
        ("medium", 768, 3072, 2048),
        ("large", 1536, 6144, 2048),
    ],
)
def test_sizes_of_the_paper(size: str, width: int, feed_forward: int, batch: int):
    config = commandline.load("pretrain", [f"model={size}", "objective=maml_paper"])
    model, train, meta = config.model, config.train, config.meta
    assert (model.hidden_size, model.intermediate_size, model.num_layers) == (width, feed_forward, 12)
    assert (model.num_heads, model.num_kv_heads, model.vocab_size) == (12, 4, 50304)
    assert (train.seq_len, train.lr, train.warmup_steps, train.max_steps) == (2048, 3e-4, 2500, 6000)
    assert train.micro_batch * train.micro_batches_per_update == batch
    assert (meta.rho, meta.n_way, meta.k_shot, meta.inner_steps, meta.inner_lr) == (0.5, 32, 4, 10, 1e-3)


def test_objective_maml_has_the_settings_of_objective_episodes():
    """Until a comparison favours another objective with an inner loop."""
    maml, episodes = (
        identity(commandline.load("pretrain", [f"objective={name}"])) for name in ("maml", "episodes")
    )
    assert maml.pop("meta") == episodes.pop("meta") | {"objective": "maml"}
    assert maml == episodes


def test_objective_maml_authors_differs_from_the_paper_where_the_authors_code_does():
    authors, paper = (
        commandline.load("pretrain", [f"objective=maml_{name}"]).meta for name in ("authors", "paper")
    )
    differing = {name: value for name, value in vars(authors).items() if value != getattr(paper, name)}
    assert differing.pop("objective") == "maml_authors"
    assert differing == {"mixing": "per_micro_batch", "initial_head": "persistent", "inner_lr": 1e-2}


def test_vanilla_has_no_episodes():
    assert commandline.load("pretrain", ["model=tiny", "objective=vanilla"]).meta.rho == 0


def test_objectives_differ_only_in_the_objective():
    vanilla, maml = (
        identity(commandline.load("pretrain", ["model=tiny", f"objective={name}"]))
        for name in ("vanilla", "maml_paper")
    )
    assert vanilla.pop("meta") | {"objective": "maml_paper", "rho": 0.5} == maml.pop("meta")
    assert vanilla == maml


def test_all_errors_are_reported_at_once():
    wrong = [
        "model=tny",
        "train.sed=1",
        "train.lr=fast",
        "meta.rho=1.5",
        "objective=maml_paper",
        "train.precision=fp8",
        "word",
    ]
    with pytest.raises(UserError) as caught:
        commandline.load("pretrain", wrong)
    heading, *errors = str(caught.value).splitlines()
    assert heading == "metapt pretrain: 6 configuration errors"
    for part, error in zip(
        (
            "model=tny: must be one of laptop, laptop_192, laptop_48, large, medium, nano, pretrained, small, tiny",
            "train.sed: no such key; did you mean train.seed",
            "train.lr=fast: Value 'fast'",
            "'word': not of the form key=value",
            "meta.rho=1.5: must be at most 1",
            "train.precision=fp8: must be one of bf16, fp32",
        ),
        errors,
        strict=True,
    ):
        assert part in error


TUNE = ["checkpoint=x", "source=aa", "run_dir=r"]
FOLDS = "folds=2, which scores each fold of the source"


@pytest.mark.parametrize(
    ("command", "words", "key", "advice"),
    [
        ("pretrain", [], "data.text_dir=/tmp", "data=demo, only with data=text"),
        ("prepare", [], "data.text_dir=/tmp", "data=demo, only with data=text"),
        ("pretrain", ["data=hub"], "data.txt_document=block", "data=hub, only with data=text"),
        ("pretrain", ["data=demo"], "data.hub_name=a/b", "data=demo, only with data=hub"),
        ("finetune", [*TUNE, "data=demo"], "data.uner_dir=/tmp", "data=demo, only with data=uner"),
        (
            "finetune",
            [*TUNE, "data.uner_dir=u"],
            "data.hub_name=a/b",
            "data.uner_dir=u, only with data.uner_dir=null",
        ),
        ("describe", ["data=demo"], "data.uner_dir=/tmp", "data=demo, only with data=uner"),
        ("finetune", [*TUNE, "tuning=full"], "ner.lora_rank=4", "tuning=full, only with tuning=lora"),
        ("finetune", [*TUNE, "folds=2"], "data.eval_sets=[bb]", FOLDS),
        ("finetune", [*TUNE, "folds=2"], "data.fold=1/3", FOLDS),
        ("finetune", [*TUNE, "folds=2"], "data.test_fraction=0.3", FOLDS),
    ],
)
def test_a_key_without_effect_is_refused(command: str, words: list[str], key: str, advice: str):
    name = key.partition("=")[0]
    with pytest.raises(UserError) as caught:
        commandline.load(command, [*words, key])
    assert str(caught.value).splitlines()[1:] == [f"  {name}: has no effect with {advice}"]
    commandline.load(command, words)
    commandline.load(command, [*words, "data.on_bad_input=refuse"])


def test_keys_in_files_of_the_user_and_in_grids_need_an_effect_too(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("defaults: [demo, _self_]\ntext_dir: /tmp\n")
    with pytest.raises(UserError, match=r"data\.text_dir: has no effect with data=demo"):
        commandline.load("pretrain", [f"data={tmp_path}/mine.yaml"])
    (tmp_path / "mine.yaml").write_text("defaults: [text, _self_]\ntext_dir: /tmp\n")
    assert commandline.load("pretrain", [f"data={tmp_path}/mine.yaml"]).data.text_dir == "/tmp"
    with pytest.raises(UserError, match=r"data\.text_dir: has no effect with data=demo"):
        check_plan(
            plan(
                commandline.load("submit", ["grid=demo", 'grid.pretrain=["data=demo","data.text_dir=/tmp"]'])
            )
        )


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["model.hidden_size=50"], "model.hidden_size=50: must be a multiple of model.num_heads=4"),
        (["model.num_kv_heads=3"], "model.num_kv_heads=3: must divide"),
        (["train.seq_len=4096"], "train.seq_len=4096: must be at most model.max_positions=512"),
        (["data=text"], "data.text_dir is required"),
        (["objective=vanilla", "meta.rho=0.5"], "objective=vanilla has no episodes"),
        (
            ["objective=maml_paper", "meta.rho=0"],
            "objective=maml_paper without episodes is objective=vanilla",
        ),
        (["objective=maml", "episodes.weight=0"], "objective=maml without episodes is objective=vanilla"),
        (
            ["objective=maml", "episodes.inner_steps=0"],
            "objective=maml has an inner loop; use objective=twin",
        ),
        (["objective=maml_paper", "meta.weight=0.3"], "meta.mixing=alternate has no weight of episodes"),
        (
            ["objective=maml_paper", "meta.start_step=6000"],
            "meta.start_step=6000: must be less than train.max_steps=300",
        ),
        (
            ["objective=maml_paper", "meta.min_context=32"],
            "meta.min_context=32: must be less than meta.window=32",
        ),
        (
            [
                "objective=maml_paper",
                "meta.scope=last_n",
                "meta.last_n=9: must be at most model.num_layers=3",
            ],
            "meta.last_n=9: must be at most model.num_layers=3",
        ),
        (["data.vocab_size=4096"], "data.vocab_size=4096: must be at most model.vocab_size=2048"),
        (["train.max_steps=10"], "train.warmup_steps=30: must be at most train.max_steps=10"),
        (["ds=zero7"], "must be one of zero0, zero1, zero2, zero2_offload, zero3"),
        (
            ["objective=maml_paper", "meta.algorithm=reptile"],
            "meta.algorithm=reptile: with meta.scope=head the decoder would learn nothing",
        ),
        (["model.num_heads=0"], "model.num_heads=0: must be at least 1"),
        (["train.lr=nan"], "train.lr=nan: must be a finite number"),
        (["train.grad_clip=inf"], "train.grad_clip=inf: must be a finite number"),
        (["run_dir="], "run_dir must not be empty"),
        (["~train.lr"], "only key=value"),
        (["train.lr=1e-3,1e-4"], "only key=value"),
    ],
)
def test_checks_across_keys(arguments: list[str], part: str):
    with pytest.raises(UserError, match="1 configuration error\\n") as caught:
        commandline.load("pretrain", arguments)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("[]", "must contain a JSON object"),
        ("{", "Expecting"),
        ('{"bf16": {"enabled": true}, "optimizer": {}}', "sets bf16, optimizer; remove them"),
        (
            '{"zero_optimization": {"stage": 3, "offload_param": {}}}',
            "offload is supported with ZeRO stage 2",
        ),
        ('{"zero_optimization": {"stage": "auto"}}', "zero_optimization.stage=auto must be 0, 1, 2 or 3"),
        (
            '{"zero_optimization": {"stage": 2, "compute_grad_norm": false}}',
            "zero_optimization.compute_grad_norm must be true",
        ),
    ],
)
def test_a_users_deepspeed_file_is_checked(tmp_path: Path, content: str, part: str):
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(UserError) as caught:
        commandline.load("pretrain", [f"ds={tmp_path / 'mine.json'}"])
    assert part in str(caught.value)


def test_a_users_deepspeed_file_is_used_without_its_batch_size(tmp_path: Path):
    (tmp_path / "mine.json").write_text('{"train_batch_size": 7, "zero_optimization": {"stage": 1}}')
    assert deepspeed_settings(str(tmp_path / "mine.json")) == {"zero_optimization": {"stage": 1}}


@pytest.mark.parametrize("word", ["run_dir={file}", "data.cache_dir={file}", "run_dir={file}/below"])
def test_a_path_that_cannot_be_used_is_an_error_of_the_user(tmp_path: Path, word: str):
    (tmp_path / "file").write_text("here already")
    words = [f"run_dir={tmp_path / 'run'}", word.format(file=tmp_path / "file")]
    done = run_module("metapt.pretrain", words)
    assert done.returncode == 2, done.stderr
    assert str(tmp_path / "file") in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_required_keys():
    with pytest.raises(UserError) as caught:
        commandline.load("finetune", [])
    assert all(f"{name} is required" in str(caught.value) for name in ("checkpoint", "source", "run_dir"))


def test_identity_has_no_run_dir_and_no_cache():
    kept = identity(commandline.load("pretrain", ["run_dir=/a", "data.cache_dir=/b"]))
    assert "run_dir" not in kept
    assert "cache_dir" not in kept["data"]


def test_unset_environment_variables_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("METAPT_TEXT_DIR", raising=False)
    with pytest.raises(
        UserError, match=r"grid\.pretrain\[1\]: Environment variable 'METAPT_TEXT_DIR' not found"
    ):
        commandline.load("submit", ["grid=study"])


@pytest.mark.parametrize("command", ["pretrain", "finetune", "submit"])
def test_configuration_errors_exit_with_2_and_no_traceback(command: str):
    done = run_module("metapt", [command, "sed=1"])
    assert done.returncode == 2
    assert "sed: no such key" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["2026_11_30", "1.10", "1e3", "007", "-0", "nan", "true"])
def test_a_text_is_kept_as_it_is_written(text: str) -> None:
    assert commandline.load("pretrain", [f"run_dir={text}"]).run_dir == text
    assert (
        commandline.load("submit", ["grid=demo", "cluster=slurm", f"cluster.account={text}"]).cluster.account
        == text
    )
