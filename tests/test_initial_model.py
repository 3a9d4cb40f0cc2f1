"""Pretraining continued from a model: init=MODEL."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ner_world
import numpy as np
import pytest
import torch
from forks import Forks
from safetensors.torch import load_file
from test_grid import planned
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
)

from metapt.config import PretrainConfig, commandline, identity
from metapt.data.hub_files import model_files, tokenizer_files
from metapt.data.tokenizers import load_tokenizer, read_tokenizer
from metapt.errors import UserError
from metapt.estimate.flops import parameter_count
from metapt.launch import hub_inputs
from metapt.models.meta_lm import build_meta_lm
from metapt.models.packed_windows import PackedWindows
from metapt.models.pretrained import model_folder
from metapt.probe import probe
from metapt.runs import Run

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # so that models differ visibly
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
MODELS = {
    "llama": LlamaConfig(**SHAPE, rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
    "llama-tied": LlamaConfig(**SHAPE, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama-3.1": LlamaConfig(**SHAPE, rope_parameters=LLAMA3),
    "llama-yarn": LlamaConfig(**SHAPE, rope_parameters=YARN),
    "llama-linear": LlamaConfig(
        **SHAPE, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    ),
    "mistral": MistralConfig(**SHAPE, sliding_window=None),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen2-padded": Qwen2Config(**SHAPE | {"vocab_size": 336}),
}
WORDS = ["data=demo", "train.seq_len=32", "train.precision=fp32"]


def write_model(folder: Path, config: PretrainedConfig) -> Path:
    """A model folder with random weights, also random biases, and a tokenizer without a mask token."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(value)
    model.save_pretrained(folder)
    ner_world.make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write_model(root / name, config) for name, config in MODELS.items()}


