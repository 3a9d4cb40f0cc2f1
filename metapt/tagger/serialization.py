"""The folder of a saved tagger, which is also a Hugging Face token-classification model.

    config.json          of the decoder, with id2label, and an entry `tagger` with what the model class does not know
    model.safetensors    decoder and emission layer, named as in the token-classification class of the architecture
    tokenizer.json ...   as transformers saves them
    README.md            the model card (metapt/finetuning/model_card.py)

If the architecture has a token-classification class that is the model with one linear layer on top,
`AutoModelForTokenClassification` loads the folder without metapt (`loads_in_transformers` checks it). Its logits are the emissions at each subword; those
of a word are the logits at its first or last subword, or the mean from the first to the last (`subword_pooling`). The
first is the first subword that completes a character of the word; if `prefix_space` is true, a space is put before the
word unless it would be a subword of its own (metapt/data/word_subwords.py).

The entry `tagger` of config.json has the keys `head`, `subword_pooling`, `prefix_space`, `max_len`, `prefix_tokens` and
`suffix_tokens` (special tokens around a window) and, for a CRF, `crf`: `start` [C], `transitions` [C, C] (from, to),
`end` [C], and the constraints of IOB2, `allowed_first` [C] and `allowed_pairs` [C, C]. The numbers in JSON have enough
digits to restore the same fp32 values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import SAFE_WEIGHTS_NAME

from metapt.errors import UserError, first_line
from metapt.files import file_sha256
from metapt.models.base_model import load_base_model
from metapt.runs import Run
from metapt.tagger.crf import LinearChainCRF
from metapt.tagger.encoding import EncodingSettings, load_tokenizer
from metapt.tagger.model import Tagger, TagLayer

CARD_FILE = "README.md"
PROBE_SUBWORDS = 8  # length of the input on which `loads_in_transformers` compares logits
LINEAR_NAMES = (
    "classifier",
    "score",
)  # of the linear layer in the token-classification classes of transformers


def find_tagger_dir(path: str | Path) -> Path:
    """Return the tagger folder of a finished fine-tuning run, or the path itself if it is a tagger folder.

    Raises:
        UserError: there is no tagger.
    """
    path = Path(path).expanduser()
    if (path / "config.json").is_file():
        return path
    run = Run(path)
    if not run.config_file.exists():
        raise UserError(f"{path}: neither a fine-tuning run nor a tagger folder")
    if not run.is_done:
        raise UserError(f"{path}: this run is not finished")
    if not run.tagger_dir.is_dir():
        raise UserError(f"{path}: this run has no tagger; fine-tune its model first (metapt finetune)")
    return run.tagger_dir


def is_tagger_dir(folder: Path) -> bool:
    """Whether a model folder is one that `save_tagger` wrote."""
    try:
        return "tagger" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def weights_sha256(folder: Path) -> str:
    """Hash the weights of a model folder; the checksums of several files are joined by +.

    Those of a CRF are in config.json, which therefore counts in the folder of a tagger.

    Raises:
        UserError: the folder has neither *.safetensors nor *.bin files.
    """
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        raise UserError(f"{folder}: contains neither *.safetensors nor *.bin files")
    if is_tagger_dir(folder):
        files.append(folder / "config.json")
    return "+".join(file_sha256(path) for path in files)


def save_tagger(
    folder: Path, tagger: Tagger, tokenizer: PreTrainedTokenizerBase, settings: EncodingSettings
) -> None:
    """Write everything but the model card into an existing folder."""
    decoder, layer = tagger.decoder, tagger.layer
    config = deepcopy(decoder.config)
    config.id2label = dict(enumerate(layer.tags))
    config.label2id = {tag: index for index, tag in enumerate(layer.tags)}
    config.classifier_dropout = layer.dropout.p
    config.tagger = {
        "head": layer.head_name,
        "subword_pooling": tagger.subword_pooling,
        **asdict(settings),
        **({"crf": _crf_values(layer.ner_head)} if isinstance(layer.ner_head, LinearChainCRF) else {}),
    }
    architecture, linear = _token_classifier(config, default=type(decoder).__name__)
    config.architectures = [architecture]
    config.save_pretrained(folder)
    # not decoder.save_pretrained, which imports deepspeed to see whether the model is wrapped in it
    tied = set(decoder.all_tied_weights_keys)  # stored once, and tied again by transformers
    weights = {
        f"{decoder.base_model_prefix}.{name}": value
        for name, value in decoder.state_dict().items()
        if name not in tied
    }
    weights |= {f"{linear}.{name}": value for name, value in layer.linear.state_dict().items()}
    save_file(weights, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)


def load_tagger(
    folder: Path, dtype: torch.dtype = torch.float32
) -> tuple[Tagger, PreTrainedTokenizerBase, EncodingSettings]:
    """Load what `save_tagger` wrote, in evaluation mode.

    Args:
        dtype: of the decoder; the tag layer is always fp32.
    Raises:
        UserError: the folder is not a tagger folder.
    """
    decoder = load_base_model(folder, dtype)
    values = getattr(decoder.config, "tagger", None)
    if not isinstance(values, Mapping):
        raise UserError(f"{folder}: not a tagger folder (its config.json has no entry `tagger`)")
    try:
        tags = [decoder.config.id2label[index] for index in range(decoder.config.num_labels)]
        layer = TagLayer(decoder.config.hidden_size, tags, values["head"], decoder.config.classifier_dropout)
        layer.linear.load_state_dict(_emission_layer(folder, decoder.base_model_prefix))
        if isinstance(layer.ner_head, LinearChainCRF):
            names = dict(layer.ner_head.named_parameters())
            layer.ner_head.load_state_dict({name: torch.tensor(values["crf"][name]) for name in names})
        settings = EncodingSettings(
            values["prefix_space"],
            values["max_len"],
            tuple(values["prefix_tokens"]),
            tuple(values["suffix_tokens"]),
        )
        tagger = Tagger(decoder, layer, values["subword_pooling"]).eval()
    except (KeyError, AttributeError, ValueError, TypeError, RuntimeError, OSError, SafetensorError) as error:
        raise UserError(f"{folder}: damaged tagger ({type(error).__name__}: {first_line(error)})") from None
    return tagger, load_tokenizer(folder), settings


@torch.no_grad()
def loads_in_transformers(folder: Path, tagger: Tagger) -> bool:
    """Whether transformers alone, without metapt, loads a saved tagger and computes its emissions.

    False for architectures without a token-classification class (OLMo 2, OPT), or whose class has further layers
    (ModernBERT).

    Args:
        folder: written by `save_tagger`.
        tagger: what was saved.
    """
    try:
        model = AutoModelForTokenClassification.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32
        ).eval()
        subwords = torch.arange(PROBE_SUBWORDS)[None] % tagger.decoder.config.vocab_size
        logits = model(input_ids=subwords).logits
    except (ValueError, KeyError, AttributeError, TypeError, RuntimeError, OSError):
        return False
    decoder = tagger.decoder.eval()
    states = decoder(input_ids=subwords.to(decoder.device)).last_hidden_state.float()
    emissions = tagger.layer.linear(states).cpu()
    return logits.shape == emissions.shape and torch.allclose(logits, emissions, rtol=1e-3, atol=1e-3)


def _crf_values(crf: LinearChainCRF) -> dict[str, Any]:
    values = {**dict(crf.named_parameters()), **dict(crf.named_buffers())}
    return {name: value.detach().cpu().tolist() for name, value in values.items()}


def _token_classifier(config: PretrainedConfig, default: str) -> tuple[str, str]:
    """Return the token-classification class of an architecture and the name of its linear layer.

    An architecture without such a class gives (default, "score").
    """
    found = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING.get(type(config), None)
    if found is None:
        return default, "score"
    with torch.device("meta"):
        model = found(config)
    linears = [name for name, part in model.named_children() if isinstance(part, nn.Linear)]
    known = [name for name in linears if name in LINEAR_NAMES]
    return found.__name__, next(iter(known or linears), "score")


def _emission_layer(folder: Path, base_prefix: str) -> dict[str, Tensor]:
    """Load weight and bias of the emission layer: everything in the file that does not belong to the decoder."""
    with safe_open(folder / SAFE_WEIGHTS_NAME, framework="pt") as file:
        names = [name for name in file.keys() if not name.startswith(f"{base_prefix}.")]  # noqa: SIM118
        return {name.rpartition(".")[2]: file.get_tensor(name).float() for name in names}
