"""Keys of grids of jobs, of the cluster that runs them, and of their status."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from metapt.baseline_names import BASELINE_NAMES
from metapt.config.keys import key

# where a key of the cluster has an effect
HERE, SLURM, LOCAL_OR_SLURM = ("inline", "local"), ("slurm",), ("local", "slurm")


@dataclass
class ComparisonConfig:
    """A comparison that the report makes: first minus second. An arm is an objective or OBJECTIVE/VARIANT."""

    first: str = key(MISSING, "the arm that is compared")
    second: str = key(MISSING, "the arm that it is compared with")
    primary: bool = key(
        True, "whether the comparison gets a verdict, with p values corrected over all primary ones"
    )
    tunings: list[str] = key([], "ways of fine-tuning that are compared; empty: all")
    may_differ: list[str] = key(
        [], "patterns of keys that may differ between the arms beside those of the objective"
    )


@dataclass
class GridConfig:
    """The runs of a grid: sizes x objectives x variants x seeds, and models, each fine-tuned on sources x tunings x finetune_axes."""

    name: str = key(MISSING, "name of the grid", internal=True)
    sizes: list[str] = key(
        [],
        "model sizes to pretrain: options of model= in `metapt pretrain`, or .yaml files with a size of your own; empty: "
        "only grid.models are fine-tuned",
    )
    objectives: list[str] = key(
        ["vanilla", "maml"], "training objectives (options of objective= in `metapt pretrain`)"
    )
    seeds: list[int] = key([0], "random seeds; each applies to a pretraining run and to its fine-tuning runs")
    variants: dict[str, list[str]] = key(
        {},
        "pretraining overrides of each variant, by name. With objective=vanilla, variants that differ only in "
        "keys of meta, episodes and multitask are run once",
    )
    sources: list[str] = key([], "labelled sets to fine-tune on; without any, nothing is fine-tuned")
    tunings: list[str] = key(
        ["head_only", "full"], "ways of fine-tuning (choices of tuning= in `metapt finetune`)"
    )
    checkpoints: list[int] = key(
        [], "checkpoints of each pretraining run to fine-tune; empty: the last one", unit="updates"
    )
    extra_checkpoints: dict[str, list[int]] = key(
        {},
        "further checkpoints to fine-tune, by objective or variant, such as the one at equal FLOPs; without k-shot runs",
        unit="updates",
    )
    pretrain: list[str] = key([], "overrides of every pretraining run")
    finetune: list[str] = key([], "overrides of every fine-tuning run")
    per_size: dict[str, list[str]] = key({}, "further pretraining overrides, by size")
    per_objective: dict[str, list[str]] = key({}, "further pretraining overrides, by objective")
    finetune_per_tuning: dict[str, list[str]] = key({}, "further fine-tuning overrides, by tuning")
    finetune_axes: dict[str, list[Any]] = key(
        {},
        "values of keys of `metapt finetune`, such as {ner.lr: [1e-4, 1e-3]}; every combination is run",
    )
    finetune_seeds: list[int] = key(
        [],
        "random seeds of fine-tuning; every model is fine-tuned with each. Empty: the seed of its pretraining, and "
        "grid.seeds for grid.models",
    )
    shots: list[int] = key(
        [],
        "sizes k of samples of a target language on which every fine-tuned tagger is trained further, as a number of "
        "grid.shot_unit",
    )
    shot_unit: str = key(
        "sentences",
        "what grid.shots counts",
        choices={
            "sentences": "training sentences",
            "entities_per_type": "entities of each type; the sample has no sentence without an entity",
        },
    )
    shot_targets: list[str] = key(
        [],
        "labelled sets with a train split from which grid.shots are sampled; the sources of a tagger are left out",
    )
    shot_tunings: list[str] = key(
        [], "ways of fine-tuning (of grid.tunings) whose taggers are trained further; empty: all"
    )
    shot_updates: int = key(
        100, "number of updates on each sample, fixed in advance; no dev set is used", low=1
    )
    subset_seeds: list[int] = key([0], "random seeds of the samples of grid.shots")
    finetune_shots: list[str] = key([], "further fine-tuning overrides, for grid.shots")
    baselines: list[str] = key(
        [],
        f"baseline taggers to score ({', '.join(BASELINE_NAMES)}); those that are trained run on every source",
    )
    comparisons: list[ComparisonConfig] = key(
        [],
        "comparisons that the report makes, such as [{first: maml, second: vanilla}], where an arm is an objective or "
        "OBJECTIVE/VARIANT. Further entries: primary (default true: it gets a verdict), tunings (default all), may_differ "
        "(patterns of keys that may differ beside those of the objective, such as ner.lr). Without any, every objective is "
        "compared with vanilla, and every variant with the variant base",
    )
    targets: list[str] = key(
        ["tl", "ceb"],
        "languages, or whole names of evaluation sets, that the report's averages and verdicts are about; the language "
        "of a set is what precedes the first _ in its name",
    )
    margin: float = key(
        2.0,
        "largest difference of F1 without practical importance: a comparison whose confidence interval lies within it has "
        "the verdict `no effect of practical size`",
        unit="F1 points",
        above=0,
    )
    models: list[str] = key(
        [], "further models, fine-tuned like those of the grid: model folders (also of encoders) or hub:NAME"
    )
    gpus_per_size: dict[str, int] = key(
        {}, "number of GPUs of a pretraining job, by size; spread over nodes if needed"
    )
    hours_per_size: dict[str, float] = key(
        {},
        "time limit of a pretraining job, by size; otherwise cluster.timeout_min applies",
        unit="hours",
    )
    mem_gb_per_size: dict[str, int] = key(
        {}, "memory per node of a pretraining job, by size; otherwise cluster.mem_gb applies", unit="GB"
    )


@dataclass
class ClusterConfig:
    """Where jobs run and which resources they request."""

    name: str = key(
        MISSING,
        "kind of executor",
        choices={
            "local": "processes on this machine, with time limits",
            "slurm": "batch jobs of Slurm",
            "inline": "children of the command, without time limits",
        },
        internal=True,
    )
    max_parallel: int = key(1, "number of jobs that run at the same time", low=1, only=HERE)
    threads: int | None = key(
        None, "number of CPU threads of a job", absent="CPU cores / cluster.max_parallel", low=1
    )
    timeout_min: int | None = key(
        None,
        "time limit of every job without an entry in grid.hours_per_size",
        unit="minutes",
        absent="cluster.timeout_min_per_kind",
        low=1,
        only=LOCAL_OR_SLURM,
    )
    timeout_min_per_kind: dict[str, int] = key(
        {},
        "time limits by kind of job; without an entry prepare has 720, pretrain 1440, finetune 480, baseline 120 and "
        "report 60. With cluster=slurm at most the partition's limit",
        unit="minutes",
        only=LOCAL_OR_SLURM,
    )
    nodes: int = key(
        1, "number of nodes of a pretraining job without an entry in grid.gpus_per_size", low=1, only=SLURM
    )
    gpus_per_node: int = key(0, "number of GPUs per node of a pretraining job, one task each", low=0)
    finetune_gpus: int = key(
        1,
        "number of GPUs of a fine-tuning job, one task each, at most those of a node; tuning=head_only uses one",
        low=1,
    )
    gpu_request: str = key(
        "gpus_per_node",
        "sbatch option that requests GPUs",
        choices={
            "gpus_per_node": "--gpus-per-node=[TYPE:]N",
            "gres": "--gres=gpu:[TYPE:]N",
            "constraint": "--constraint=TYPE, for sites that select GPU nodes by a feature",
            "none": "no option",
        },
        only=SLURM,
    )
    gpu_type: str | None = key(None, "type of GPU to request, such as a100", absent="any type", only=SLURM)
    max_running: int | None = key(
        None,
        "number of jobs of one job array that may run at the same time",
        absent="no limit",
        low=1,
        only=SLURM,
    )
    cpus_per_task: int = key(4, "number of CPUs per task", low=1, only=SLURM)
    mem_gb: int | None = key(
        None,
        "memory per node of every job without an entry in grid.mem_gb_per_size",
        unit="GB",
        absent="estimated by kind of job and size of the model",
        low=1,
        only=SLURM,
    )
    partition: str | None = key(None, "Slurm partition", absent="not specified", only=SLURM)
    cpu_partition: str | None = key(
        None, "Slurm partition of preparations, baselines and reports", absent="cluster.partition", only=SLURM
    )
    account: str | None = key(None, "Slurm account", absent="not specified", only=SLURM)
    qos: str | None = key(None, "Slurm quality of service (QOS)", absent="not specified", only=SLURM)
    signal_delay_s: int = key(
        120,
        "time between the signal that makes a job save a checkpoint and its time limit",
        unit="seconds",
        low=1,
        only=LOCAL_OR_SLURM,
    )
    visibility_timeout_s: int = key(
        90,
        "longest time that a job waits until results of earlier jobs are visible on its node's file system",
        unit="seconds",
        low=0,
        only=SLURM,
    )
    max_requeues_without_progress: int = key(
        5,
        "number of consecutive requeues without a new checkpoint after which a job is abandoned",
        low=0,
        only=LOCAL_OR_SLURM,
    )
    gpu: str | None = key(
        None,
        "type of GPU, such as a100-80, h100-sxm or l40s, for the estimate of a dry run",
        absent="unknown; time is not estimated without the three keys below",
    )
    gpu_memory_gb: float | None = key(
        None,
        "memory of a GPU, for the estimate of a dry run",
        unit="GB",
        absent="that of cluster.gpu=; if unknown, the largest micro-batch is not computed",
        above=0,
    )
    gpu_bandwidth_gbs: float | None = key(
        None,
        "bandwidth of the memory of a GPU, for the estimate of a dry run",
        unit="GB/s",
        absent="that of cluster.gpu=",
        above=0,
    )
    gpu_tflops: float | None = key(
        None,
        "peak throughput of dense matrix products of a GPU, for the estimate of a dry run",
        unit="TFLOP/s",
        absent="that of cluster.gpu=",
        above=0,
    )
    online: bool = key(
        False,
        "whether compute nodes can reach the Hugging Face hub; if not, the submitter downloads what the jobs read "
        "into cluster.cache",
        only=SLURM,
    )
    cache: str | None = key(
        None,
        "folder for token shards and downloads of the hub, on a file system that all nodes see; several grids can use one",
        absent="the folder of the grid",
    )
    extra: dict[str, str] = key(
        {},
        "further sbatch options, by long name; an option without argument has the value true: {exclusive: true}",
        only=SLURM,
    )
    exclude: str | None = key(
        None, "nodes that no job uses, as sbatch expects them: node[1-3],node7", absent="none", only=SLURM
    )
    modules: list[str] = key([], "environment modules that a job loads first", only=SLURM)
    exports: dict[str, str] = key(
        {}, "environment variables of a job, such as {NCCL_SOCKET_IFNAME: ib0}", only=SLURM
    )
    setup: list[str] = key(
        [], "shell lines that run before the job; the first that fails ends it", only=SLURM
    )
    python: str | None = key(
        None,
        "Python interpreter of the jobs, in whose environment metapt is installed",
        absent="the submitter's",
        only=SLURM,
    )
    launcher: str | None = key(
        None,
        "command before the interpreter that starts each process, for example a container: "
        "apptainer exec --nv metapt.sif",
        absent="none",
        only=SLURM,
    )
    srun_args: list[str] = key(
        [], "further options of srun, such as --container-image=metapt.sqsh for pyxis", only=SLURM
    )


@dataclass
class StatusConfig:
    """Show which jobs of a grid are done, running, queued or failed."""

    root: str = key(MISSING, "folder of a submitted grid")
    watch: bool = key(False, "refresh until every job is done, or Ctrl-C", flag=True)
    every_s: float = key(
        10.0, "interval between refreshes; each one calls squeue once", unit="seconds", low=1
    )
    json: bool = key(False, "print JSON, one line per refresh", flag=True)


@dataclass
class SubmitConfig:
    """Run a grid of pretraining, fine-tuning and baseline jobs on this machine or on Slurm, and write its report."""

    grid: GridConfig = field(default_factory=GridConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    root: str = key("runs/${grid.name}", "folder of the grid")
    code: str = key(
        "snapshot",
        "source code that jobs run",
        choices={
            "snapshot": "a copy made at submission, so that later edits do not affect queued jobs. Interrupted runs keep "
            "the copy that they have run so far, failed ones take the new one",
            "first": "like snapshot, but failed runs too keep the copy that they were started with",
            "now": "like snapshot, but interrupted runs too take the new copy",
            "live": "the source folder itself",
        },
    )
    dry_run: str = key(
        "false",
        "whether to print the plan instead of running it",
        choices={
            "false": "run the grid",
            "true": "print the plan, and the batch scripts with cluster=slurm; run nothing",
            "test": "like true, and check each batch script with `sbatch --test-only`",
        },
    )
