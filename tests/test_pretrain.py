"""The command metapt.pretrain: results, exports and rejected configurations. test_interruption.py covers stopping."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_module
from forks import Forks
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from metapt import atomic_folders
from metapt.config import TrainConfig, commandline, learning_rate
from metapt.data.corpus import prepare_corpus
from metapt.errors import UserError
from metapt.models.meta_lm import SLOW_BF16, slow_in_bf16
from metapt.models.pretrained import model_folder
from metapt.runs import Run

pytestmark = pytest.mark.commands


def pretrain(arguments: list[str], run_dir: Path, *overrides: str) -> subprocess.CompletedProcess:
    return run_module("metapt.pretrain", [*arguments, f"run_dir={run_dir}", *overrides])


@pytest.fixture(scope="module")
def finished(nano_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run with objective=maml_paper."""
    run = Run(tmp_path_factory.mktemp("runs") / "maml")
    done = pretrain(nano_arguments, run.path, "objective=maml_paper")
    assert done.returncode == 0, done.stderr
    return run


def weights(run: Run, step: int = 8) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint(step) / "model" / "model.safetensors")


def test_metrics_of_each_objective(finished: Run):
    lines = list(finished.metrics())
    updates = [line for line in lines if line["kind"] not in ("eval", "dynamics")]
    assert [line["step"] for line in updates] == list(range(1, 9))
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [0, 4, 8]
    assert [line["step"] for line in lines if line["kind"] == "dynamics"] == [0, 8]
    kinds = {line["kind"] for line in updates}
    assert kinds == {"lm", "episode"}
    for line in updates:
        assert ("lm_loss_nats" in line) == (line["kind"] == "lm")
        assert ("query_loss_nats" in line) == (line["kind"] == "episode")
        assert line["grad_norm"] > 0
        if line["kind"] == "episode":
            assert len(line["support_loss_nats"]) == len(line["support_accuracy"]) == 11
            assert 8 <= line["mask_position_tokens"] < 32
    totals = [line["tokens_total"] for line in updates]
    assert totals == sorted(totals)
    assert [line["flops_total"] for line in updates] == np.cumsum(
        [line["flops"] for line in updates]
    ).tolist()


def test_training_lowers_the_eval_loss(finished: Run):
    first, *_, last = (line["eval_loss_nats"] for line in finished.metrics() if line["kind"] == "eval")
    assert first == pytest.approx(np.log(2048), abs=0.1)  # untrained: uniform over the vocabulary
    assert last < first - 0.1


def test_passes_over_the_corpus_are_those_of_next_token_updates(finished: Run, nano_arguments: list[str]):
    config = commandline.load("pretrain", [*nano_arguments, "objective=maml_paper"])
    sequences = config.train.micro_batch * config.train.micro_batches_per_update
    seen = 8 * (1 - config.meta.rho) * sequences * config.train.seq_len
    tokens = len(prepare_corpus(config.data).train)
    assert finished.result()["corpus_passes"] == pytest.approx(seen / tokens)


def test_result_and_provenance(finished: Run):
    result, provenance = finished.result(), finished.provenance()
    assert result["steps"] == 8
    assert result["origin"]["parameters"] == 272_976
    assert result["generated_data"] is True
    assert result["eval_perplexity"] == pytest.approx(np.exp(result["eval_loss_nats"]))
    assert provenance["fingerprints"]["corpus"] == result["origin"]["corpus_fingerprint"]
    assert provenance["versions"]["torch"].startswith(torch.__version__.split("+")[0])


def test_checkpoints_load_with_transformers(finished: Run):
    folder = finished.checkpoint(8) / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("The old house stood by the river.", return_tensors="pt")
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=inputs["input_ids"]).logits).all()
    assert tokenizer.mask_token_id is not None
    assert atomic_folders.problem(finished.checkpoint(8)) is None


def test_a_finished_run_is_not_repeated(finished: Run, nano_arguments: list[str]):
    before = finished.result_file.stat().st_mtime_ns
    again = pretrain(nano_arguments, finished.path, "objective=maml_paper")
    assert again.returncode == 0
    assert "already done" in again.stdout
    assert finished.result_file.stat().st_mtime_ns == before


def test_both_objectives_start_from_the_same_weights(
    finished: Run, nano_arguments: list[str], tmp_path: Path
):
    run = Run(tmp_path / "vanilla")
    assert pretrain(nano_arguments, run.path, "objective=vanilla", "train.max_steps=2").returncode == 0
    vanilla, maml = weights(run, 0), weights(finished, 0)
    assert all(torch.equal(vanilla[name], maml[name]) for name in maml)


def test_keep_checkpoints_does_not_count_damaged_ones(
    nano_arguments: list[str], finished: Run, tmp_path: Path
):
    run = Run(tmp_path / "kept")
    shutil.copytree(finished.path, run.path)
    run.result_file.unlink()
    (run.checkpoint(8) / "state.json").write_text("{}")
    arguments = ["objective=maml_paper", "train.keep_checkpoints=1", "train.checkpoint_every=4"]
    assert pretrain(nano_arguments, run.path, *arguments).returncode == 0
    assert [step for step, _ in run.checkpoints()] == [8]
    assert atomic_folders.problem(run.checkpoint(8)) is None


