"""Keys of pretraining (model, episodes, corpus, training, logging) and of the estimate of its memory and time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from omegaconf import MISSING

from metapt.config.keys import hang_timeout_key, key
from metapt.config.meta import MetaConfig
from metapt.config.objective_terms import ClassesConfig, EpisodesConfig, MultitaskConfig, TermConfig

AUTO = "auto"
if TYPE_CHECKING:
    NumberOrAuto = int  # a number before anything computes with it (metapt/estimate/update_split.py)
else:
    NumberOrAuto = int | str


@dataclass
class ModelConfig:
    """Shape of the LLaMA-style decoder."""

    name: str = key(MISSING, "name of the model size", internal=True)
    hidden_size: int = key(MISSING, "width of the hidden states", unit="dimensions", low=1)
    intermediate_size: int = key(
        MISSING, "inner width of the SwiGLU feed-forward layers", unit="dimensions", low=1
    )
    num_layers: int = key(12, "number of decoder blocks", low=1)
    num_heads: int = key(12, "number of attention heads", low=1)
    num_kv_heads: int = key(4, "number of key/value heads (grouped-query attention)", low=1)
    vocab_size: int = key(50304, "number of rows of the token embedding", low=2)
    max_positions: int = key(2048, "longest sequence that the model accepts", unit="tokens", low=2)
    rope_theta: float = key(10000.0, "base of the rotary position embedding (RoPE)", above=0)
    rms_norm_eps: float = key(1e-6, "epsilon of RMSNorm", above=0)
    tied_embeddings: bool = key(False, "use one matrix as token embedding and as output layer")
    biases: int = key(0, "number of bias parameters of the model that init names", internal=True)


@dataclass
class CorpusConfig:
    """Text of pretraining."""

    name: str = key(
        MISSING,
        "kind of corpus",
        choices={"demo": "generated text", "text": "files", "hub": "a data set of the Hugging Face hub"},
        internal=True,
    )
    text_dir: str | None = key(
        None,
        "folder (or file) with text in .txt, .jsonl, .json (also as .gz, .zst, .xz, .bz2) or .parquet",
        absent="none",
        identity=False,
        only=("text",),
    )
    txt_document: str = key(
        "file",
        "what counts as a document in a .txt file",
        choices={"file": "the whole file", "block": "each block of lines between blank lines"},
        only=("text",),
    )
    hub_name: str = key("pico-lm/pretokenized-dolma", "name of the data set on the hub", only=("hub",))
    hub_revision: str = key(
        "main",
        "commit, tag or branch of the hub data set; only a commit is guaranteed not to change",
        only=("hub",),
    )
    hub_split: str = key("train", "split of the hub data set", only=("hub",))
    hub_column: str = key(
        "input_ids", "column of the hub data set that holds token ids or text", only=("hub",)
    )
    max_tokens: int | None = key(
        None,
        "number of tokens after which no more of the corpus is read",
        absent="with data=hub what the updates need if all are next-token prediction, otherwise no limit",
        low=1,
    )
    tokenizer: str = key(
        "train",
        "`train` (train a byte-level BPE on the corpus), the path of a tokenizer.json, or a name on the hub",
        identity=False,
    )
    vocab_size: int = key(
        "${model.vocab_size}",
        "number of entries of the tokenizer that data.tokenizer=train trains",
        low=260,
    )
    eval_fraction: float = key(
        0.01, "fraction of the documents held out to measure perplexity", above=0, high=0.5
    )
    on_bad_input: str = key(
        "refuse",
        "what to do about a malformed line or file",
        choices={"refuse": "stop with an error", "skip": "skip it and count it"},
    )
    cache_dir: str = key("runs/corpus", "folder in which token shards are cached", identity=False)


@dataclass
class TrainConfig:
    """Optimization, checkpoints and evaluation."""

    seed: int = key(0, "random seed", low=0)
    max_steps: int = key(6000, "number of optimizer updates", low=1)
    micro_batch: NumberOrAuto = key(
        4,
        "size of a micro-batch (one forward pass)",
        unit="sequences",
        low=1,
        words={
            AUTO: "the largest that fits the memory of a GPU, with 10 % left free; on a CPU, about 8,192 tokens"
        },
        identity=False,
    )
    micro_batches_per_update: int = key(
        256, "number of micro-batches in one update, over all ranks", low=1, identity=False
    )
    sequences_per_update: int | None = key(
        None,
        "number of sequences in one update, for train.micro_batch=auto",
        absent="those of the micro-batches of the model",
        low=1,
        identity=False,
    )
    seq_len: int = key(2048, "length of a training sequence", unit="tokens", low=2)
    precision: str = key(
        "bf16",
        "precision of the forward and backward passes",
        choices={
            "bf16": "bfloat16 autocast; parameters and optimizer state stay in fp32",
            "fp32": "single precision",
        },
    )
    compile: str = key(
        "auto",
        "compile the decoder blocks for micro-batches with torch.compile, which takes minutes at the first start; on a GPU, "
        "inner steps with meta.scope=head become CUDA graphs",
        choices={
            "auto": "on a GPU, below ZeRO stage 3, where the compiler works",
            "true": "also on a CPU",
            "false": "never",
        },
        identity=False,
    )
    deterministic: bool = key(
        False,
        "use only algorithms that give the same bits in every run on the same type of GPU, which are slower",
        identity=False,
    )
    lr: float = key(3e-4, "peak AdamW learning rate", above=0)
    schedule: str = key(
        "cosine",
        "learning-rate schedule after the warm-up",
        choices={
            "cosine": "decay to train.min_lr_ratio * train.lr at the last update, or at train.schedule_steps",
            "constant": "stay at train.lr",
        },
    )
    schedule_steps: int | None = key(
        None,
        "number of updates after which the cosine schedule has reached its end and the learning rate stays",
        absent="train.max_steps",
        low=1,
    )
    min_lr_ratio: float = key(
        0.0, "final learning rate of the cosine schedule, relative to train.lr", low=0, high=1
    )
    warmup_steps: int = key(2500, "length of the linear learning-rate warm-up", unit="updates", low=0)
    weight_decay: float = key(0.01, "AdamW weight decay", low=0)
    beta1: float = key(0.9, "AdamW beta1 (decay rate of the first moment)", low=0, high=0.9999)
    beta2: float = key(0.999, "AdamW beta2 (decay rate of the second moment)", low=0, high=0.99999)
    grad_clip: float = key(1.0, "maximum gradient norm; 0 disables gradient clipping", low=0)
    max_consecutive_skips: int = key(
        10,
        "number of consecutive updates with non-finite loss or gradients, which are skipped, after which training stops",
        low=1,
        identity=False,
    )
    hang_timeout_s: int = hang_timeout_key()
    checkpoint_every: int = key(100, "interval between checkpoints", unit="updates", low=1, identity=False)
    keep_checkpoints: int = key(
        0, "number of most recent checkpoints to keep; 0 keeps all", low=0, identity=False
    )
    keep_optimizer_states: int = key(
        2,
        "number of most recent intact checkpoints that keep the optimizer state, without which no run resumes; 0: all",
        low=0,
        identity=False,
    )
    eval_every: int = key(100, "interval between evaluations of held-out perplexity", unit="updates", low=1)
    eval_sequences: int = key(
        64,
        "number of held-out sequences in an evaluation, evenly spread over all held-out documents",
        low=1,
    )
    dynamics_every: int = key(
        100,
        "interval between measurements of learning dynamics; 0 disables them",
        unit="updates",
        low=0,
        identity=False,
    )

    @property
    def sequences(self) -> int:
        """Number of sequences in one update, over all ranks."""
        if self.micro_batch == AUTO:
            assert self.sequences_per_update is not None
            return self.sequences_per_update
        return self.micro_batch * self.micro_batches_per_update


@dataclass
class LogConfig:
    """Copies of the metrics for other tools; the report does not use them."""

    tensorboard: bool = key(
        False, "write TensorBoard event files into the run folder (extra [loggers])", identity=False
    )
    wandb: str = key(
        "off",
        "log to Weights & Biases (extra [loggers])",
        choices={
            "off": "do not log",
            "online": "log to the server during the run",
            "offline": "log to local files, for `wandb sync`",
        },
        identity=False,
    )
    trackio: bool = key(
        False,
        "log to trackio's database on this machine (pip install trackio; `trackio show` displays it)",
        identity=False,
    )
    project: str = key("metapt", "name of the project in Weights & Biases and in trackio", identity=False)


@dataclass
class PretrainConfig:
    """Pretrain a decoder on next-token prediction, with or without meta-learning episodes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    meta: MetaConfig = field(default_factory=MetaConfig)
    episodes: EpisodesConfig = field(default_factory=EpisodesConfig)
    multitask: MultitaskConfig = field(default_factory=MultitaskConfig)
    classes: ClassesConfig = field(default_factory=ClassesConfig)
    data: CorpusConfig = field(default_factory=CorpusConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    log: LogConfig = field(default_factory=LogConfig)
    init: str | None = key(
        None,
        "model to continue pretraining, with its own shape and tokenizer: a run, one of its checkpoints, a model folder or "
        "hub:NAME, of LLaMA, Mistral or Qwen2",
        absent="random weights of the shape that model.* gives",
        identity=False,
    )
    init_sha256: str = key(
        "", "SHA-256 of weights, configuration and tokenizer of the model that init names", internal=True
    )
    variant: str = key("", "name of a variant of the run, shown in the report", identity=False)
    ds: str = key(
        "zero0",
        "DeepSpeed configuration: zero0, zero1, zero2 or zero3 (ZeRO stage), zero2_offload (stage 2 with optimizer state "
        "in host memory), or the path of a .json file",
        identity=False,
    )
    device: str = key(
        "auto",
        "device on which the run computes",
        choices={
            "auto": "a GPU for each rank, or the processor if there is none; refused if the job was given GPUs that torch cannot use",
            "cuda": "a GPU for each rank",
            "cpu": "the processor",
        },
        identity=False,
    )
    run_dir: str = key(
        "runs/pretrain/${model.name}-${meta.objective}-s${train.seed}", "run folder", identity=False
    )

    def derived_identity(self) -> dict[str, dict[str, int]]:
        """The sequences of an update, however they are split; and the split, where micro-batches may be episodes."""
        return {"train": split_identity(self.train, self.meta)}

    @property
    def terms(self) -> dict[str, TermConfig]:
        """The loss terms beside next-token prediction, by the name of their section; also those with weight 0."""
        return {"episodes": self.episodes, "multitask": self.multitask}

    @property
    def episode_head_outputs(self) -> int:
        """Number of outputs of the head of episodes on windows: of an episode's classes, or of all classes of the task."""
        if self.meta.initial_head != "persistent":
            return self.meta.n_way
        return self.model.vocab_size if self.meta.task == "smlmt" else sum(self.classes.partitions[:-1])


@dataclass
class PretrainCommandConfig(PretrainConfig):
    """Pretrain a decoder on next-token prediction, with or without meta-learning episodes."""

    check: bool = key(
        False,
        "report what the run would refuse (text, tokenizer, run folder), and train nothing",
        identity=False,
        flag=True,
    )
    nodes: int = key(1, "number of nodes that check=true assumes", low=1, identity=False)
    gpus: int = key(
        1,
        "number of GPUs per node that check=true assumes, one rank each; 0: one rank per node on its CPU",
        low=0,
        identity=False,
    )


@dataclass
class PrepareConfig(PretrainConfig):
    """Tokenize the corpus of a pretraining run into shards, unless they exist. Takes the keys of `metapt pretrain`.

    With grid=NAME it takes the keys of `metapt submit` and downloads what the jobs of a grid read from the Hugging Face hub.
    """


@dataclass
class ProbeConfig(PretrainConfig):
    """Score a checkpoint on fixed episodes of word classes. Takes the keys of `metapt pretrain` for the corpus and its classes.

    Its size, its vocabulary, train.seq_len, train.eval_sequences and train.precision are those of its run, unless they are given.
    """

    checkpoint: str = key(
        MISSING, "pretrained model: a finished run, one of its checkpoints or a model folder"
    )
    probe_episodes: int = key(
        16, "number of episodes of each kind of words; pretraining runs measure 16", low=1
    )
    probe_tokens: int = key(
        32_768,
        "number of held-out tokens (of train.eval_sequences sequences) whose words are used; pretraining runs use 32,768",
        low=1,
    )


@dataclass
class EstimateConfig(PretrainConfig):
    """Estimate memory, FLOPs and hours of a pretraining run. Takes the keys of `metapt pretrain` and those of the machine."""

    nodes: int = key(1, "number of nodes", low=1)
    gpus: int = key(1, "number of GPUs per node, one rank each; 0: one rank per node on its CPU", low=0)
    gpu: str | None = key(
        None,
        "type of GPU, such as a100-80, h100-sxm or l40s, from which memory, bandwidth and throughput follow",
        absent="unknown; time is not estimated without the three keys below",
    )
    gpu_memory_gb: float | None = key(
        None,
        "memory of a GPU, or of a rank if there are no GPUs",
        unit="GB",
        absent="that of gpu=; if unknown, the largest micro-batch is not computed",
        above=0,
    )
    gpu_bandwidth_gbs: float | None = key(
        None, "bandwidth of the memory of a GPU", unit="GB/s", absent="that of gpu=", above=0
    )
    gpu_tflops: float | None = key(
        None,
        "peak throughput of dense matrix products of a GPU at train.precision",
        unit="TFLOP/s",
        absent="that of gpu=",
        above=0,
    )
    headroom: float = key(
        0.1,
        "fraction of that memory kept free for the CUDA context, NCCL, libraries and fragmentation",
        low=0,
        high=0.9,
    )


def split_identity(train: TrainConfig, meta: MetaConfig) -> dict[str, int]:
    """The part of a run's identity that follows from how its updates are split into micro-batches."""
    if meta.mixing == "per_micro_batch" and meta.rho > 0:
        return {
            "micro_batch": train.micro_batch,
            "micro_batches_per_update": train.micro_batches_per_update,
        }
    return {"sequences_per_update": train.sequences}
