"""Keys of pretraining: model, episodes, corpus, outer loop; and of the plan of its memory and time."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from metapt.config.deepspeed import zero_stage
from metapt.config.keys import key


@dataclass
class ModelConfig:
    """Shape of a LLaMA-style decoder; METHOD's four scales and `nano` are in conf/pretrain/model/."""

    name: str = key(MISSING, "name of the scale")
    hidden_size: int = key(MISSING, "width d", low=1)
    intermediate_size: int = key(MISSING, "width of the SwiGLU feed-forward layer", low=1)
    num_layers: int = key(12, "decoder blocks", low=1)
    num_heads: int = key(12, "attention heads", low=1)
    num_kv_heads: int = key(4, "key/value heads (grouped-query attention)", low=1)
    vocab_size: int = key(50304, "rows of the embedding", low=2)
    max_positions: int = key(2048, "longest sequence", low=2)
    rope_theta: float = key(10000.0, "base of the rotary embedding", above=0)
    rms_norm_eps: float = key(1e-6, "epsilon of RMSNorm", above=0)


@dataclass
class MetaConfig:
    """The hybrid objective: how often an episode replaces a next-token update, and what an episode is."""

    objective: str = key(MISSING, "vanilla or maml; set by objective=", choices=("vanilla", "maml"))
    rho: float = key(0.0, "probability that a step is an episode", low=0, high=1)
    start_step: int = key(0, "updates before the first that may be an episode", low=0, before=0)
    algorithm: str = key(
        "fomaml",
        "outer gradient: first-order MAML; with learned inner rates; or Reptile",
        choices=("fomaml", "meta_sgd", "reptile"),
    )
    scope: str = key("head", "what the inner loop adapts", choices=("head", "full", "last_n"))
    last_n: int = key(1, "blocks adapted under scope last_n, from the top", low=1)
    n_way: int = key(32, "classes of an episode (N)", low=2)
    k_shot: int = key(4, "support windows per class (K)", low=1)
    q_query: int = key(4, "query windows per class (Q)", low=1)
    inner_steps: int = key(10, "SGD steps of the inner loop", low=1)
    inner_lr: float = key(1e-3, "rate of the inner loop", above=0)
    tasks_per_step: int = key(4, "episodes averaged in one episode step, over all ranks", low=1)
    window: int = key(128, "tokens of a support or query window", low=2)
    min_context: int = key(32, "tokens that must stand before the mask that is read", low=0)
    prediction_position: str = key(
        "mask",
        "the state that is classified: at the last mask, or at the window's end, which has seen what follows it too",
        choices=("mask", "end"),
        before="mask",
    )
    min_windows: int = key(8, "a class occurs in at least so many windows (and in at least K + Q)", low=1)
    max_window_fraction: float = key(
        0.05, "a class occurs in at most this share of the windows", above=0, high=1
    )
    index_tokens: int = key(100_000_000, "tokens of the corpus that are indexed for episodes", low=1)
    head_hidden: int = key(128, "hidden width of the episode head", low=1)
    head_layers: int = key(4, "linear layers of the episode head", low=1)
    head_dropout: float = key(0.1, "dropout in the episode head", low=0, high=0.99)


@dataclass
class CorpusConfig:
    """The pretraining text."""

    name: str = key(MISSING, "demo, text or hub; set by data=", choices=("demo", "text", "hub"))
    text_dir: str | None = key(
        None, "folder (or file) of .txt .jsonl .parquet, also .gz and .zst", identity=False
    )
    txt_document: str = key(
        "file",
        "a document of a .txt is the whole file, or a block between blank lines",
        choices=("file", "block"),
    )
    hub_name: str = key("pico-lm/pretokenized-dolma", "hub data set")
    hub_revision: str = key("main", "commit, tag or branch of it; only a commit is sure not to change")
    hub_split: str = key("train", "split of the hub data set")
    hub_column: str = key("input_ids", "its column: token ids, or text")
    max_tokens: int | None = key(None, "stop reading the corpus after so many tokens", low=1)
    tokenizer: str = key("train", "`train` (byte-level BPE), a tokenizer.json, or a hub name", identity=False)
    vocab_size: int = key("${model.vocab_size}", "entries of the BPE that tokenizer=train makes", low=260)
    eval_fraction: float = key(0.01, "share of the documents kept for perplexity", above=0, high=0.5)
    on_bad_input: str = key(
        "refuse", "a bad line or file stops the run, or is counted", choices=("refuse", "skip")
    )
    cache_dir: str = key("runs/corpus", "where token shards are kept", identity=False)