@pytest.mark.parametrize("is_missing", [True, False], ids=["missing", "damaged"])
def test_a_finished_run_without_its_last_checkpoint_is_resumed(
    nano_arguments: list[str], finished: Run, tmp_path: Path, is_missing: bool
):
    """No earlier checkpoint replaces it, and the run ends again with the same weights."""
    run = Run(tmp_path / "run")
    shutil.copytree(finished.path, run.path)
    if is_missing:
        shutil.rmtree(run.checkpoint(8))
    else:
        file = run.checkpoint(8) / "model" / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"result of this run does not count: .*step_000008"):
        model_folder(run.path)
    assert model_folder(run.checkpoint(4)).parent == run.checkpoint(4)
    again = pretrain(nano_arguments, run.path, "objective=maml_paper")
    assert again.returncode == 0
    assert "the result does not count and is withdrawn" in again.stderr
    assert model_folder(run.path).parent == run.checkpoint(8)
    ours, theirs = weights(run, 8), weights(finished, 8)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert run.result() | {"seconds_total": 0} == finished.result() | {"seconds_total": 0}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_warns_if_the_cpu_emulates_bf16(precision: str, nano_arguments: list[str], tmp_path: Path):
    arguments = ["objective=vanilla", "train.max_steps=2", f"train.precision={precision}"]
    done = pretrain(nano_arguments, tmp_path / "run", *arguments)
    assert done.returncode == 0
    warns = precision == "bf16" and slow_in_bf16(torch.device("cpu"))
    assert (SLOW_BF16 in done.stderr) is warns


def test_a_run_folder_with_another_configuration_is_rejected(
    finished: Run, nano_arguments: list[str], tmp_path: Path
):
    unfinished = Run(tmp_path / "unfinished")
    shutil.copytree(finished.path, unfinished.path)
    unfinished.result_file.unlink()
    for run in (finished, unfinished):
        rejected = pretrain(nano_arguments, run.path, "objective=maml_paper", "train.seed=5", "meta.rho=0.4")
        assert rejected.returncode == 2
        assert "train.seed: recorded 0, requested 5" in rejected.stderr
        assert "meta.rho: recorded 0.5, requested 0.4" in rejected.stderr
        assert "Traceback" not in rejected.stderr


def test_a_finished_run_can_be_made_longer(forks: Forks, small_arguments: list[str], tmp_path: Path):
    """It ends as if it had had that length from the start; no update of the first part may have another learning rate."""
    words = [*small_arguments, "objective=maml_paper", "train.schedule=constant"]
    short, whole = Run(tmp_path / "short"), Run(tmp_path / "whole")
    for run, steps in ((short, 5), (whole, 9), (short, 9)):
        ended = forks.run([*words, f"train.max_steps={steps}", f"run_dir={run.path}"])
        assert ended.codes == [0], ended.stderr
    assert "ended after 5 updates and is extended to 9" in ended.stderr[0]
    ours, theirs = weights(short, 9), weights(whole, 9)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    engines = [load_file(run.checkpoint(9) / "engine" / "state_000.safetensors") for run in (short, whole)]
    assert all(torch.equal(engines[0][name], engines[1][name]) for name in engines[1])
    timing = {"seconds": 0, "seconds_total": 0, "tokens_per_second": 0, "gradient_norms": 0}
    assert [line | timing for line in short.metrics()] == [line | timing for line in whole.metrics()]
    assert short.result() | {"seconds_total": 0} == whole.result() | {"seconds_total": 0}
    assert short.config()["train"]["max_steps"] == 9
    assert [step for step, _ in short.checkpoints()] == [0, 3, 5, 6, 9]
    for change in ("train.max_steps=8", "train.schedule=cosine"):
        refused = forks.run([*words, "train.max_steps=12", change, f"run_dir={short.path}"])
        assert refused.codes == [2]
        assert f"{change.partition('=')[0]}: recorded" in refused.stderr[0]
    assert short.is_done


def test_the_recorded_configuration_is_complete(finished: Run):
    recorded = finished.config()
    assert recorded["run_dir"] == str(finished.path)
    assert {"cache_dir", "text_dir", "tokenizer"} <= recorded["data"].keys()


def test_a_tokenizer_larger_than_the_vocabulary_is_rejected(
    tmp_path: Path, nano_arguments: list[str], finished: Run
):
    tokenizer = finished.checkpoint(8) / "model" / "tokenizer.json"
    done = pretrain(nano_arguments, tmp_path / "run", f"data.tokenizer={tokenizer}", "model.vocab_size=1024")
    assert done.returncode == 2
    assert "model.vocab_size=1024: the tokenizer has 2048 entries; use model.vocab_size=2048" in done.stderr


def test_a_run_folder_is_locked_by_its_process(finished: Run, nano_arguments: list[str], tmp_path: Path):
    run = Run(tmp_path / "locked")
    with run.locked():
        second = pretrain(nano_arguments, run.path)
    assert second.returncode == 1
    assert f"run directory is locked by process {os.getpid()} on " in second.stderr


def test_learning_rate_at_points_computed_by_hand():
    train = TrainConfig(lr=1.0, warmup_steps=10, max_steps=110, min_lr_ratio=0.1)
    assert learning_rate(train, 0) == pytest.approx(0.1)
    assert learning_rate(train, 9) == pytest.approx(1.0)
    assert learning_rate(train, 60) == pytest.approx(0.1 + 0.9 * 0.5)
    assert learning_rate(train, 110) == pytest.approx(0.1)
    train.schedule = "constant"
    assert learning_rate(train, 100) == 1.0
