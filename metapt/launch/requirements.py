"""What the pretraining runs of a plan will need, for the dry run: memory, operations, hours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from metapt.config import ClusterConfig, PretrainConfig
from metapt.estimate.flops import flops_expected
from metapt.estimate.forecast import GIB, TFLOP, Machine, figure, hours, largest_micro_batch, largest_peak
from metapt.estimate.memory import Ranks
from metapt.launch.jobs import Job, Plan

HEADER = ("pretraining run", "seeds", "ranks", "GiB/rank", "largest batch", "TFLOP/update", "hours")


def requirements(plan: Plan, todo: Sequence[Job], cluster: ClusterConfig) -> list[str]:
    """A table with a row for each size, objective and variant (seeds need the same), and the totals of node-hours: as
    forecast for the pretraining of the whole plan, and as the limits allow for what is to do.

    "largest batch" is the largest train.micro_batch that fits, if cluster.gpu_memory_gb is given; hours need
    cluster.gpu_tflops.
    """
    runs: dict[tuple[str, str, str], list[Job]] = {}
    for job in plan.jobs:
        if job.kind == "pretrain":
            config = plan.configs[job.id]
            runs.setdefault((config.model.name, config.meta.objective, job.variant), []).append(job)
    rows = [HEADER, *(_row(plan.configs[jobs[0].id], jobs, cluster) for jobs in runs.values())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    ]
    return [*lines, *_total(plan, cluster), *_limit(todo, cluster)]


def _row(config: PretrainConfig, jobs: list[Job], cluster: ClusterConfig) -> tuple[str, ...]:
    machine = _machine(jobs[0], cluster)
    time = hours(config, machine)
    return (
        "-".join(filter(None, (config.model.name, config.meta.objective, jobs[0].variant))),
        str(len(jobs)),
        str(machine.ranks.count),
        figure(largest_peak(config, machine.ranks) / GIB),
        "" if machine.memory_gb is None else str(largest_micro_batch(config, machine)),
        figure(flops_expected(config) / TFLOP),
        "" if time is None else figure(time),
    )


def _total(plan: Plan, cluster: ClusterConfig) -> Iterator[str]:
    pretrains = [job for job in plan.jobs if job.kind == "pretrain"]
    if cluster.gpu_tflops is None:
        yield "hours: give cluster.gpu_tflops= (peak of a GPU) and cluster.mfu="
        return
    times = [hours(plan.configs[job.id], _machine(job, cluster)) or 0.0 for job in pretrains]
    total = sum(time * job.nodes for time, job in zip(times, pretrains, strict=True))
    yield f"pretraining at {cluster.mfu:.0%} of the peak: {figure(total)} node-hours (fine-tuning is not counted)"


def _limit(todo: Sequence[Job], cluster: ClusterConfig) -> Iterator[str]:
    if cluster.name == "inline" or not todo:
        return  # without limits
    most = sum(job.nodes * (job.hours or cluster.timeout_min / 60) for job in todo)
    yield f"time limits of the {len(todo)} jobs to do: at most {figure(most)} node-hours, unless jobs are queued again"


def _machine(job: Job, cluster: ClusterConfig) -> Machine:
    ranks = Ranks(job.nodes * job.tasks_per_node, "cuda" if job.gpus_per_node else "cpu")
    return Machine(ranks, cluster.gpu_memory_gb, tflops=cluster.gpu_tflops, mfu=cluster.mfu)
