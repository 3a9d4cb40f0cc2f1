"""Everything that fine-tuning builds before training starts: data, tagger, feature extractor, optimizer.

Which parameters are trained depends on `tuning`: `head_only` trains the tag layer on a frozen decoder, `full` trains
all parameters, `lora` trains the tag layer and low-rank adapters in the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from transformers import PreTrainedTokenizerBase

from metapt import randomness
from metapt.config import FinetuneConfig, tuning_lr
from metapt.data.iob2 import TAGS
from metapt.data.labelled_sets import Collection, sample_indices, source_sets
from metapt.errors import UserError
from metapt.finetuning.distributed import Distributed
from metapt.finetuning.feature_cache import FeatureCache
from metapt.finetuning.features import FeatureExtractor, decoder_key
from metapt.finetuning.lora import with_adapters
from metapt.models.base_model import load_base_model
from metapt.runs import Run
from metapt.tagger.encoding import (
    EncodedSet,
    EncodingSettings,
    WordTokenizer,
    encode,
    load_tokenizer,
    special_tokens,
)
from metapt.tagger.model import Tagger, TagLayer
from metapt.training.signals import StopRequest


@dataclass(frozen=True)
class SourceData:
    """The encoded sentences of one split of the source: per labelled set, and all together."""

    parts: list[EncodedSet]
    together: EncodedSet


@dataclass(frozen=True)
class FinetuneSetup:
    """What training and evaluation of one run work with.

    Attributes:
        encoding: how the tagger turns words into windows.
        trained: the module that is trained: the whole tagger, or only its tag layer.
        forward: `trained`, wrapped for distributed training.
    """

    config: FinetuneConfig
    run: Run
    stop: StopRequest
    processes: Distributed
    tokenizer: PreTrainedTokenizerBase
    encoding: EncodingSettings
    word_tokenizer: WordTokenizer
    tagger: Tagger
    train: SourceData
    dev: SourceData
    extract_features: FeatureExtractor
    trained: nn.Module
    forward: nn.Module
    optimizer: AcceleratedOptimizer


def build_setup(
    config: FinetuneConfig,
    run: Run,
    model_dir: Path,
    collection: Collection,
    stop: StopRequest,
    weights_sha256: str,
) -> FinetuneSetup:
    """Build the setup of a run. Writes nothing into the run folder.

    Raises:
        UserError: the model, its tokenizer or the data does not fit the configuration.
    """
    ner, processes = config.ner, Distributed(config.ner.precision)
    accelerator = processes.accelerator
    tokenizer = load_tokenizer(model_dir)
    tagger = _build_tagger(config, model_dir, tokenizer).to(accelerator.device)
    prefix, suffix = ((), ()) if tagger.is_causal else special_tokens(tokenizer)
    encoding = EncodingSettings(ner.prefix_space, ner.max_len, tuple(prefix), tuple(suffix))
    word_tokenizer = encoding.word_tokenizer(tokenizer)
    head_only = config.tuning == "head_only"
    if head_only and processes.world_size > 1:
        raise UserError(
            "tuning=head_only runs in a single process, because the tag layer is small; start one run per GPU instead"
        )
    cache = FeatureCache(ner.cache_dir, ner.cache_gb) if head_only and ner.cache_dir else None
    key = decoder_key(model_dir, weights_sha256, ner, accelerator.device)
    train, dev = (_encode(config, collection, word_tokenizer, split) for split in ("train", "dev"))
    trained = tagger.layer if head_only else tagger
    return FinetuneSetup(
        config=config,
        run=run,
        stop=stop,
        processes=processes,
        tokenizer=tokenizer,
        encoding=encoding,
        word_tokenizer=word_tokenizer,
        tagger=tagger,
        train=train,
        dev=dev,
        extract_features=FeatureExtractor(tagger, ner, accelerator, cache, key),
        trained=trained,
        forward=accelerator.prepare_model(trained),
        optimizer=accelerator.prepare_optimizer(_optimizer(config, tagger)),
    )


def _build_tagger(config: FinetuneConfig, model_dir: Path, tokenizer: PreTrainedTokenizerBase) -> Tagger:
    """Load the decoder, put a new tag layer on it, and select the parameters to train."""
    ner, decoder = config.ner, load_base_model(model_dir)
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
    with randomness.torch_seed(config.train.seed, "tag layer"):
        layer = TagLayer(decoder.config.hidden_size, TAGS, ner.head, ner.dropout)
    decoder.requires_grad_(config.tuning == "full")
    if config.tuning == "lora":
        decoder = with_adapters(decoder, ner.lora_rank, ner.lora_alpha, config.train.seed)
    return Tagger(decoder, layer, ner.subword_pooling)


def _encode(
    config: FinetuneConfig, collection: Collection, word_tokenizer: WordTokenizer, split: str
) -> SourceData:
    """Encode a split of each source set. Training sentences are sampled and truncated, dev sentences are neither."""
    is_train = split == "train"
    sets = [collection.load(name, split) for name in source_sets(collection, config.source)]
    ends = np.cumsum([len(sentences) for sentences in sets])
    limit = config.data.max_train_sentences if is_train else None
    chosen = sample_indices(int(ends[-1]), limit, config.train.seed)
    numbers_by_set = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    parts = [
        encode(
            [sentences[number - (end - len(sentences))] for number in numbers],
            word_tokenizer,
            config.ner.max_len,
            truncate=is_train,
        )
        for sentences, end, numbers in zip(sets, ends, numbers_by_set, strict=True)
        if len(numbers)
    ]
    return SourceData(parts, EncodedSet.concatenate(parts))


def _optimizer(config: FinetuneConfig, tagger: Tagger) -> torch.optim.Optimizer:
    """AdamW with one parameter group for the tag layer and one for the trained parameters of the decoder, if any."""
    rate = tuning_lr(config)
    groups = [{"params": list(tagger.layer.parameters()), "lr": config.ner.head_lr or rate}]
    decoder_parameters = [value for value in tagger.decoder.parameters() if value.requires_grad]
    if decoder_parameters:
        groups.append({"params": decoder_parameters, "lr": rate})
    return torch.optim.AdamW(groups, weight_decay=config.ner.weight_decay, fused=True)
