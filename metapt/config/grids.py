"""Keys of grids, of the cluster that runs them, and of what asks after them."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from metapt.config.keys import key


@dataclass
class GridConfig:
    """A grid: the product of sizes, objectives, seeds and variants, each tuned on sources under tunings."""

    name: str = key(MISSING, "name of the grid; set by grid=")
    sizes: list[str] = key(["nano"], "models")
    objectives: list[str] = key(["vanilla", "maml"], "objectives")
    seeds: list[int] = key([0], "seeds, of pretraining and of the fine-tuning after it")
    variants: dict[str, list[str]] = key(
        {},
        "name: pretraining overrides; every variant is run (vanilla: one of those that differ in meta. alone)",
    )
    sources: list[str] = key([], "fine-tuning sets")
    tunings: list[str] = key(["head_only", "full"], "fine-tuning tunings")
    checkpoints: list[int] = key([], "pretraining steps to fine-tune; empty: the last")
    extra_checkpoints: dict[str, list[int]] = key(
        {}, "objective or variant: further steps to fine-tune, such as the one at equal FLOPs"
    )
    pretrain: list[str] = key([], "overrides for every pretraining run")
    finetune: list[str] = key([], "overrides for every fine-tuning run")
    per_size: dict[str, list[str]] = key({}, "size: further pretraining overrides")
    finetune_per_tuning: dict[str, list[str]] = key({}, "tuning: further fine-tuning overrides")
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
        1,
        "GPUs of a fine-tuning job, one task each, at most those of a node; tuning=head_only takes one",
        low=1,
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
    visibility_timeout_s: int = key(
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
