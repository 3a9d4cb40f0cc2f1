"""Shared by the NER tests: a small decoder and its tokenizer, a small encoder, and labelled sentences they can learn."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from metapt.data.iob2 import Sentence, write_iob2

NAMES = {
    "PER": ("Juan Cruz", "Maria", "Ana Lim", "Pedro"),
    "LOC": ("Cebu", "Davao City", "Iloilo"),
    "ORG": ("Red Cross", "Senado"),
}
TEMPLATES = (
    "PER lives in LOC .",
    "PER works for ORG in LOC .",
    "the ORG moved to LOC .",
    "it rained all day .",
    "PER met PER .",
)
NOTHING = "\u200d"  # the tokenizer drops this character, so it has no subword


def labelled(count: int, seed: int) -> list[Sentence]:
    """Sample sentences from the templates."""
    rng = random.Random(seed)
    sentences = []
    for number in range(count):
        words: list[str] = []
        tags: list[str] = []
        for slot in rng.choice(TEMPLATES).split():
            name = rng.choice(NAMES[slot]).split() if slot in NAMES else [slot]
            words += name
            tags += [f"B-{slot}", *[f"I-{slot}"] * (len(name) - 1)] if slot in NAMES else ["O"]
        sentences.append(Sentence(f"s{number}", tuple(words), tuple(tags)))
    return sentences


def write_collection(folder: Path, train: int = 48) -> Path:
    """Write a folder like that of Universal NER: aa_one with all three splits, bb_two with a test split only."""
    for name, split, count, seed in (
        ("aa_one", "train", train, 1),
        ("aa_one", "dev", 12, 2),
        ("aa_one", "test", 9, 3),
        ("bb_two", "test", 7, 4),
    ):
        (folder / name).mkdir(parents=True, exist_ok=True)
        write_iob2(folder / name / f"{split}.iob2", labelled(count, seed))
    return folder


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(NOTHING, "")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((" " + " ".join(sentence.words) for sentence in labelled(50, 0)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def write_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Write a model folder with a randomly initialized causal language model."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_encoder_tokenizer() -> PreTrainedTokenizerFast:
    """Create a Unigram tokenizer of letters and some words, with the special tokens (and their ids) of XLM-R."""
    words = sorted({word for sentence in labelled(50, 0) for word in sentence.words})
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = ["▁", *sorted(set("".join(words)))]
    vocabulary = [(subword, 0.0) for subword in special]
    vocabulary += [(letter, -6.0) for letter in letters] + [(f"▁{word}", -3.0) for word in words[::2]]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **names, pad_token="<pad>", unk_token="<unk>", model_max_length=64
    )


def write_encoder(folder: Path) -> Path:
    """Write a model folder with a randomly initialized masked language model in the architecture of XLM-R."""
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=130,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=66,
        initializer_range=0.2,
    )
    XLMRobertaForMaskedLM(config).save_pretrained(folder)
    make_encoder_tokenizer().save_pretrained(folder)
    return folder


def write_world(folder: Path, write_model: Callable[[Path], Path] = write_checkpoint) -> Path:
    """Write a model (`model`) and a collection (`uner`) to fine-tune it on; return the folder."""
    write_model(folder / "model")
    write_collection(folder / "uner")
    return folder
