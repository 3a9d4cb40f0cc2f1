"""The time limit, memory and partition that each job requests from Slurm.

Every kind of job has its own time limit (`cluster.timeout_min_per_kind`), since a limit of a day keeps a job of a second
waiting. Memory is estimated per node: an allowance for each process, and what its model needs. `cluster.timeout_min`,
`cluster.mem_gb` and the mappings of the grid override both. Time limits and estimated memory are capped at what the
partition allows.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from metapt.config import ClusterConfig, PretrainConfig
from metapt.estimate.flops import parameter_count
from metapt.estimate.memory import Ranks, largest_peak
from metapt.estimate.speed import GB
from metapt.estimate.update_split import with_numbers
from metapt.launch.jobs import Job, Plan
from metapt.slurm_commands import SETTING_SECONDS, call

MINUTES = {"prepare": 720, "pretrain": 1440, "finetune": 480, "baseline": 120, "report": 60}  # time limits
ON_CPUS = ("prepare", "baseline", "report")  # kinds of job that use no GPU
PROCESS_GB = {
    "cpu": 2,
    "cuda": 8,
}  # of the interpreter, the libraries and a batch; on GPUs also pinned buffers
MARGIN = 1.25  # of the estimate of a model's memory
STATE_BYTES = 16  # per parameter, on the host of a GPU: weights, gradient and both moments while a checkpoint is written
TUNING_BYTES = 32  # per parameter: the same, the best weights, and activations of a batch
OTHER_GB = {"prepare": 8, "baseline": 4, "report": 8}
UNKNOWN_MODEL_GB = 16  # of a fine-tuning job whose model the grid does not pretrain


@dataclass(frozen=True)
class PartitionLimits:
    """What a partition allows: minutes of a job, and memory of its largest node in Slurm's GB, 1024 MiB; None: no limit, or
    unknown.
    """

    minutes: int | None = None
    mem_gb: int | None = None


def with_resources(
    plan: Plan, jobs: Sequence[Job], cluster: ClusterConfig
) -> tuple[list[Job], tuple[str, ...]]:
    """Jobs with the time limit and the memory that they request, and one line for each limit that was capped."""
    limits = {name: partition_limits(name) for name in {partition(job, cluster) for job in jobs}}
    capped: dict[str, list[str]] = {}
    resolved, planned = [], {job.id: job for job in plan.jobs}
    for job in jobs:
        name = partition(job, cluster)
        allowed = limits[name]
        minutes = minutes_of(job, cluster)
        memory = _memory(job, _origin(job, planned), plan.configs, cluster)
        shown = f"partition {name}" if name else "the default partition"
        if allowed.minutes is not None and minutes > allowed.minutes:
            line = f"{allowed.minutes} minutes instead of {minutes}, the longest time limit in {shown}"
            capped.setdefault(line, []).append(job.id)
            minutes = allowed.minutes
        is_estimate = not (
            job.mem_gb or cluster.mem_gb
        )  # more than a node has is an error if the user asks for it
        if is_estimate and allowed.mem_gb is not None and memory is not None and memory > allowed.mem_gb:
            line = f"{allowed.mem_gb} GB of memory instead of {memory}, all of a node in {shown}"
            capped.setdefault(line, []).append(job.id)
            memory = allowed.mem_gb
        resolved.append(replace(job, hours=minutes / 60, mem_gb=memory))
    return resolved, tuple(f"{len(ids)} job(s) request {line}" for line, ids in capped.items())


def partition(job: Job, cluster: ClusterConfig) -> str | None:
    """The partition of a job; None: the one that Slurm chooses."""
    return (cluster.cpu_partition if job.kind in ON_CPUS else None) or cluster.partition


def minutes_of(job: Job, cluster: ClusterConfig) -> int:
    """The time limit of a job, before the partition's."""
    if job.hours is not None:
        return max(1, round(job.hours * 60))  # to Slurm 0 is no limit
    return cluster.timeout_min or cluster.timeout_min_per_kind.get(job.kind, MINUTES[job.kind])


def _memory(job: Job, origin: Job, configs: Mapping[str, Any], cluster: ClusterConfig) -> int | None:
    """GB per node; None if neither the user nor an estimate says it."""
    if requested := job.mem_gb or cluster.mem_gb:
        return requested
    if job.kind in OTHER_GB:
        return OTHER_GB[job.kind]
    if origin.model:
        return job.tasks_per_node * UNKNOWN_MODEL_GB
    config: PretrainConfig | None = configs.get(origin.id)
    if config is None:
        return None
    device = "cuda" if job.gpus_per_node else "cpu"
    parameters = parameter_count(config.model)
    if job.kind == "finetune":
        model_bytes = TUNING_BYTES * parameters
    elif device == "cuda":
        model_bytes = STATE_BYTES * parameters
    else:
        ranks = Ranks(job.nodes * job.tasks_per_node, "cpu")
        model_bytes = largest_peak(with_numbers(config, ranks, None), ranks)
    return job.tasks_per_node * ceil(PROCESS_GB[device] + MARGIN * model_bytes / GB)


def _origin(job: Job, planned: Mapping[str, Job]) -> Job:
    """The job from which a model comes: the pretraining run, or the fine-tuning run of a model that the grid does not pretrain.

    A fine-tuning run needs this job, or the run whose tagger it trains further.
    """
    while job.kind == "finetune" and job.needs:
        job = planned[job.needs[0]]
    return job


def partition_limits(name: str | None) -> PartitionLimits:
    """The limits of a partition according to sinfo; none if it does not answer.

    Args:
        name: None: that of SBATCH_PARTITION, or the site's default.
    """
    name = name or os.environ.get("SBATCH_PARTITION")
    command = ["sinfo", "--noheader", "--format=%P|%l|%m", *([f"--partition={name}"] if name else [])]
    try:
        answer = call(command, timeout=SETTING_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return PartitionLimits()
    rows = [line.split("|") for line in answer.splitlines() if line.count("|") == 2]
    rows = [row for row in rows if name or row[0].endswith("*")]
    if not rows:
        return PartitionLimits()
    minutes = [_minutes(time) for _, time, _ in rows]
    memory = [int(found[0]) for _, _, size in rows if (found := re.match(r"\d+", size))]
    longest = None if None in minutes else max(value for value in minutes if value is not None)
    return PartitionLimits(longest, max(memory, default=0) // 1024 or None)


def _minutes(limit: str) -> int | None:
    """A time limit of sinfo ([days-][hours:]minutes:seconds) in minutes; None if there is none."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit.strip())
    if not found:
        return None
    days, hours, minutes, _ = (int(value or 0) for value in found.groups())
    return (days * 24 + hours) * 60 + minutes
