"""The whole typed configuration. metapt/checks.py checks it.

Each command has one dataclass (PretrainConfig, PlanConfig, FinetuneConfig, BaselineConfig, TagConfig, DescribeConfig,
SubmitConfig, StatusConfig). A field's metadata
holds its help line, its allowed values (`choices`) or bounds (`low`, `above`, `high`), whether it decides
the outcome of a run (`identity`), and, for a key that came later, what runs without it did (`before`). Defaults live here; the YAML files under conf/ hold only what a choice
(`model=tiny`, `objective=maml`) changes. metapt/commandline.py turns a command line into one of these.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from metapt.ner.baselines import BASELINES

REGIMES = ("head", "full", "lora")
DS_CONFIGS = Path(__file__).parents[1] / "ds_configs"


def key(default: Any, help: str, **metadata: Any) -> Any:
    """A configuration key: a dataclass field with its help line and its checks."""
    metadata = {"help": help, **metadata}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


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
    """The hybrid objective: how often an episode replaces an autoregressive step, and what an episode is."""

    objective: str = key(MISSING, "vanilla or maml; set by objective=", choices=("vanilla", "maml"))
    rho: float = key(0.0, "probability that a step is an episode", low=0, high=1)
    rule: str = key(
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
    read_at: str = key(
        "mask",
        "the state that is classified: at the last mask, or at the window's end, which has seen what follows it too",
        choices=("mask", "end"),
        before="mask",
    )
    min_windows: int = key(8, "a class occurs in at least so many windows (and in at least K + Q)", low=1)
    max_share: float = key(0.05, "a class occurs in at most this share of the windows", above=0, high=1)
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
    heldout_share: float = key(0.01, "share of the documents kept for perplexity", above=0, high=0.5)
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
    accumulation: int = key(256, "micro-batches in one update, over all ranks", low=1)
    seq_len: int = key(2048, "tokens of a sequence", low=2)
    precision: str = key("bf16", "of the forward and backward passes", choices=("bf16", "fp32"))
    compile: bool = key(
        False, "the decoder's blocks go through torch.compile, which needs minutes at the start", before=False
    )
    lr: float = key(3e-4, "peak rate of AdamW", above=0)
    schedule: str = key("cosine", "after the warm-up", choices=("cosine", "constant"))
    min_lr_share: float = key(0.0, "the cosine ends at this share of lr", low=0, high=1)
    warmup_steps: int = key(2500, "linear warm-up", low=0)
    weight_decay: float = key(0.01, "of AdamW", low=0)
    beta1: float = key(0.9, "of AdamW", low=0, high=0.9999)
    beta2: float = key(0.999, "of AdamW", low=0, high=0.99999)
    grad_clip: float = key(1.0, "largest norm of the gradient; 0: no clipping", low=0)
    max_skipped_in_row: int = key(
        10,
        "updates in a row skipped for numbers that are not finite, after which the run stops",
        low=1,
        identity=False,
    )
    checkpoint_every: int = key(100, "updates", low=1)
    keep_checkpoints: int = key(0, "newest so many are kept; 0: all", low=0, identity=False)
    heldout_every: int = key(100, "updates between held-out perplexities", low=1)
    heldout_batches: int = key(16, "micro-batches of the held-out split", low=1)
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
    label: str = key("", "free name of a variant; shown in the report", identity=False)
    ds: str = key("zero0", "DeepSpeed configuration: a name under ds_configs/, or a .json file")
    run_dir: str = key(
        "runs/pretrain/${model.name}-${meta.objective}-s${train.seed}", "the run folder", identity=False
    )


@dataclass
class PlanConfig(PretrainConfig):
    """python -m metapt.plan"""

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


@dataclass
class NerConfig:
    """The tagger and how it is tuned."""

    head: str = key("crf", "linear-chain CRF, or a softmax per word", choices=("crf", "softmax"))
    piece: str = key("first", "which piece of a word is tagged", choices=("first", "last", "mean"))
    prefix_space: bool = key(True, "words are tokenised as if a space stood before them")
    max_len: int = key(128, "pieces of a window; training sentences are cut to one", low=4)
    lr: float = key(3e-5, "of AdamW", above=0)
    head_lr: float | None = key(None, "of the CRF head; absent: as lr", above=0)
    lora_rank: int = key(8, "rank of the adapters of regime=lora", low=1)
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
        "where word vectors of a frozen decoder are kept for other runs; absent: nowhere",
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
        choices=("uner", "demo", "described"),
    )
    uner_dir: str | None = key(None, "folder of <set>/<split>.iob2; absent: the hub", identity=False)
    hub_name: str = key("universalner/universal_ner", "read through its Parquet conversion")
    hub_revision: str = key("refs/convert/parquet", "branch of it; main for a copy that is itself in Parquet")
    corpora: list[str] = key(
        [],
        "further sets: presets (ceb_cebuaner, tl_tlunified) or .yaml files, each with :FOLDER if its files need one",
        identity=False,
    )
    dev_share: float = key(
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
    regime: str = key(
        "head",
        "head: the decoder is frozen; full: all is tuned; lora: low-rank adapters of it (pip install peft)",
        choices=REGIMES,
    )
    data: NerDataConfig = field(default_factory=NerDataConfig)
    ner: NerConfig = field(default_factory=NerConfig)
    train: FinetuneTrainConfig = field(default_factory=FinetuneTrainConfig)
    run_dir: str = key(MISSING, "the run folder", identity=False)


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
    """python -m metapt.data describe"""

    data: SetsConfig = field(default_factory=SetsConfig)
    sets: list[str] = key([], "sets to describe; empty: every one that is found")
    tokenizer: str | None = key(
        None, "a tokenizer.json, a folder with one, or a hub name; absent: no figures of pieces"
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


@dataclass
class GridConfig:
    """A grid: the product of sizes, objectives, seeds and variants, each tuned on sources under regimes."""

    name: str = key(MISSING, "name of the grid; set by grid=")
    sizes: list[str] = key(["nano"], "models")
    objectives: list[str] = key(["vanilla", "maml"], "objectives")
    seeds: list[int] = key([0], "seeds, of pretraining and of the fine-tuning after it")
    variants: dict[str, list[str]] = key(
        {},
        "name: pretraining overrides; every variant is run (vanilla: one of those that differ in meta. alone)",
    )
    sources: list[str] = key([], "fine-tuning sets")
    regimes: list[str] = key(["head", "full"], "fine-tuning regimes")
    checkpoints: list[int] = key([], "pretraining steps to fine-tune; empty: the last")
    further_checkpoints: dict[str, list[int]] = key(
        {}, "objective or variant: further steps to fine-tune, such as the one at equal FLOPs"
    )
    pretrain: list[str] = key([], "overrides for every pretraining run")
    finetune: list[str] = key([], "overrides for every fine-tuning run")
    per_size: dict[str, list[str]] = key({}, "size: further pretraining overrides")
    finetune_per_regime: dict[str, list[str]] = key({}, "regime: further fine-tuning overrides")
    baselines: list[str] = key([], "baselines (metapt.baseline); those that learn, on every source")
    models: list[str] = key([], "further models, tuned like the grid's: folders, or hub:NAME; also encoders")
    per_objective: dict[str, list[str]] = key({}, "objective: further pretraining overrides")
    gpus_per_size: dict[str, int] = key(
        {}, "size: GPUs of its pretraining job on a cluster, spread over nodes"
    )
    hours_per_size: dict[str, float] = key(
        {}, "size: time limit of its pretraining job; else cluster.timeout_min"
    )
    mem_gb_per_size: dict[str, int] = key(
        {}, "size: memory per node of its pretraining job; else cluster.mem_gb"
    )


@dataclass
class ClusterConfig:
    """Where the jobs run, and what each asks for."""

    name: str = key(MISSING, "local, slurm or inline; set by cluster=", choices=("local", "slurm", "inline"))
    max_parallel: int = key(1, "jobs at once (local)", low=1)
    threads: int | None = key(None, "CPU threads per job; absent: cores / max_parallel", low=1)
    timeout_min: int = key(60 * 24, "time limit of a job, minutes", low=1)
    nodes: int = key(1, "nodes of a pretraining job, unless grid.gpus_per_size tells (slurm)", low=1)
    gpus_per_node: int = key(0, "GPUs per node of a pretraining job, one task each", low=0)
    finetune_gpus: int = key(
        1, "GPUs of a fine-tuning job, one task each, at most those of a node; regime=head takes one", low=1
    )
    gpu_request: str = key(
        "gpus_per_node",
        "how GPUs are asked for: --gpus-per-node, --gres, --constraint (of cluster.gpu_type), or not at all (slurm)",
        choices=("gpus_per_node", "gres", "constraint", "none"),
    )
    gpu_type: str | None = key(None, "type of GPU asked for, such as a100 (slurm)")
    max_running: int | None = key(None, "of jobs that are one array, at most so many at once (slurm)", low=1)
    cpus_per_task: int = key(4, "CPUs per task (slurm)", low=1)
    mem_gb: int | None = key(None, "memory per node, GB (slurm)", low=1)
    partition: str | None = key(None, "partition (slurm)")
    account: str | None = key(None, "account (slurm)")
    qos: str | None = key(None, "quality of service (slurm)")
    signal_delay_s: int = key(120, "warning before the time limit, seconds (slurm)", low=1)
    visible_within_s: int = key(
        90, "so long a job waits for the results that it needs to appear on its node (slurm)", low=0
    )
    max_requeues_without_progress: int = key(
        5, "a job that is queued again more often in a row without a new checkpoint is given up", low=0
    )
    gpu_memory_gb: float | None = key(None, "memory of a GPU, for the dry run", above=0)
    gpu_tflops: float | None = key(None, "peak of a GPU, TFLOP/s, for the dry run", above=0)
    mfu: float = key(0.3, "share of that peak which is reached, for the dry run", above=0, high=1)
    extra: dict[str, str] = key({}, "further sbatch options, by long name (slurm)")
    setup: list[str] = key([], "shell lines before the job, such as `module load cuda` (slurm)")


@dataclass
class StatusConfig:
    """python -m metapt.status"""

    root: str = key(MISSING, "folder of a submitted grid")
    watch: bool = key(False, "look again and again until every job is done, or Ctrl-C (also: --watch)")
    every_s: float = key(10.0, "seconds between two looks; each asks squeue once", low=1)
    json: bool = key(False, "print JSON, one line a look (also: --json)")


@dataclass
class SubmitConfig:
    """python -m metapt.submit"""

    grid: GridConfig = field(default_factory=GridConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    root: str = key("runs/${grid.name}", "folder of the grid")
    code: str = key(
        "snapshot",
        "jobs run a copy of the source made now, or the source itself",
        choices=("snapshot", "live"),
    )
    dry_run: str = key(
        "false",
        "true: print the plan (slurm: and the batch scripts) and do nothing; test: and ask sbatch --test-only",
        choices=("false", "true", "test"),
    )


COMMANDS: dict[str, type] = {
    "pretrain": PretrainConfig,
    "plan": PlanConfig,
    "finetune": FinetuneConfig,
    "tag": TagConfig,
    "data describe": DescribeConfig,
    "baseline": BaselineConfig,
    "submit": SubmitConfig,
    "status": StatusConfig,
}


def uneven_units(config: PretrainConfig, ranks: int) -> list[str]:
    """`key=value` for each number of units that an update deals out and that so many ranks cannot share evenly."""
    meta, units = config.meta, {"train.accumulation": config.train.accumulation}
    if meta.rho > 0 and work_together(config):
        units["meta.n_way * meta.k_shot"] = meta.n_way * meta.k_shot
        units["meta.n_way * meta.q_query"] = meta.n_way * meta.q_query
    elif meta.rho > 0:
        units["meta.tasks_per_step"] = meta.tasks_per_step
    return [f"{name}={value}" for name, value in units.items() if value % ranks]


def work_together(config: PretrainConfig) -> bool:
    """Whether all ranks share each episode (metapt/training/partitioned.py), instead of having episodes of their own."""
    return zero_stage(config.ds) == 3 and config.meta.scope != "head"


def zero_stage(name: str) -> int:
    """The ZeRO stage of `ds=name`."""
    return deepspeed_settings(name).get("zero_optimization", {}).get("stage", 0)


def deepspeed_file(name: str) -> Path:
    """The file that `ds=name` means: a shipped one by name, or a path."""
    return Path(name) if name.endswith(".json") else DS_CONFIGS / f"{name}.json"


def deepspeed_settings(name: str) -> dict[str, Any]:
    """The content of the DeepSpeed file that `ds=name` means, as far as it may decide.

    Batch sizes and clipping are told by train.*; parameters stay fp32 (models/learner.py).
    Raises:
        ValueError: it is not there, is no DeepSpeed configuration, or decides what metapt decides.
    """
    path = deepspeed_file(name)
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in DS_CONFIGS.glob("*.json")))
        raise ValueError(f"no such DeepSpeed configuration; shipped are {shipped}, or give a .json file")
    settings = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no JSON object")
    taken = [
        part for part in ("bf16", "fp16", "optimizer", "scheduler", "torch_autocast") if part in settings
    ]
    if taken:
        raise ValueError(
            f"{path} sets {', '.join(taken)}, which train.precision, train.lr and their kin decide"
        )
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"{path}: ZeRO has no stage {stage}; 0, 1, 2 and 3 are")
    if stage == 3 and any("offload" in part for part in settings["zero_optimization"]):
        raise ValueError(f"{path}: offload is supported at ZeRO stage 2, not at 3")
    return {part: value for part, value in settings.items() if part != "train_batch_size"}


def identity(config: Any) -> dict[str, Any]:
    """The part of a configuration that decides the outcome of a run, as nested dictionaries.

    A key at the value that stands for the time before it was there (`before`) is left out, so that a run keeps its
    identity, and its folder, in later versions.
    """
    values = asdict(config)

    def prune(schema: Any, node: dict[str, Any]) -> dict[str, Any]:
        kept = {}
        for item in fields(schema):
            value = getattr(schema, item.name)
            if is_dataclass(value):
                if part := prune(value, node[item.name]):
                    kept[item.name] = part
            elif item.metadata.get("identity", True) and item.metadata.get("before", MISSING) != value:
                kept[item.name] = node[item.name]
        return kept

    return prune(config, values)