def load(model: Path | str, *words: str) -> PretrainConfig:
    return commandline.load("pretrain", [*WORDS, f"init={model}", *words])


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name: str, models: dict[str, Path]) -> None:
    config = load(models[name])
    meta_lm = build_meta_lm(config)
    reference = AutoModelForCausalLM.from_pretrained(models[name])
    tokens = torch.randint(0, 320, (2, 25), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference(tokens).logits
        found = meta_lm.decoder.lm_head(meta_lm.hidden_states(tokens))
    # with a mask token, and for Qwen2 the padding token that transformers adds to its tokenizers
    used = 322 if name.startswith("qwen2") else 321
    assert config.model.vocab_size == found.shape[-1] == max(used, reference.config.vocab_size)
    for added in found[..., 320:used].unbind(dim=-1):
        torch.testing.assert_close(added, expected[..., :320].mean(dim=-1), atol=1e-5, rtol=1e-5)
    for own in (slice(320), slice(used, None)):  # also the rows of a padded vocabulary
        torch.testing.assert_close(found[..., own], expected[..., own], atol=1e-5, rtol=1e-5)
    loss = meta_lm.lm_loss(tokens)
    torch.testing.assert_close(loss, cross_entropy(found[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()))
    assert parameter_count(config.model) == sum(value.numel() for value in meta_lm.decoder.parameters())
    assert config.model.tied_embeddings == reference.config.tie_word_embeddings
    assert all(value.requires_grad and value.dtype is torch.float32 for value in meta_lm.parameters())


@pytest.mark.parametrize("name", ["llama-3.1", "llama-yarn", "llama-linear", "qwen2"])
def test_packed_windows_give_the_states_of_single_ones(name: str, models: dict[str, Path]) -> None:
    meta_lm, reference = build_meta_lm(load(models[name])), AutoModelForCausalLM.from_pretrained(models[name])
    windows = np.random.default_rng(0).integers(0, 320, (20, 24))
    positions = np.arange(20) + 3
    packed = PackedWindows.pack(windows, positions, torch.device("cpu"))
    with torch.no_grad():
        states = meta_lm.prediction_states(packed)
        single = reference.model(torch.from_numpy(windows)).last_hidden_state[torch.arange(20), positions]
    torch.testing.assert_close(states, single, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=320), "GPT2LMHeadModel cannot be pretrained"),
        (MistralConfig(**SHAPE, sliding_window=16), "attention in a window (sliding_window=16)"),
        (LlamaConfig(**SHAPE, head_dim=16), "head_dim=16 is not supported"),
        (LlamaConfig(**SHAPE, attention_dropout=0.1), "attention_dropout=0.1 is not supported"),
        (
            LlamaConfig(**SHAPE, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
            "rope_type=dynamic are not supported",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, PretrainedConfig) else "",
)
def test_other_architectures_are_refused_by_name(
    config: PretrainedConfig, message: str, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "other", config)
    with pytest.raises(UserError) as refused:
        load(folder)
    (line,) = str(refused.value).splitlines()[1:]
    assert line.strip().startswith(f"init={folder}: ")
    assert message in line


def test_what_contradicts_the_model_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    folder = models["llama"]
    other = tmp_path / "other.json"
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"].pop()
    other.write_text(json.dumps(content))
    for words, message in (
        ([f"data.tokenizer={other}"], "has another tokenizer"),
        (["data.tokenizer=train"], "has another tokenizer"),
        (["model=tiny"], "brings its own shape; remove model=tiny"),
        (["model.num_layers=3"], "brings its own shape; remove model.num_layers=3"),
        (["train.seq_len=65"], "must be at most model.max_positions=64"),
    ):
        with pytest.raises(UserError) as refused:
            load(folder, *words)
        assert message in str(refused.value)
        assert len(str(refused.value).splitlines()) == 2
    with pytest.raises(UserError, match="model=pretrained: needs init=MODEL"):
        commandline.load("pretrain", ["model=pretrained"])
    with pytest.raises(UserError, match=r"nowhere: not a finished run, a checkpoint or a model folder"):
        load(tmp_path / "nowhere")
    assert load(folder, f"data.tokenizer={folder / 'tokenizer.json'}").data.tokenizer != str(folder)


def test_weights_are_part_of_the_identity_and_the_path_is_not(
    models: dict[str, Path], tmp_path: Path
) -> None:
    here = load(models["llama"])
    copy = write_model(tmp_path / "copy", MODELS["llama"])
    there = load(copy)
    same = replace(there.model, name=here.model.name)
    assert identity(replace(there, model=same)) == identity(here)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    changed = commandline.load("pretrain", [*WORDS, f"init={tmp_path}/./copy"])
    assert identity(changed)["init_sha256"] != identity(here)["init_sha256"]


def test_a_model_of_the_hub(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights and its tokenizer are among the files that are fetched before jobs without network start."""
    for module in ("metapt.models.pretrained", "metapt.data.tokenizers"):
        monkeypatch.setattr(f"{module}.download", lambda files: models["llama"])
    config = load("hub:some/llama")
    assert (config.model.name, config.data.tokenizer) == ("llama-continued", "some/llama")
    assert config.init_sha256 == load(models["llama"]).init_sha256
    files = list(hub_inputs._files_read(config))
    assert files == [model_files("some/llama"), tokenizer_files("some/llama")]


def test_a_grid_of_continued_runs(models: dict[str, Path]) -> None:
    folder = models["llama"]
    words = ["grid.sizes=[pretrained]", f"grid.pretrain=['data=demo','init={folder}','train.seq_len=32']"]
    plan = planned("grid=demo", *words, "grid.objectives=[vanilla,multitask]")
    runs = [config for config in plan.configs.values() if isinstance(config, PretrainConfig)]
    assert [(run.init, run.model.hidden_size, run.meta.objective) for run in runs] == [
        (str(folder), 32, objective) for objective in ("vanilla", "multitask")
    ]
    (prepare,) = (job for job in plan.jobs if job.kind == "prepare")
    assert commandline.load("prepare", prepare.argv).data.tokenizer == str(folder)


RUN = [
    *WORDS,
    "train.micro_batch=2",
    "train.micro_batches_per_update=2",
    "train.warmup_steps=1",
    "train.checkpoint_every=2",
    "train.eval_every=2",
    "train.eval_sequences=4",
    "train.dynamics_every=2",
    "train.keep_optimizer_states=0",
    "meta.batch_sequences=2",
    "meta.window=32",
    "meta.min_context=8",
]


def run(forks: Forks, cache: Path, run_dir: Path, model: Path | str, *words: str) -> Run:
    ended = forks.run([*RUN, f"data.cache_dir={cache}", f"init={model}", f"run_dir={run_dir}", *words])
    assert ended.codes == [0], ended.stderr[0]
    return Run(run_dir)


def weights(run: Run, step: int) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint(step) / "model" / "model.safetensors")


@pytest.mark.commands
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_a_run_resumes_and_can_be_continued(
    name: str, models: dict[str, Path], forks: Forks, corpus_cache: Path, tmp_path: Path
) -> None:
    """Of untied and of tied embeddings; with the terms on word classes."""
    words = ["objective=both", "classes.sizes=[4,8]", "episodes.start_step=0", "train.schedule=constant"]
    whole = run(forks, corpus_cache, tmp_path / "whole", models[name], *words, "train.max_steps=4")
    short = run(forks, corpus_cache, tmp_path / "short", models[name], *words, "train.max_steps=2")
    resumed = run(forks, corpus_cache, short.path, models[name], *words, "train.max_steps=4")
    probed = ["data=demo", f"data.cache_dir={corpus_cache}", *words[:2]]  # all else is the checkpoint's
    scores = probe(commandline.load("probe", [*probed, f"checkpoint={whole.path}"]))
    measured = [line for line in whole.metrics() if line["kind"] == "dynamics"][-1]
    assert scores == {key: pytest.approx(measured[key], abs=1e-6) for key in scores}
    ours, theirs = weights(resumed, 4), weights(whole, 4)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    before, after = weights(whole, 0), theirs
    original = load_file(models[name] / "model.safetensors")
    embedding = "model.embed_tokens.weight"
    assert before.keys() == original.keys()
    assert torch.equal(before[embedding][:320], original[embedding])
    assert not torch.equal(before[embedding], after[embedding])
    origin: dict[str, Any] = whole.result()["origin"]
    assert origin["init"]["model"] == str(models[name])
    folder = model_folder(whole.path)
    assert AutoConfig.from_pretrained(folder).model_type == MODELS[name].model_type
    # the model's own tokenizer, with a mask token
    text = "Juan Cruz lives in Cebu ."
    saved = load_tokenizer(folder)
    read = read_tokenizer(str(models[name]))
    assert saved(text)["input_ids"] == read(text)["input_ids"]
    assert name == "qwen2" or read(text)["input_ids"] == ner_world.make_tokenizer()(text)["input_ids"]
    again = run(forks, corpus_cache, tmp_path / "again", whole.path, "train.max_steps=2", "objective=vanilla")
    assert all(torch.equal(value, after[key]) for key, value in weights(again, 0).items())
    refused = forks.run([*RUN, f"init={models['llama-3.1']}", f"run_dir={again.path}", "train.max_steps=2"])
    assert refused.codes == [2]
    assert (
        f"init: recorded '{whole.path}', requested '{models['llama-3.1']}' (hash of init_sha256 differs)"
        in (refused.stderr[0])
    )


@pytest.mark.commands
def test_tied_embeddings_at_zero_stage_3(
    models: dict[str, Path], forks: Forks, corpus_cache: Path, tmp_path: Path
) -> None:
    found = [
        run(
            forks,
            corpus_cache,
            tmp_path / ds,
            models["qwen2"],
            f"ds={ds}",
            "train.max_steps=2",
            "objective=maml_paper",
            "meta.n_way=4",
            "meta.mixing=sum",
            "meta.scope=full",
        )
        for ds in ("zero0", "zero3")
    ]
    plain, sharded = (weights(item, 2) for item in found)
    assert plain.keys() == sharded.keys()
    for name, value in plain.items():
        torch.testing.assert_close(sharded[name], value, atol=2e-5, rtol=1e-3)
