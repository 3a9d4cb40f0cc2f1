"""The requirements of a plan's pretraining runs, for the dry run: memory, compute, hours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from metapt.config import ClusterConfig, PretrainConfig, is_compiled
from metapt.estimate.disk import model_bytes, run_bytes
from metapt.estimate.flops import flops_expected, passes_over
from metapt.estimate.forecast import GIB, format_number, largest_micro_batch, with_gpu
from metapt.estimate.gpus import GPUS
from metapt.estimate.memory import Ranks, largest_peak
from metapt.estimate.speed import GB, TFLOP, Machine, hours
from metapt.estimate.update_split import with_numbers
from metapt.launch.detectability import detectable_effects
from metapt.launch.jobs import Job, Plan
from metapt.launch.resources import minutes_of, with_resources
from metapt.launch.submit_limits import room

HEADER = (
    "pretraining run",
    "seeds",
    "ranks",
    "GiB/rank",
    "largest batch",
    "TFLOP/update",
    "hours",
    "disk GB",
)


def requirements(plan: Plan, todo: Sequence[Job], cluster: ClusterConfig) -> list[str]:
    """The lines of a table, one row per size, objective and variant (all seeds need the same), total node-hours, and what comparisons can show.

    The column "largest batch" is the largest train.micro_batch that fits the memory; it needs cluster.gpu_memory_gb.
    Hours need cluster.gpu. The totals are an estimate for all pretraining of the plan, and the sum of the time
    limits of the jobs to do.
    """
    runs: dict[tuple[str, str, str], list[Job]] = {}
    for job in plan.jobs:
        if job.kind == "pretrain":
            runs.setdefault((job.size, job.objective, job.variant), []).append(job)
    limits = list(_limit_total(plan, todo, cluster))
    if not runs:
        return limits
    rows = [HEADER, *(_row(plan.configs[jobs[0].id], jobs, cluster) for jobs in runs.values())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    ]
    return [
        *lines,
        *_unequal_passes(plan),
        *_estimated_total(plan, cluster),
        *limits,
        *detectable_effects(plan),
    ]


def _row(config: PretrainConfig, jobs: list[Job], cluster: ClusterConfig) -> tuple[str, ...]:
    job = jobs[0]
    machine = _machine(job, config, cluster)
    config = with_numbers(config, machine.ranks, machine.budget)
    time = hours(config, machine, compiled=is_compiled(config, machine.ranks.device))
    return (
        "-".join(filter(None, (job.size, job.objective, job.variant))),
        str(len(jobs)),
        str(machine.ranks.count),
        format_number(largest_peak(config, machine.ranks) / GIB),
        "" if machine.memory_gb is None else str(largest_micro_batch(config, machine)),
        format_number(flops_expected(config) / TFLOP),
        "" if time is None else format_number(time),
        format_number(run_bytes(config) / GB),
    )


def _unequal_passes(plan: Plan) -> Iterator[str]:
    """A warning for each size whose arms repeat a corpus of known length unequally."""
    passes: dict[str, dict[str, float]] = {}
    for job in plan.jobs:
        config = plan.configs.get(job.id)
        if job.kind == "pretrain" and isinstance(config, PretrainConfig) and config.data.max_tokens:
            tokens = round(config.data.max_tokens * (1 - config.data.eval_fraction))
            arm = "-".join(filter(None, (job.objective, job.variant)))
            passes.setdefault(job.size, {})[arm] = passes_over(config, tokens)
    for size, by_arm in passes.items():
        if max(by_arm.values()) > max(1.05, 1.05 * min(by_arm.values())):
            counts = ", ".join(f"{arm} {value:.1f}" for arm, value in by_arm.items())
            yield f"warning: passes over data.max_tokens differ at {size} ({counts}), so that arms repeat text unequally"


def _estimated_total(plan: Plan, cluster: ClusterConfig) -> Iterator[str]:
    pretrains = [job for job in plan.jobs if job.kind == "pretrain"]
    checkpoints = sum(run_bytes(plan.configs[job.id]) for job in pretrains)
    sizes = {job.id: model_bytes(plan.configs[job.id]) for job in pretrains}
    taggers = 0
    for job in plan.jobs:  # in order, so that a tagger that is trained further comes first
        if job.kind == "finetune":
            sizes[job.id] = max((sizes[need] for need in job.needs if need in sizes), default=0)
            taggers += sizes[job.id]
    yield (
        f"disk: {format_number(checkpoints / GB)} GB of checkpoints and {format_number(taggers / GB)} GB of taggers, without corpora and "
        "cached features"
    )
    times = []
    for job in pretrains:
        machine = _machine(job, plan.configs[job.id], cluster)
        config = with_numbers(plan.configs[job.id], machine.ranks, machine.budget)
        times.append(hours(config, machine, compiled=is_compiled(config, machine.ranks.device)))
    known = [time * job.nodes for time, job in zip(times, pretrains, strict=True) if time is not None]
    if len(known) < len(times):
        yield f"hours: no estimate; set cluster.gpu= ({', '.join(GPUS)}), or cluster.gpu_tflops= and cluster.gpu_bandwidth_gbs="
        return
    yield f"pretraining: an estimated {format_number(sum(known))} node-hours, fine-tuning not included"


def _limit_total(plan: Plan, todo: Sequence[Job], cluster: ClusterConfig) -> Iterator[str]:
    if cluster.name == "inline" or not todo:
        return  # inline jobs have no time limit
    if cluster.name == "slurm":
        todo, capped = with_resources(plan, todo, cluster)
        yield from capped
        if (allowed := room(cluster.account)) and allowed.left < len(todo):
            yield f"{len(todo)} jobs do not fit into the site's limit ({allowed}); the grid is submitted in parts"
    total = format_number(sum(job.nodes * minutes_of(job, cluster) / 60 for job in todo))
    yield f"time limits of the {len(todo)} jobs to do: at most {total} node-hours without requeues"


def _machine(job: Job, config: PretrainConfig, cluster: ClusterConfig) -> Machine:
    ranks = Ranks(job.nodes * job.tasks_per_node, "cuda" if job.gpus_per_node else "cpu")
    return with_gpu(cluster, ranks, config.train.precision)
