"""Nats per byte of a causal language model on text, against computations token by token."""

from __future__ import annotations

import math
from pathlib import Path

import ner_world
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from metapt import generate
from metapt.errors import UserError
from metapt.evaluate_command import main
from metapt.inference import text_loss as module
from metapt.inference.text_loss import text_loss
from metapt.models.causal_lm import load_causal_lm

TEXTS = (
    "Juan Cruz lives in Cebu .",
    "Ang Red Cross sa Davao City ay lumipat — ñandú 🙂.\n" * 3,
    "it rained",
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text)
    return folder


@torch.no_grad()
def reference(folder: Path, text: str, length: int) -> tuple[float, int]:
    """The negative log-likelihood of a document, one forward pass for each token, and the number of tokens."""
    model, tokenizer = load_causal_lm(folder), AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer.eos_token_id, *tokenizer.encode(text.rstrip("\n"), add_special_tokens=False)]
    total = 0.0
    for position in range(1, len(ids)):
        half = length // 2
        start = 0 if position < length else half * ((position - length) // half + 1)
        logits = model(torch.tensor([ids[start:position]])).logits[0, -1].double()
        total -= float(torch.log_softmax(logits, dim=0)[ids[position]])
    return total, len(ids) - 1


@pytest.mark.parametrize("length", [256, 20])
def test_the_loss_is_that_of_each_token_given_its_context(
    world: Path, texts: Path, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WINDOW", length)
    monkeypatch.setattr(module, "BATCH_TOKENS", 64)
    expected = [reference(world / "model", text, length) for text in TEXTS]
    loss = text_loss(world / "model", texts, "refuse", device="cpu")
    assert loss.nats == pytest.approx(sum(nats for nats, _ in expected), rel=1e-5)
    assert loss.tokens == sum(count for _, count in expected)
    assert loss.bytes == sum(len(text.rstrip("\n").encode()) for text in TEXTS)
    assert (loss.documents, loss.altered) == (3, 0)


@given(st.integers(1, 60), st.integers(2, 20))
def test_every_token_is_scored_once_with_half_a_window_of_context(tokens: int, length: int) -> None:
    sequence = list(range(tokens))
    scored = []
    for window, first in module._windows(sequence, length):
        assert len(window) <= length
        scored += window[first:]
        for position in range(first, len(window)):
            assert position >= length // 2 or window[0] == 0
    assert scored == sequence[1:]


def test_a_uniform_model_needs_the_logarithm_of_its_vocabulary_for_each_token(
    world: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_causal_lm(world / "model")
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(world / "model").save_pretrained(tmp_path)
    main([f"checkpoint={tmp_path}", f"text={texts / '0.txt'}", "device=cpu"])
    tokens = reference(tmp_path, TEXTS[0], 512)[1]
    expected = tokens * math.log(model.config.vocab_size) / len(TEXTS[0])
    assert capsys.readouterr().out == (
        f"{expected:.4f} nats per byte ({expected / math.log(2):.4f} bits), perplexity {model.config.vocab_size} "
        f"per token: 1 documents, {len(TEXTS[0])} bytes, {tokens} tokens\n"
    )


def test_what_assigns_no_probability_to_text_is_refused(world: Path, texts: Path, tmp_path: Path) -> None:
    encoder = ner_world.write_encoder(tmp_path / "encoder")
    with pytest.raises(UserError, match=r"sees later tokens|no language model"):
        text_loss(encoder, texts, "refuse", device="cpu")
    with pytest.raises(UserError, match="text=nowhere: no such file or folder"):
        main([f"checkpoint={world / 'model'}", "text=nowhere"])
    with pytest.raises(UserError, match="text= and sets= cannot be combined"):
        main([f"checkpoint={world / 'model'}", "text=x", "sets=[aa_one]"])


def test_sampled_text_is_greedy_at_temperature_0_and_a_function_of_the_seed(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sampled(*words: str) -> list[str]:
        generate.main([f"checkpoint={world / 'model'}", "device=cpu", "tokens=12", *words])
        return capsys.readouterr().out.splitlines()

    model, tokenizer = load_causal_lm(world / "model"), AutoTokenizer.from_pretrained(world / "model")
    ids = [tokenizer.eos_token_id, *tokenizer.encode("Juan Cruz", add_special_tokens=False)]
    for _ in range(12):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    expected = tokenizer.decode(ids[1:], skip_special_tokens=True)
    assert "\n".join(sampled("temperature=0", "Juan Cruz")) == expected
    texts = [sampled("seed=3", "Juan", "Juan") for _ in range(2)]
    assert texts[0] == texts[1] != sampled("seed=4", "Juan", "Juan")
    with pytest.raises(UserError, match=r"the prompt has [0-9]+ tokens, but .* accepts at most 256"):
        sampled("x y z " * 200)
