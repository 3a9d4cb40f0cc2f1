"""Keys of named entities: labelled sets, the tagger and its tuning, tagging, descriptions, baselines."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from metapt.config.keys import key
from metapt.evaluation.baselines import BASELINES

TUNINGS = ("head_only", "full", "lora")
PAPER_RATE = 3e-5
FROZEN_RATE = (
    3e-3  # docs/results/study.md: with the paper's the head of a small decoder learns next to nothing
)


@dataclass
class NerConfig:
    """The tagger and how it is tuned."""

    head: str = key("crf", "linear-chain CRF, or a softmax per word", choices=("crf", "softmax"))
    subword_pooling: str = key(
        "first", "which subword of a word is tagged", choices=("first", "last", "mean")
    )
    prefix_space: bool = key(True, "words are tokenised as if a space stood before them")
    max_len: int = key(128, "subwords of a window; training sentences are cut to one", low=4)
    lr: float | None = key(
        None,
        f"of AdamW; absent: {FROZEN_RATE:g} for the head of a frozen decoder, else {PAPER_RATE:g} (the paper's for both)",
        above=0,
    )
    head_lr: float | None = key(None, "of the CRF head; absent: as lr", above=0)
    lora_rank: int = key(8, "rank of the adapters of tuning=lora", low=1)
    lora_alpha: float = key(16.0, "their product is scaled by this / lora_rank", above=0)
    weight_decay: float = key(0.01, "of AdamW", low=0)
    batch_size: int = key(16, "sentences", low=1)
    max_epochs: int = key(10, "at most", low=1)
    patience: int = key(
        3, "epochs without a better dev micro-F1 (equal: lower dev loss) before stopping", low=1
    )
    grad_clip: float = key(1.0, "largest norm of the gradient; 0: no clipping", low=0)
    precision: str = key("fp32", "of the decoder; the CRF is always fp32", choices=("bf16", "fp32"))
    dropout: float = key(0.1, "before the emission layer", low=0, high=0.99)
    eval_batch_size: int = key(64, "sentences", low=1)
    cache_dir: str | None = key(
        None,
        "where word features of a frozen decoder are kept for other runs; absent: nowhere",
        identity=False,
    )
    cache_gb: float = key(
        50.0, "size of it, GB; what was not used for longest is deleted", above=0, identity=False
    )


@dataclass
class SetsConfig:
    """Where the labelled sentences come from."""

    name: str = key(
        MISSING,
        "uner, demo, or described: data.corpora only; set by data=",
        choices=("uner", "demo", "custom"),
    )
    uner_dir: str | None = key(None, "folder of <set>/<split>.iob2; absent: the hub", identity=False)
    hub_name: str = key("universalner/universal_ner", "read through its Parquet conversion")
    hub_revision: str = key("refs/convert/parquet", "branch of it; main for a copy that is itself in Parquet")
    corpora: list[str] = key(
        [],
        "further sets: presets (ceb_cebuaner, tl_tlunified) or .yaml files, each with :FOLDER if its files need one",
        identity=False,
    )
    dev_fraction: float = key(
        0.0,
        "share of the train sentences held out where a set has no dev split; 0: such sets are no sources",
        low=0,
        high=0.5,
    )


@dataclass
class NerDataConfig(SetsConfig):
    """Which of them a run uses."""

    eval_sets: list[str] = key([], "sets to evaluate; empty: every set that is found")
    max_train_sentences: int | None = key(None, "use only so many training sentences", low=1)


@dataclass
class FinetuneTrainConfig:
    seed: int = key(0, "of the head's weights, the batch order and dropout", low=0)


@dataclass
class FinetuneConfig:
    """python -m metapt.finetune"""

    checkpoint: str = key(
        MISSING,
        "a pretraining run, a checkpoint of it, any model folder (of an encoder, too), or hub:NAME",
        identity=False,
    )
    source: str = key(MISSING, "the set to tune on, several joined by +, or all")
    tuning: str = key(
        "head_only",
        "head_only: the decoder is frozen; full: all is tuned; lora: low-rank adapters of it (pip install peft)",
        choices=TUNINGS,
    )
    data: NerDataConfig = field(default_factory=NerDataConfig)
    ner: NerConfig = field(default_factory=NerConfig)
    train: FinetuneTrainConfig = field(default_factory=FinetuneTrainConfig)
    run_dir: str = key(MISSING, "the run folder", identity=False)


def tuning_rate(config: FinetuneConfig) -> float:
    """The rate of AdamW: `ner.lr`, or what stands for it under the tuning."""
    return config.ner.lr or (FROZEN_RATE if config.tuning == "head_only" else PAPER_RATE)


@dataclass
class TagConfig:
    """python -m metapt.tag"""

    checkpoint: str = key(MISSING, "a finished fine-tuning run, or its tagger folder")
    format: str = key("text", "what is printed", choices=("text", "json", "iob2"))
    input: str | None = key(None, "a file to tag, or - for stdin; without it and sentences, stdin")
    input_format: str = key(
        "auto",
        "text: a sentence a line; iob2: a word a line, a blank line after a sentence; auto: iob2 for .iob2, .conll, .conllu",
        choices=("auto", "text", "iob2"),
    )
    word_column: int = key(2, "column of the word in iob2 input, from 1", low=1)
    precision: str = key(
        "fp32",
        "of the decoder (bf16 saved no peak memory where it was measured); the CRF is always fp32",
        choices=("fp32", "bf16"),
    )
    device: str = key("cpu", "of torch: cpu, cuda, cuda:1")
    batch_size: int = key(64, "sentences read at once, at most", low=1)


@dataclass
class DescribeConfig:
    """metapt describe"""

    data: SetsConfig = field(default_factory=SetsConfig)
    sets: list[str] = key([], "sets to describe; empty: every one that is found")
    tokenizer: str | None = key(
        None, "a tokenizer.json, a folder with one, or a hub name; absent: no figures of subwords"
    )
    json: bool = key(False, "print JSON (also: --json)")


@dataclass
class BaselineConfig:
    """python -m metapt.baseline"""

    name: str = key(MISSING, "what tags the words", choices=tuple(BASELINES))
    source: str | None = key(None, "what it learns from (majority, crf): as in fine-tuning; a rule has none")
    data: NerDataConfig = field(default_factory=NerDataConfig)
    c1: float = key(0.1, "L1 penalty of the CRF", low=0)
    c2: float = key(0.1, "L2 penalty of the CRF", low=0)
    max_iterations: int = key(100, "of the CRF's L-BFGS", low=1)
    run_dir: str = key(MISSING, "the run folder", identity=False)
