"""The tagger that a fine-tuning run trains: a decoder with a new tag layer, or the tagger of another run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from metapt import randomness
from metapt.config import FinetuneConfig
from metapt.data.iob2 import entity_types, tags_of
from metapt.errors import UserError
from metapt.finetuning.lora import with_adapters
from metapt.models.base_model import load_base_model
from metapt.tagger.model import Tagger, TagLayer
from metapt.tagger.serialization import is_tagger_dir, load_tagger


def build_tagger(
    config: FinetuneConfig, model_dir: Path, tokenizer: PreTrainedTokenizerBase, types: Collection[str]
) -> Tagger:
    """Load the decoder with a new tag layer, or a tagger, and select the parameters to train.

    Args:
        types: the entity types of the training data; a new tag layer has those of `entity_types`.
    Raises:
        UserError: the model, its tokenizer or the tagger does not fit the configuration.
    """
    ner = config.ner
    if is_tagger_dir(model_dir):
        decoder, layer = _load_tagger(config, model_dir, types)
    else:
        decoder = load_base_model(model_dir)
        with randomness.torch_seed(config.train.seed, "tag layer"):
            tags = tags_of(entity_types(types))
            layer = TagLayer(decoder.config.hidden_size, tags, ner.head, ner.dropout)
    if len(tokenizer) > decoder.config.vocab_size:
        raise UserError(
            f"{model_dir}: the tokenizer has {len(tokenizer)} entries, but the model's vocabulary has "
            f"only {decoder.config.vocab_size}"
        )
    max_positions = min(
        getattr(decoder.config, "max_position_embeddings", ner.max_len),
        tokenizer.model_max_length,  # smaller for encoders whose position ids start at 2
    )
    if ner.max_len > max_positions:
        raise UserError(f"ner.max_len={ner.max_len}: {model_dir} supports at most {max_positions} subwords")
    decoder.requires_grad_(config.tuning == "full")
    if config.tuning == "lora":
        decoder = with_adapters(decoder, ner.lora_rank, ner.lora_alpha, config.train.seed)
    return Tagger(decoder, layer, ner.subword_pooling)


def _load_tagger(
    config: FinetuneConfig, folder: Path, types: Collection[str]
) -> tuple[PreTrainedModel, TagLayer]:
    """The decoder and the tag layer of a tagger that is trained further.

    Raises:
        UserError: it tags otherwise than the configuration says.
    """
    ner, (tagger, _, encoding) = config.ner, load_tagger(folder)
    differences = {
        "ner.head": (tagger.layer.head_name, ner.head),
        "ner.subword_pooling": (tagger.subword_pooling, ner.subword_pooling),
        "ner.prefix_space": (encoding.prefix_space, ner.prefix_space),
    }
    for key, (trained_with, value) in differences.items():
        if trained_with != value:
            raise UserError(
                f"{folder}: this tagger was trained with {key}={trained_with}; set it to continue"
            )
    if unknown := sorted(set(types) - {tag[2:] for tag in tagger.layer.tags}):
        raise UserError(
            f"{folder}: this tagger does not know the entity types {', '.join(unknown)} of source={config.source}; rename them, "
            "or read them as O, with `types` in a description (data.corpora)"
        )
    tagger.layer.dropout.p = ner.dropout
    return tagger.decoder, tagger.layer
