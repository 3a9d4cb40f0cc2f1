"""Tokenizers: training, special tokens, saving and loading, errors."""

from __future__ import annotations

import os
import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig

from metapt.data import tokenizers
from metapt.data.hub_files import HubFiles, tokenizer_files
from metapt.data.tokenizers import (
    encode,
    load_tokenizer,
    read_tokenizer,
    train_tokenizer,
    with_special_tokens,
)
from metapt.errors import UserError

TEXTS = [
    f"The {noun} of town {number} was seen by Ana's {noun}.\n"
    for noun in ("dog", "river")
    for number in range(40)
]
TRAINED = train_tokenizer(TEXTS, 320)
SPELLINGS = ["<|mask|>", "<|endoftext|>", "a<|mask|>b", " <|endoftext|>\n<|mask|> ", "<|mask|><|mask|>"]


def test_training_is_deterministic_and_appends_special_tokens() -> None:
    assert tokenizers.vocabulary_size(TRAINED) == 320
    assert (TRAINED.eos_token_id, TRAINED.mask_token_id) == (318, 319)
    again = train_tokenizer(TEXTS, 320)
    assert again.backend_tokenizer.to_str() == TRAINED.backend_tokenizer.to_str()
    assert tokenizers.content_sha256(again) == tokenizers.content_sha256(TRAINED)


def test_a_small_text_gives_fewer_entries_but_covers_all_bytes() -> None:
    small = train_tokenizer(["ab"], 5000)
    assert tokenizers.vocabulary_size(small) < 300
    assert small.decode(encode(small, ["żółw 漢字"])[0]) == "żółw 漢字"


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.sampled_from(SPELLINGS))
def test_round_trip_without_special_ids(text: str) -> None:
    ids = encode(TRAINED, [text])[0]
    assert TRAINED.decode(ids, clean_up_tokenization_spaces=False) == unicodedata.normalize("NFC", text)
    assert not {TRAINED.eos_token_id, TRAINED.mask_token_id} & set(ids)


def test_save_and_load_in_a_model_folder(tmp_path: Path) -> None:
    info = tokenizers.save_tokenizer(TRAINED, tmp_path, "bpe-320")
    LlamaConfig().save_pretrained(tmp_path)
    texts = [*TEXTS[:5], *SPELLINGS, "  two  spaces", "żółw"]
    expected = encode(TRAINED, texts)
    for loaded in (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert encode(loaded, texts) == expected
        assert loaded(texts, add_special_tokens=False).input_ids == expected
        assert (loaded.eos_token_id, loaded.mask_token_id) == (info.eos_id, info.mask_id) == (318, 319)
    assert (info.size, info.name) == (320, "bpe-320")


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder with a typical foreign tokenizer: own special tokens, a template that adds one, truncation."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>"])
    template = [("<s>", tokenizer.token_to_id("<s>"))]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=template)
    tokenizer.enable_truncation(3)
    folder = tmp_path / "foreign"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_a_tokenizer_json_keeps_its_ids_and_gets_a_mask_token(foreign: Path) -> None:
    raw = Tokenizer.from_file(str(foreign / "tokenizer.json"))
    raw.no_truncation()
    read = read_tokenizer(str(foreign / "tokenizer.json"))
    assert read.eos_token == "</s>"
    assert read.eos_token_id == raw.token_to_id("</s>")
    assert read.mask_token_id == raw.get_vocab_size() == tokenizers.vocabulary_size(read) - 1
    assert encode(read, TEXTS) == [raw.encode(text, add_special_tokens=False).ids for text in TEXTS]
    specials = {raw.token_to_id(token) for token in ("<s>", "</s>", "<pad>")} | {read.mask_token_id}
    assert not specials & set(encode(read, ["<s></s> <pad> <|mask|>"])[0])


def test_a_folder_keeps_the_configured_special_tokens(foreign: Path) -> None:
    (foreign / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<pad>", "bos_token": "<s>"}'
    )
    read = read_tokenizer(str(foreign))
    assert (read.eos_token, read.bos_token, read.mask_token) == ("<pad>", "<s>", "<|mask|>")


def test_hub_name(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[HubFiles] = []

    def download(files: HubFiles) -> Path:
        requested.append(files)
        return foreign

    monkeypatch.setattr(tokenizers, "download", download)
    assert encode(read_tokenizer("someone/something"), TEXTS) == encode(
        read_tokenizer(str(foreign / "tokenizer.json")), TEXTS
    )
    assert requested == [tokenizer_files("someone/something")]


def test_a_vocabulary_with_the_spelling_of_a_special_token() -> None:
    backend = Tokenizer(models.WordLevel({"<|mask|>": 0, "a": 1, "?": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(UserError, match=r"encodes the text <\|mask\|> as its special token"):
        with_special_tokens(backend, {})


@pytest.mark.parametrize("name", ["missing/tokenizer.json", "./missing", "/nowhere/at/all"])
def test_missing_path(name: str) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_tokenizer(name)


def test_unusable_tokenizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"this folder contains no tokenizer\.json"):
        read_tokenizer(str(tmp_path))
    with pytest.raises(UserError, match=r"contains no tokenizer\.json"):
        load_tokenizer(tmp_path)
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer\.json"):
        read_tokenizer(str(broken))

    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    broken.unlink()
    monkeypatch.setattr(tokenizers, "download", lambda files: tmp_path)
    with pytest.raises(UserError, match=r"data\.tokenizer=some/name: cannot be loaded") as raised:
        read_tokenizer("some/name")
    assert "\n" not in str(raised.value)


@pytest.mark.real_data
def test_olmo_tokenizer(tmp_path: Path) -> None:
    file = os.environ.get("METAPT_TOKENIZER")
    if not file:
        pytest.skip("METAPT_TOKENIZER is not set")
    raw = Tokenizer.from_file(file)
    shutil.copy(file, tmp_path / "tokenizer.json")
    read = read_tokenizer(str(tmp_path / "tokenizer.json"))
    assert raw.get_vocab_size() == 50_280
    assert (read.eos_token, read.eos_token_id, read.mask_token_id) == ("<|endoftext|>", 50_279, 50_280)
    assert tokenizers.vocabulary_size(read) == 50_281 <= 50_304
    texts = [*TEXTS, "Malapit kay  Maria si Juan.", "a\n\n    b"]
    assert encode(read, texts) == [encoding.ids for encoding in raw.encode_batch(texts)]
    assert not {1, 50_279, 50_280} & set(encode(read, ["<|padding|><|endoftext|><|mask|>"])[0])
