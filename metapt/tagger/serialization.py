"""The tagger's folder, which is a Hugging Face token-classification model as well.

    config.json          of the decoder, with id2label and, as `tagger`, all that the model class does not know (below)
    model.safetensors    the decoder and the emission layer under the names of the architecture's token-classification class
    tokenizer.json ...   as transformers saves them
    README.md            the model card (metapt/finetuning/model_card.py)

`AutoModelForTokenClassification` loads it without code of ours, and its logits are the emissions at each subword: those at a word's
first or last subword, or their mean over its subwords (`subword_pooling`). The entry `tagger` of config.json holds `head`, `subword_pooling`, `prefix_space`,
`max_len`, `before` and `after` (special tokens around a window), and for a CRF `crf`: `start` [C], `transitions` [C, C] (from, to), `end` [C], and what IOB2 allows,
`allowed_first` [C] and `allowed_pairs` [C, C]. Numbers in JSON have as many digits as give back the same fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_NAME

from metapt.errors import UserError
from metapt.runs import Run
from metapt.tagger.crf import LinearChainCRF
from metapt.tagger.encoding import Reading, load_tokenizer
from metapt.tagger.model import Tagger, TagLayer, load_base

CARD_FILE = "README.md"


def tagger_folder(path: str | Path) -> Path:
    """The tagger's folder, for itself or for a finished fine-tuning run.

    Raises:
        UserError: there is no tagger (any more, or yet).
    """
    path = Path(path).expanduser()
    if (path / "config.json").is_file():
        return path
    run = Run(path)
    if not run.config_file.exists():
        raise UserError(f"{path}: neither a fine-tuning run nor a tagger's folder")
    if not run.is_done:
        raise UserError(f"{path}: this run is not finished")
    if not run.tagger_dir.is_dir():
        raise UserError(f"{path}: this run made no tagger; tune its model first (metapt.finetune)")
    return run.tagger_dir


def save_tagger(folder: Path, tagger: Tagger, tokenizer: PreTrainedTokenizerBase, reading: Reading) -> None:
    """Writes everything but the card into an existing folder."""
    decoder, layer = tagger.decoder, tagger.layer
    config = deepcopy(decoder.config)
    config.id2label = dict(enumerate(layer.tags))
    config.label2id = {tag: index for index, tag in enumerate(layer.tags)}
    config.classifier_dropout = layer.dropout.p
    config.tagger = {
        "head": layer.head_name,
        "subword_pooling": tagger.subword_pooling,
        **asdict(reading),
        **({"crf": _crf_values(layer.sequence)} if isinstance(layer.sequence, LinearChainCRF) else {}),
    }
    architecture, head = _token_classifier(config, default=type(decoder).__name__)
    config.architectures = [architecture]
    config.save_pretrained(folder)
    # not decoder.save_pretrained, which imports deepspeed to see whether the model is wrapped in it
    weights = {f"{decoder.base_model_prefix}.{name}": value for name, value in decoder.state_dict().items()}
    weights |= {f"{head}.{name}": value for name, value in layer.linear.state_dict().items()}
    save_file(weights, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)


def load_tagger(
    folder: Path, dtype: torch.dtype = torch.float32
) -> tuple[Tagger, PreTrainedTokenizerBase, Reading]:
    """What `save_tagger` wrote, in evaluation mode; the decoder in `dtype`, the tag layer always in fp32.

    Raises:
        UserError: the folder is none of a tagger.
    """
    decoder = load_base(folder, dtype)
    settings = getattr(decoder.config, "tagger", None)
    if not isinstance(settings, Mapping):
        raise UserError(f"{folder}: not a tagger's folder (its config.json has no entry `tagger`)")
    try:
        tags = [decoder.config.id2label[index] for index in range(decoder.config.num_labels)]
        layer = TagLayer(
            decoder.config.hidden_size, tags, settings["head"], decoder.config.classifier_dropout
        )
        layer.linear.load_state_dict(_emission_layer(folder, decoder.base_model_prefix))
        if isinstance(layer.sequence, LinearChainCRF):
            own = dict(layer.sequence.named_parameters())
            layer.sequence.load_state_dict({name: torch.tensor(settings["crf"][name]) for name in own})
        before, after = tuple(settings["before"]), tuple(settings["after"])
        reading = Reading(settings["prefix_space"], settings["max_len"], before, after)
        tagger = Tagger(decoder, layer, settings["subword_pooling"]).eval()
    except (KeyError, AttributeError, ValueError, TypeError, RuntimeError, OSError, SafetensorError) as error:
        raise UserError(
            f"{folder}: a damaged tagger ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from None
    return tagger, load_tokenizer(folder), reading


def _crf_values(crf: LinearChainCRF) -> dict[str, Any]:
    values = {**dict(crf.named_parameters()), **dict(crf.named_buffers())}
    return {name: value.detach().cpu().tolist() for name, value in values.items()}


def _token_classifier(config: PretrainedConfig, default: str) -> tuple[str, str]:
    """The architecture's token-classification class, and what it calls its linear layer; (default, "score") without one."""
    found = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING.get(type(config), None)
    if found is None:
        return default, "score"
    with torch.device("meta"):
        model = found(config)
    (head,) = (name for name, part in model.named_children() if isinstance(part, nn.Linear))
    return found.__name__, head


def _emission_layer(folder: Path, base: str) -> dict[str, Tensor]:
    """Weight and bias of the emission layer: all in the file that is not the decoder's."""
    with safe_open(folder / SAFE_WEIGHTS_NAME, framework="pt") as file:
        names = [name for name in file.keys() if not name.startswith(f"{base}.")]  # noqa: SIM118
        return {name.rpartition(".")[2]: file.get_tensor(name).float() for name in names}
