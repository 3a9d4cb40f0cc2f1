"""Everything that fine-tuning builds before training starts: data, tagger, feature extractor, optimizer.

Which parameters are trained depends on `tuning`: `head_only` trains the tag layer on a frozen decoder, `full` trains
all parameters, `lora` trains the tag layer and low-rank adapters in the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from transformers import PreTrainedTokenizerBase

from metapt.config import FinetuneConfig, tag_layer_lr, tuning_lr
from metapt.data.iob2 import Sentence, types_in
from metapt.errors import UserError
from metapt.finetuning.build_tagger import build_tagger
from metapt.finetuning.distributed import Distributed
from metapt.finetuning.feature_cache import FeatureCache
from metapt.finetuning.features import FeatureExtractor, decoder_key
from metapt.finetuning.inputs import FinetuneInputs
from metapt.runs import Run
from metapt.tagger.encoding import (
    EncodedSet,
    EncodingSettings,
    WordTokenizer,
    encode,
    load_tokenizer,
    special_tokens,
)
from metapt.tagger.model import Tagger
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
        dev: None if the number of updates is fixed in advance, since nothing is selected then.
        encoding: how the tagger turns words into windows.
        trained: the module that is trained: the whole tagger, or only its tag layer.
        forward: `trained`, wrapped for distributed training.
    """

    config: FinetuneConfig
    inputs: FinetuneInputs
    run: Run
    stop: StopRequest
    processes: Distributed
    tokenizer: PreTrainedTokenizerBase
    encoding: EncodingSettings
    word_tokenizer: WordTokenizer
    tagger: Tagger
    train: SourceData
    dev: SourceData | None
    extract_features: FeatureExtractor
    trained: nn.Module
    forward: nn.Module
    optimizer: AcceleratedOptimizer


def build_setup(config: FinetuneConfig, inputs: FinetuneInputs, run: Run, stop: StopRequest) -> FinetuneSetup:
    """Build the setup of a run. Writes nothing into the run folder.

    Raises:
        UserError: the model, its tokenizer or the data does not fit the configuration.
    """
    ner, processes = config.ner, Distributed(config.ner.precision, config.device)
    accelerator, sets, model_dir = processes.accelerator, inputs.sets, inputs.model_dir
    read = [sentences for split in sets.splits for sentences in sets.sentences(split)]
    types = types_in(sentence for sentences in read for sentence in sentences)
    tokenizer = load_tokenizer(model_dir)
    tagger = build_tagger(config, model_dir, tokenizer, types).to(accelerator.device)
    tags = tagger.layer.tags
    prefix, suffix = ((), ()) if tagger.is_causal else special_tokens(tokenizer)
    encoding = EncodingSettings(ner.prefix_space, ner.max_len, tuple(prefix), tuple(suffix))
    word_tokenizer = encoding.word_tokenizer(tokenizer)
    head_only = config.tuning == "head_only"
    if head_only and processes.world_size > 1:
        raise UserError(
            "tuning=head_only runs in a single process, because the tag layer is small; start one run per GPU instead"
        )
    cache = FeatureCache(ner.cache_dir, ner.cache_gb) if head_only and ner.cache_dir else None
    key = decoder_key(model_dir, inputs.fingerprints["weights"], ner, processes.precision, accelerator.device)
    trained = tagger.layer if head_only else tagger
    return FinetuneSetup(
        config=config,
        inputs=inputs,
        run=run,
        stop=stop,
        processes=processes,
        tokenizer=tokenizer,
        encoding=encoding,
        word_tokenizer=word_tokenizer,
        tagger=tagger,
        train=_encode(sets.training_sample(), word_tokenizer, ner.max_len, tags, split=True),
        dev=_encode(sets.sentences("dev"), word_tokenizer, ner.max_len, tags, split=False)
        if "dev" in sets.splits
        else None,
        extract_features=FeatureExtractor(tagger, ner, accelerator, cache, key),
        trained=trained,
        forward=accelerator.prepare_model(trained),
        optimizer=accelerator.prepare_optimizer(_optimizer(config, tagger)),
    )


def _encode(
    sets: list[list[Sentence]], word_tokenizer: WordTokenizer, max_len: int, tags: Sequence[str], split: bool
) -> SourceData:
    """Encode the sentences of each source set, whole or in windows of `max_len` subwords."""
    parts = [encode(sentences, word_tokenizer, max_len, tags, split=split) for sentences in sets if sentences]
    return SourceData(parts, EncodedSet.concatenate(parts))


def _optimizer(config: FinetuneConfig, tagger: Tagger) -> torch.optim.Optimizer:
    """AdamW with one parameter group for the tag layer and one for the trained parameters of the decoder, if any."""
    groups = [{"params": list(tagger.layer.parameters()), "lr": tag_layer_lr(config, tagger.width)}]
    decoder_parameters = [value for value in tagger.decoder.parameters() if value.requires_grad]
    if decoder_parameters:
        groups.append({"params": decoder_parameters, "lr": tuning_lr(config, tagger.width)})
    return torch.optim.AdamW(groups, weight_decay=config.ner.weight_decay, fused=True)


def require_shots(config: FinetuneConfig, sampled: int) -> None:
    """Refuse to continue a tagger on fewer sentences than requested, as a curve over k would count them as k.

    Raises:
        UserError: there are fewer training sentences that no test set has.
    """
    requested = config.data.max_train_sentences
    if requested is not None and sampled < requested:
        raise UserError(
            f"data.max_train_sentences={requested}: {config.source} has only {sampled} training sentences that are in no test set"
        )


def require_precision(run: Run, precision: str) -> None:
    """Refuse to go on in another precision than that of the checkpoints: ner.precision=auto means another one on another device.

    Raises:
        UserError: the run was trained in another precision so far.
    """
    earlier = [entry["precision"] for entry in run.starts() if "precision" in entry]
    if run.checkpoints() and earlier and earlier[-1] != precision:
        raise UserError(
            f"{run.path}: trained in {earlier[-1]} so far, but ner.precision=auto means {precision} on this device; resume it on the "
            "device where it began, or start another run"
        )
