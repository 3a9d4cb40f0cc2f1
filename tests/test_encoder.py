"""Encoders as taggers: special tokens, attention mask, fine-tuning, and models from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from accelerate import Accelerator
from ner_world import labelled, make_encoder_tokenizer, make_tokenizer, write_encoder, write_world
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, LlamaConfig, LlamaModel

import metapt
from metapt.config import commandline
from metapt.data.iob2 import TAGS, Sentence
from metapt.errors import OperationalError, UserError
from metapt.files import read_jsonl
from metapt.finetuning.run_finetuning import finetune
from metapt.models.base_model import is_causal, load_base_model
from metapt.models.pretrained import model_folder
from metapt.runs import Run
from metapt.tagger.encoding import WordTokenizer, encode, special_tokens, word_features
from metapt.tagger.model import Tagger, TagLayer
from metapt.tagger.predict import predict
from metapt.tagger.serialization import load_tagger
from metapt.training.signals import StopRequest


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder (`model`) and a collection (`uner`)."""
    return write_world(tmp_path_factory.mktemp("world"), write_encoder)


def word_tokenizer_of(model: Path, max_len: int) -> WordTokenizer:
    tokenizer = AutoTokenizer.from_pretrained(model)
    return WordTokenizer(tokenizer, True, (max_len - 2) // 2, special_tokens(tokenizer))


def test_special_tokens_are_found() -> None:
    assert special_tokens(make_encoder_tokenizer()) == ([0], [2])
    assert special_tokens(make_tokenizer()) == ([], [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_a_decoder_is_causal(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
    encoder = BertModel(BertConfig(**shape, num_attention_heads=2)).to(dtype)
    decoder = LlamaModel(LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=2)).to(dtype).train()
    assert (is_causal(encoder), is_causal(decoder)) == (False, True)
    assert decoder.training
    assert all(parameter.grad is None for parameter in decoder.parameters())


@pytest.mark.parametrize("subword_pooling", ["first", "last"])
def test_word_features_agree_with_transformers(world: Path, subword_pooling: str) -> None:
    """Padded batches are compared with single sentences that transformers tokenizes from a list of words."""
    model, tokenizer = (
        AutoModel.from_pretrained(world / "model"),
        AutoTokenizer.from_pretrained(world / "model"),
    )
    tagger = Tagger(load_base_model(world / "model"), TagLayer(32, TAGS, "crf", 0.1), subword_pooling)
    assert tagger.decoder.pooler is None
    sentences = [*labelled(9, 5), Sentence("one", ("Cebu",), ("B-LOC",))]
    found = word_features(
        tagger,
        encode(sentences, word_tokenizer_of(world / "model", 64), 64, TAGS, split=False),
        4,
        Accelerator(),
    )
    expected = []
    for sentence in sentences:
        inputs = tokenizer(list(sentence.words), is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            states = model.eval()(**inputs).last_hidden_state[0]
        word_ids = inputs.word_ids()
        for word in range(len(sentence.words)):
            own = [index for index, number in enumerate(word_ids) if number == word]
            is_space = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0, own[0]].item()) == "▁"
            expected.append(states[own[int(is_space) if subword_pooling == "first" else -1]])
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_windows_of_long_sentences_have_special_tokens(world: Path) -> None:
    long = Sentence(
        "long", tuple(" ".join(word for each in labelled(9, 6) for word in each.words).split()), ()
    )
    long = Sentence("long", long.words, ("O",) * len(long.words))
    word_tokenizer = word_tokenizer_of(world / "model", 16)
    encoded = encode([long], word_tokenizer, 16, TAGS, split=False)
    assert len(encoded.windows) > 3
    read = []
    for window in encoded.windows:
        assert len(window.subwords) <= 16
        assert (window.subwords[0], window.subwords[-1]) == (0, 2)
        read += [
            window.subwords[a : b + 1].tolist() for a, b in zip(window.firsts, window.lasts, strict=True)
        ]
    assert read == [word.ids[word.first :] for word in word_tokenizer(long.words)]


def tune(world: Path, run_dir: Path, *more: str) -> Run:
    words = [f"checkpoint={world / 'model'}", "source=aa_one", f"data.uner_dir={world / 'uner'}"]
    words += [f"run_dir={run_dir}", "ner.batch_size=8", "ner.max_len=64", "ner.patience=9", *more]
    finetune(commandline.load("finetune", words), StopRequest())
    return Run(run_dir)


def test_encoder_is_fine_tuned_like_a_decoder(world: Path, tmp_path: Path) -> None:
    run = tune(
        world, tmp_path / "run", "tuning=full", "ner.lr=0.006", "ner.head_lr=0.02", "ner.max_epochs=12"
    )
    result = run.result()
    assert result["origin"] == {"model": "model"}
    assert result["dev_f1"] > 0.8
    tagger, _, _ = load_tagger(run.tagger_dir)
    sentences = labelled(9, 3)  # the test split of aa_one
    encoded = encode(sentences, word_tokenizer_of(run.tagger_dir, 64), 64, TAGS, split=False)
    again = predict(tagger.layer, word_features(tagger, encoded, 3, Accelerator()), encoded, 4)
    predicted = [line["predicted"] for line in read_jsonl(run.predictions_dir / "aa_one.jsonl")]
    assert [each.predicted for each in again] == predicted
    found = metapt.load_tagger(run.path).tag([list(each.words) for each in sentences])
    assert [list(each.tags) for each in found] == predicted


def test_frozen_encoder_and_its_maximum_length(world: Path, tmp_path: Path) -> None:
    run = tune(world, tmp_path / "run", "ner.lr=0.05", "ner.max_epochs=10", "ner.subword_pooling=last")
    assert run.result()["dev_f1"] > 0.6
    with pytest.raises(UserError, match="at most 64 subwords"):
        tune(world, tmp_path / "other", "ner.max_len=66")


def test_model_from_the_hub(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub client finds the model in a cache with its layout; no request is sent."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--some--encoder"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / ("a" * 40)).symlink_to(world / "model")
    run = tune(world, tmp_path / "run", "checkpoint=hub:some/encoder", "ner.max_epochs=1", "ner.lr=0.02")
    assert run.result()["origin"] == {"model": "some/encoder", "commit": "a" * 40}
    with pytest.raises(OperationalError, match=r"model some/other \(main\): cannot be downloaded"):
        model_folder("hub:some/other")
    with pytest.raises(UserError, match=r"model a b \(main\): cannot be downloaded"):
        model_folder("hub:a b")
