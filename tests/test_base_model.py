"""Loading model folders: weights saved from wrappers, missing weights, architectures that can and cannot be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as tf
from ner_world import write_checkpoint, write_encoder
from safetensors.torch import load_file, save_file
from tuned import tune

from metapt.data.iob2 import TAGS
from metapt.errors import UserError
from metapt.files import file_sha256
from metapt.models.base_model import is_causal, load_base_model
from metapt.tagger.encoding import EncodingSettings, load_tokenizer
from metapt.tagger.model import Tagger, TagLayer
from metapt.tagger.serialization import load_tagger, save_tagger, weights_sha256

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 320}
ATTENTION = {"num_attention_heads": 4, "max_position_embeddings": 256}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("decoder"))


def rewritten(source: Path, folder: Path, rename) -> Path:
    """A copy of a model folder with renamed weights; those renamed to None are left out."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    renamed = {rename(name): value for name, value in weights.items() if rename(name)}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod.", "_orig_mod.module."]
)
def test_names_of_wrappers_are_removed(decoder: Path, tmp_path: Path, prefix: str) -> None:
    expected = load_base_model(decoder).state_dict()
    found = load_base_model(rewritten(decoder, tmp_path / "m", lambda name: prefix + name)).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (lambda name: None if ".layers.1." in name else name, r"lack layers\.1\.\S+, .* and 6 more"),
        (lambda name: None if name == "model.norm.weight" else name, r"lack norm\.weight, so"),
        (lambda name: f"student.{name}", r"lack embed_tokens\.weight"),
        (lambda name: name.replace("q_proj", "q_proj.base_layer"), "LoRA adapters that were not merged"),
    ],
)
def test_missing_weights_are_refused(decoder: Path, tmp_path: Path, rename, message: str) -> None:
    folder = rewritten(decoder, tmp_path / "m", rename)
    with pytest.raises(UserError, match=message):
        load_base_model(folder)


def test_fine_tuning_of_random_weights_is_refused(world: Path, tmp_path: Path) -> None:
    folder = rewritten(world / "model", tmp_path / "m", lambda name: None if "layers.1." in name else name)
    with pytest.raises(UserError, match="would be random"):
        tune(world, tmp_path / "run", f"checkpoint={folder}")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_an_encoder_without_pooler_is_whole(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path)
    assert not any("pooler" in name for name in load_file(folder / "model.safetensors"))
    assert not is_causal(load_base_model(folder))


@pytest.mark.parametrize(
    ("config", "causal"),
    [
        (tf.DebertaV2Config(**SIZES, **ATTENTION, relative_attention=True, position_buckets=32), False),
        (tf.Gemma2Config(**SIZES, **ATTENTION, num_key_value_heads=2, head_dim=8, pad_token_id=0), True),
        (tf.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=320), True),
        (tf.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, vocab_size=320), True),
        (tf.GPTJConfig(n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64, vocab_size=320), True),
        (tf.XGLMConfig(d_model=32, ffn_dim=64, num_layers=2, attention_heads=4, vocab_size=320), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_attention_implementation_is_that_of_transformers(
    tmp_path: Path, config: tf.PretrainedConfig, causal: bool
) -> None:
    torch.manual_seed(0)
    tf.AutoModel.from_config(config).save_pretrained(tmp_path)
    model = load_base_model(tmp_path)
    assert is_causal(model) == causal
    expected = tf.AutoModel.from_pretrained(tmp_path)
    assert model.config._attn_implementation == expected.config._attn_implementation
    subwords = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        states = [each.eval()(input_ids=subwords).last_hidden_state for each in (model, expected)]
    assert torch.equal(*states)


def t5() -> tf.PreTrainedModel:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 320}
    return tf.T5ForConditionalGeneration(tf.T5Config(**sizes))


