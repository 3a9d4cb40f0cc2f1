"""LoRA trains low-rank changes, merges them into an ordinary decoder, and resumes to the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tuned import Killed, assert_same, die_after, tune

from metapt.errors import UserError
from metapt.finetuning.lora import merged, with_adapters
from metapt.models.base_model import load_base_model
from metapt.runs import Run
from metapt.tagger.serialization import load_tagger

LORA = ("tuning=lora", "ner.lora_rank=2", "ner.lr=0.02", "ner.max_epochs=4")


@pytest.fixture(scope="module")
def lora_run(world: Path) -> Run:
    return tune(world, world / "lora", *LORA)


def test_low_rank_changes_in_an_ordinary_decoder(world: Path, lora_run: Run) -> None:
    losses = [line["loss_nats"] for line in lora_run.metrics() if line["kind"] == "train"]
    assert losses[-1] < losses[0] / 3
    before = load_base_model(world / "model").state_dict()
    after = load_tagger(lora_run.tagger_dir)[0].decoder.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        rank = int(torch.linalg.matrix_rank(after[name] - value, atol=1e-4)) if value.ndim == 2 else 0
        assert rank == (2 if "proj" in name else 0), name
        assert torch.equal(after[name], value) == ("proj" not in name)


def test_resumes_to_the_same_weights(
    world: Path, lora_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        die_after(patch, 8)
        with pytest.raises(Killed):
            tune(world, tmp_path / "run", *LORA)
    (checkpoint,) = [folder for _, folder in Run(tmp_path / "run").checkpoints()]
    kept = load_file(checkpoint / "engine" / "weights.safetensors")
    assert all("lora_" in name or name.startswith("layer.") for name in kept)
    assert_same(tune(world, tmp_path / "run", *LORA), lora_run)


def test_merged_adapters_give_the_same_states(world: Path) -> None:
    base, subwords = load_base_model(world / "model"), torch.arange(40).reshape(2, 20)
    decoder = with_adapters(load_base_model(world / "model"), 3, 6.0, seed=0)
    with torch.no_grad():
        untouched = decoder(input_ids=subwords).last_hidden_state
        torch.testing.assert_close(untouched, base(input_ids=subwords).last_hidden_state)
        for name, value in decoder.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
        tuned = decoder(input_ids=subwords).last_hidden_state
        assert not torch.allclose(tuned, untouched, atol=1e-2)
        torch.testing.assert_close(
            merged(decoder)(input_ids=subwords).last_hidden_state, tuned, rtol=1e-4, atol=1e-4
        )


def test_missing_peft_is_a_user_error(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metapt.finetuning.lora.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"needs peft\. In a clone of the repository: .* '\.\[lora\]'$"):
        tune(world, tmp_path / "run", *LORA)