@dataclass
class TrainConfig:
    """The outer loop."""

    seed: int = key(0, "of everything that is drawn", low=0)
    max_steps: int = key(6000, "optimizer updates", low=1)
    micro_batch: int = key(4, "sequences in one forward pass", low=1)
    micro_batches_per_update: int = key(256, "micro-batches in one update, over all ranks", low=1)
    seq_len: int = key(2048, "tokens of a sequence", low=2)
    precision: str = key("bf16", "of the forward and backward passes", choices=("bf16", "fp32"))
    compile: bool = key(
        False,
        "the decoder's blocks go through torch.compile, which needs minutes at the start; on a GPU the inner steps of scope head become CUDA graphs",
        before=False,
    )
    lr: float = key(3e-4, "peak rate of AdamW", above=0)
    schedule: str = key("cosine", "after the warm-up", choices=("cosine", "constant"))
    min_lr_ratio: float = key(0.0, "the cosine ends at this share of lr", low=0, high=1)
    warmup_steps: int = key(2500, "linear warm-up", low=0)
    weight_decay: float = key(0.01, "of AdamW", low=0)
    beta1: float = key(0.9, "of AdamW", low=0, high=0.9999)
    beta2: float = key(0.999, "of AdamW", low=0, high=0.99999)
    grad_clip: float = key(1.0, "largest norm of the gradient; 0: no clipping", low=0)
    max_consecutive_skips: int = key(
        10,
        "updates in a row skipped for numbers that are not finite, after which the run stops",
        low=1,
        identity=False,
    )
    checkpoint_every: int = key(100, "updates", low=1)
    keep_checkpoints: int = key(0, "newest so many are kept; 0: all", low=0, identity=False)
    eval_every: int = key(100, "updates between held-out perplexities", low=1)
    eval_batches: int = key(16, "micro-batches of the held-out split", low=1)
    dynamics_every: int = key(
        100, "updates between measurements of learning dynamics; 0: never", low=0, identity=False
    )


@dataclass
class LogConfig:
    """Copies of the metrics for other tools; the report needs none of them."""

    tensorboard: bool = key(
        False, "write TensorBoard event files into the run folder (pip install tensorboard)", identity=False
    )
    wandb: str = key(
        "off",
        "log to Weights & Biases (pip install wandb)",
        choices=("off", "online", "offline"),
        identity=False,
    )
    wandb_project: str = key("metapt", "its project", identity=False)


@dataclass
class PretrainConfig:
    """python -m metapt.pretrain"""

    model: ModelConfig = field(default_factory=ModelConfig)
    meta: MetaConfig = field(default_factory=MetaConfig)
    data: CorpusConfig = field(default_factory=CorpusConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    log: LogConfig = field(default_factory=LogConfig)
    variant: str = key("", "free name of a variant; shown in the report", identity=False)
    ds: str = key("zero0", "DeepSpeed configuration: a name under ds_configs/, or a .json file")
    run_dir: str = key(
        "runs/pretrain/${model.name}-${meta.objective}-s${train.seed}", "the run folder", identity=False
    )


@dataclass
class EstimateConfig(PretrainConfig):
    """metapt estimate"""

    nodes: int = key(1, "nodes", low=1)
    gpus: int = key(1, "GPUs per node, one rank each; 0: one rank per node on its CPU", low=0)
    gpu_memory_gb: float | None = key(
        None, "memory of a GPU (of a rank, without GPUs), GB; absent: no micro-batch is searched", above=0
    )
    headroom: float = key(0.1, "share of it for the context, NCCL, libraries and fragments", low=0, high=0.9)
    gpu_tflops: float | None = key(
        None, "peak of a GPU at train.precision, TFLOP/s; absent: no hours are told", above=0
    )
    mfu: float = key(0.3, "share of that peak which is reached", above=0, high=1)


def uneven_units(config: PretrainConfig, ranks: int) -> list[str]:
    """`key=value` for each number of units that an update deals out and that so many ranks cannot share evenly."""
    meta, units = config.meta, {"train.micro_batches_per_update": config.train.micro_batches_per_update}
    if meta.rho > 0 and ranks_share_episodes(config):
        units["meta.n_way * meta.k_shot"] = meta.n_way * meta.k_shot
        units["meta.n_way * meta.q_query"] = meta.n_way * meta.q_query
    elif meta.rho > 0:
        units["meta.tasks_per_step"] = meta.tasks_per_step
    return [f"{name}={value}" for name, value in units.items() if value % ranks]


def ranks_share_episodes(config: PretrainConfig) -> bool:
    """Whether all ranks share each episode (metapt/training/zero3.py), instead of having episodes of their own."""
    return zero_stage(config.ds) == 3 and config.meta.scope != "head"