def gemma3() -> tf.PreTrainedModel:
    """A decoder with a vision encoder."""
    text = tf.Gemma3TextConfig(**SIZES, **ATTENTION, num_key_value_heads=2, head_dim=8, pad_token_id=0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = tf.SiglipVisionConfig(**sizes, image_size=28, patch_size=14)
    tokens = {"mm_tokens_per_image": 4, "image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7}
    return tf.Gemma3ForConditionalGeneration(
        tf.Gemma3Config(text_config=text, vision_config=vision, **tokens)
    )


@pytest.mark.parametrize(
    ("build", "part", "layer", "causal"),
    [
        (t5, lambda whole: whole.get_encoder(), "encoder.block.1.", False),
        (gemma3, lambda whole: whole.model.language_model, "language_model.model.layers.1.", True),
    ],
    ids=["encoder of T5", "text part of Gemma 3"],
)
def test_the_part_that_reads_text_is_used(
    decoder: Path, tmp_path: Path, build, part, layer: str, causal: bool
) -> None:
    torch.manual_seed(0)
    whole = build().eval()
    whole.save_pretrained(tmp_path / "whole")
    model = load_base_model(tmp_path / "whole").eval()
    assert is_causal(model) == causal
    subwords = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = part(whole)(input_ids=subwords).last_hidden_state
        assert torch.equal(model(input_ids=subwords).last_hidden_state, expected)
    tagger = Tagger(model, TagLayer(32, TAGS, "crf", 0.0), "first").eval()
    (tmp_path / "tagger").mkdir()
    save_tagger(tmp_path / "tagger", tagger, load_tokenizer(decoder), EncodingSettings(True, 64))
    again, _, _ = load_tagger(tmp_path / "tagger")
    with torch.no_grad():
        assert torch.equal(again.decoder(input_ids=subwords).last_hidden_state, expected)
    names = load_file(tmp_path / "whole" / "model.safetensors")
    assert any(name.startswith(layer) for name in names)
    cut = rewritten(
        tmp_path / "whole", tmp_path / "cut", lambda name: None if name.startswith(layer) else name
    )
    with pytest.raises(UserError, match=r"the weights lack \S+\.1\.\S+, .* would be random"):
        load_base_model(cut)
    others = ("decoder.", "vision_tower.", "model.vision_tower.")
    load_base_model(
        rewritten(
            tmp_path / "whole", tmp_path / "rest", lambda name: None if name.startswith(others) else name
        )
    )


def test_other_architectures_are_refused_in_one_line(decoder: Path, tmp_path: Path) -> None:
    bart = tf.BartConfig(d_model=32, encoder_layers=1, decoder_layers=1, vocab_size=320)
    bart.save_pretrained(tmp_path / "bart")
    quantized = shutil.copytree(decoder, tmp_path / "quantized")
    config = json.loads((quantized / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantized / "config.json").write_text(json.dumps(config), encoding="utf-8")
    unknown = shutil.copytree(decoder, tmp_path / "unknown")
    (unknown / "config.json").write_text('{"model_type": "other"}', encoding="utf-8")
    for name, message in (
        ("bart", "Bart is an encoder-decoder"),
        ("quantized", "cannot be loaded as a model"),
        ("unknown", "cannot be loaded as a model"),
    ):
        with pytest.raises(UserError, match=message) as raised:
            load_base_model(tmp_path / name)
        assert "\n" not in str(raised.value)


def test_models_without_hidden_states_of_subwords_are_refused() -> None:
    canine = tf.CanineModel(
        tf.CanineConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    )
    with pytest.raises(UserError, match="CanineModel cannot be used as a tagger"):
        is_causal(canine)


def test_folder_without_tokenizer(decoder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(decoder, tmp_path / "m")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match=r"contains no tokenizer\.json"):
        load_tokenizer(folder)


def test_pickled_weights_are_read_as_tensors_only(decoder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(decoder, tmp_path / "bin")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    found, expected = (load_base_model(path).state_dict() for path in (folder, decoder))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert weights_sha256(folder) == file_sha256(folder / "pytorch_model.bin")
    torch.save({**weights, "code": Opener(tmp_path / "opened")}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded as a model"):
        load_base_model(folder)
    assert not (tmp_path / "opened").exists()


class Opener:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")
