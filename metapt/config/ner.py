"""Keys of named entity recognition: labelled sets, tagger, fine-tuning, tagging, statistics, baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from omegaconf import MISSING

from metapt.baseline_names import BASELINE_NAMES
from metapt.config.keys import hang_timeout_key, key
from metapt.config.learning_rates import auto_lr
from metapt.config.pretraining import LogConfig

TUNINGS = {
    "head_only": "train the NER head on the frozen model",
    "full": "train all parameters",
    "lora": "train the NER head and low-rank adapters of the model (extra [lora])",
}
TAGGER_PRECISIONS = {
    "fp32": "single precision",
    "bf16": "bfloat16; the CRF stays in fp32",
}


DOCUMENT_MARKS = {
    "auto": "those that a file has, or none; ids such as batch-12 mark no documents",
    "newdoc": "comments `# newdoc`",
    "docstart": "-DOCSTART- lines",
    "sentence": "none: each sentence is a unit",
}
WITHOUT_FOLDER: Mapping[str, tuple[None]] = {"data.uner_dir": (None,)}
LORA: Mapping[str, tuple[str, ...]] = {"tuning": ("lora",)}


@dataclass
class NerConfig:
    """The tagger and its fine-tuning."""

    head: str = key(
        "crf",
        "NER head",
        choices={"crf": "linear-chain CRF over the sentence", "softmax": "independent softmax for each word"},
    )
    subword_pooling: str = key(
        "first",
        "representation of a word of several subwords",
        choices={
            "first": "the hidden state at the first subword that completes a character of the word",
            "last": "the hidden state at its last subword",
            "mean": "the mean of the hidden states from that first to the last subword",
        },
    )
    prefix_space: bool = key(
        True,
        "tokenize each word with a space before it, as inside a text, unless the space would be a subword of its own",
    )
    max_len: int = key(
        128,
        "maximum length of an input window; longer sentences are read in several windows, each of which counts as a sentence of a training batch",
        unit="subwords",
        low=4,
    )
    lr: float | None = key(
        None,
        "AdamW learning rate",
        absent="auto: by the width of the model and tuning, as measured (docs/results/learning_rates.md)",
        above=0,
    )
    head_lr: float | None = key(
        None, "AdamW learning rate of the NER head", absent="the learning rate of the model, ner.lr", above=0
    )
    lora_rank: int = key(8, "rank of the LoRA adapters of tuning=lora", low=1, only_with=LORA)
    lora_alpha: float = key(
        16.0,
        "LoRA alpha: the adapters of tuning=lora are scaled by ner.lora_alpha / ner.lora_rank",
        above=0,
        only_with=LORA,
    )
    weight_decay: float = key(0.01, "AdamW weight decay", low=0)
    batch_size: int = key(16, "training batch size", unit="sentences", low=1)
    max_steps: int | None = key(
        None,
        "number of updates, fixed in advance: no dev set is used, and the last weights are kept",
        absent="training ends by ner.max_epochs and ner.patience",
        low=1,
    )
    max_epochs: int = key(10, "maximum number of training epochs", low=1)
    patience: int = key(
        3,
        "early stopping: number of epochs without a better dev micro-F1 (ties: lower dev loss) after which training stops",
        low=1,
    )
    grad_clip: float = key(1.0, "maximum gradient norm; 0 disables gradient clipping", low=0)
    precision: str = key(
        "auto",
        "precision of the model",
        choices={
            "auto": "bf16 on a GPU that has it (compute capability 8.0), otherwise fp32",
            **TAGGER_PRECISIONS,
        },
    )
    dropout: float = key(0.1, "dropout probability before the NER head", low=0, high=0.99)
    eval_batch_size: int = key(64, "evaluation batch size", unit="sentences", low=1)
    cache_dir: str | None = key(
        None,
        "folder in which word features of a frozen model and scores of the baselines are cached for other runs",
        absent="neither is cached",
        identity=False,
    )
    cache_gb: float = key(
        50.0,
        "maximum size of the cached features; the least recently used entries are deleted",
        unit="GB",
        above=0,
        identity=False,
    )


@dataclass
class SetsConfig:
    """Labelled sets."""

    name: str = key(
        MISSING,
        "collection of labelled sets",
        choices={
            "uner": "Universal NER",
            "demo": "generated sentences",
            "custom": "only those of data.corpora",
        },
        internal=True,
    )
    uner_dir: str | None = key(
        None,
        "folder with Universal NER as SET/SPLIT.iob2, or as published (UNER_English-EWT/en_ewt-ud-train.iob2)",
        absent="download from the Hugging Face hub",
        identity=False,
        only=("uner",),
    )
    hub_name: str = key(
        "universalner/universal_ner",
        "name of the Universal NER data set on the hub",
        only=("uner",),
        only_with=WITHOUT_FOLDER,
    )
    hub_revision: str = key(
        "refs/convert/parquet",
        "revision of the hub data set that holds Parquet files: the hub's conversion, or main for a copy in Parquet",
        only=("uner",),
        only_with=WITHOUT_FOLDER,
    )
    corpora: list[str] = key(
        [],
        "further labelled sets: presets (such as ceb_cebuaner:FOLDER), .yaml files, and paths of labelled files and "
        "folders, as they are or with a name (NAME:PATH)",
        identity=False,
    )
    dev_fraction: float = key(
        0.1,
        "fraction of the train split (of its documents, where they are marked) held out as dev split where a set has none; 0: none",
        low=0,
        high=0.5,
    )
    test_fraction: float = key(
        0.1,
        "fraction of the train split held out as test split where a set has none; 0: none",
        low=0,
        high=0.5,
    )
    fold: str | None = key(
        None,
        "fold that is the test split of the sets with a train split, as k/n: the k-th of n parts of the train split; `folds` sets it",
        absent="test splits are those of the sets",
    )
    split_seed: int = key(0, "random seed of held-out splits and of folds", low=0)
    on_bad_input: str = key(
        "refuse",
        "what to do with a malformed sentence of a labelled set",
        choices={
            "refuse": "stop with an error that names file and line",
            "skip": "leave it out and count it",
        },
    )
    documents: str = key(
        "auto",
        "marks of documents, the units of resampling; a description in data.corpora can have its own",
        choices=DOCUMENT_MARKS,
    )


@dataclass
class NerDataConfig(SetsConfig):
    """Labelled sets for training and evaluation."""

    eval_sets: list[str] = key(
        [], "sets, or paths of labelled files, to evaluate on; empty: every available set with a test split"
    )
    max_train_sentences: int | None = key(
        None,
        "maximum number of training sentences, sampled from those of the source that no test set has",
        absent="all",
        low=1,
    )
    entities_per_type: int | None = key(
        None,
        "number of entities of each type, at least, in a sample of training sentences that all have an entity",
        absent="all",
        low=1,
    )
    subset_seed: int = key(
        0,
        "random seed of the sample of training sentences; with one seed, smaller samples are part of larger",
        low=0,
    )


@dataclass
class FinetuneTrainConfig:
    """Randomness of fine-tuning, and how long it may hang."""

    seed: int = key(0, "random seed of head initialization, batch order and dropout", low=0)
    hang_timeout_s: int = hang_timeout_key()


@dataclass
class FinetuneConfig:
    """Fine-tune a model as a named entity tagger on one language and evaluate it on the test sets of all."""

    checkpoint: str = key(
        MISSING,
        "model to fine-tune: a pretraining run, one of its checkpoints, any model folder (also of an encoder), or hub:NAME; "
        "or a finished fine-tuning run, whose tagger is then trained further",
        identity=False,
    )
    source: str = key(
        MISSING,
        "labelled set to fine-tune on, or the path of a labelled file or folder; several joined by +, or all",
    )
    tuning: str = key("head_only", "parameters that are trained", choices=TUNINGS)
    data: NerDataConfig = field(default_factory=NerDataConfig)
    ner: NerConfig = field(default_factory=NerConfig)
    train: FinetuneTrainConfig = field(default_factory=FinetuneTrainConfig)
    log: LogConfig = field(default_factory=LogConfig)
    folds: int | None = key(
        None,
        "cross-validation: fine-tune once for each of this number of folds of the train split, and score all of its sentences",
        absent="one run",
        low=2,
    )
    run_dir: str = key(MISSING, "run folder", identity=False)
    device: str = key(
        "auto",
        "device of the model",
        choices={
            "auto": "the first of cuda, mps and cpu that there is; refused if the job was given GPUs that torch cannot use",
            "cpu": "the processor",
            "cuda": "a GPU; with torchrun or srun, one for each process",
            "mps": "the GPU of a Mac (not tested)",
        },
        identity=False,
    )
    check: bool = key(
        False,
        "report what the run would refuse (model, labelled sets, run folder), and train nothing",
        identity=False,
        flag=True,
    )


def training_splits(config: FinetuneConfig) -> tuple[str, ...]:
    """The splits of the source that a run reads: with a fixed number of updates, no dev set."""
    return ("train", "dev") if config.ner.max_steps is None else ("train",)


def tuning_lr(config: FinetuneConfig, width: int) -> float:
    """The AdamW learning rate: `ner.lr`, or the default for a model with hidden states of `width` dimensions."""
    return config.ner.lr or auto_lr(config.tuning, width)


def tag_layer_lr(config: FinetuneConfig, width: int) -> float:
    """The AdamW learning rate of the tag layer: `ner.head_lr`, or that of everything that is trained."""
    return config.ner.head_lr or tuning_lr(config, width)


@dataclass
class TagConfig:
    """Tag text with a fine-tuned tagger: sentences of the command line, a file, or stdin."""

    checkpoint: str = key(MISSING, "finished fine-tuning run, or its tagger folder")
    format: str = key(
        "text",
        "output format",
        choices={
            "text": "the sentence with entities in brackets, or in colour on a terminal",
            "json": "one JSON object per sentence",
            "jsonl": "JSON lines of annotation tools: {text, spans: [{start, end, label}]}, with the other entries of JSON input",
            "iob2": "one word and its tag per line",
        },
    )
    input: str | None = key(None, "file to tag, or - for stdin", absent="stdin, unless sentences are given")
    input_format: str = key(
        "auto",
        "input format",
        choices={
            "auto": "iob2 if the file name ends with .iob2, .conll or .conllu, jsonl if it ends with .jsonl, otherwise text",
            "text": "one sentence per line",
            "jsonl": "one JSON object per line, with a text or a list of words or tokens",
            "iob2": "one word per line, a blank line after each sentence",
        },
    )
    word_column: int | None = key(
        None,
        "column of the word in iob2 input, counted from 1",
        absent="2 if column 1 counts the words (1, 2, 3, ...), otherwise 1",
        low=1,
    )
    precision: str = key(
        "fp32",
        "precision of the model; bf16 did not lower peak memory when measured",
        choices=TAGGER_PRECISIONS,
    )
    device: str = key("auto", "torch device: cpu, cuda, cuda:N or mps; auto: the first of cuda, mps and cpu")
    batch_size: int = key(64, "maximum batch size", unit="sentences", low=1)


@dataclass
class EvaluateConfig:
    """Score a finished tagger on test sets, or a language model on text.

    The scores of a tagger are added to its run folder, for `metapt report`.
    """

    checkpoint: str = key(
        MISSING,
        "finished fine-tuning run, or its tagger folder; with text=, a pretraining run, a checkpoint, a model folder, or "
        "hub:NAME",
    )
    text: str | None = key(
        None,
        "text file, or folder of text files, on which a causal language model is scored, in nats per byte of UTF-8",
        absent="a tagger is scored on labelled sets",
    )
    sets: list[str] = key(
        [], "sets, or paths of labelled files, to score on; empty: every available set with a test split"
    )
    data: SetsConfig = field(default_factory=SetsConfig)
    precision: str = key("fp32", "precision of the model", choices=TAGGER_PRECISIONS)
    device: str = key("auto", "torch device: cpu, cuda, cuda:N or mps; auto: the first of cuda, mps and cpu")
    batch_size: int = key(64, "maximum batch size", unit="sentences", low=1)


@dataclass
class DescribeConfig:
    """Print statistics of labelled sets, and of a tokenizer on them."""

    data: SetsConfig = field(default_factory=SetsConfig)
    sets: list[str] = key([], "sets, or paths of labelled files, to describe; empty: every available set")
    tokenizer: str | None = key(
        None,
        "tokenizer.json, a folder that holds one, or a name on the hub",
        absent="none; subword statistics are omitted",
    )
    json: bool = key(False, "print JSON", flag=True)


@dataclass
class BaselineConfig:
    """Score a baseline tagger (a rule, the most frequent tag, or a surface-feature CRF) on the test sets."""

    name: str = key(MISSING, "baseline tagger", choices=BASELINE_NAMES)
    source: str | None = key(
        None,
        "labelled set to train on, as in `metapt finetune`",
        absent="none; required with name=majority and name=crf",
    )
    data: NerDataConfig = field(default_factory=NerDataConfig)
    c1: float = key(0.1, "L1 penalty of the CRF", low=0)
    c2: float = key(0.1, "L2 penalty of the CRF", low=0)
    max_iterations: int = key(100, "maximum number of L-BFGS iterations of the CRF", low=1)
    run_dir: str = key(MISSING, "run folder", identity=False)
