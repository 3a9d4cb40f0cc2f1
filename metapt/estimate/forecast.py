"""The estimate of a pretraining run as text: memory per rank, the largest micro-batch, FLOPs, time, disk.

Other modules of this package compute the numbers. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy

from metapt.config import ClusterConfig, EstimateConfig, PretrainConfig, zero_stage
from metapt.errors import UserError
from metapt.estimate.disk import checkpoint_count, largest_run_bytes, run_bytes
from metapt.estimate.flops import flops_expected, flops_of_step
from metapt.estimate.gpus import GPUS, gpu_of
from metapt.estimate.kernels import micro_batch_work
from metapt.estimate.memory import Ranks, all_parameters, largest_peak, peak, update_kinds
from metapt.estimate.speed import (
    ASSUMPTIONS,
    GB,
    TFLOP,
    Machine,
    hours,
    mfu,
    update_seconds,
    with_micro_batch,
    with_whole_scores,
)
from metapt.estimate.update_split import best_split

GIB = 2**30
MAX_MICRO_BATCH = 4096  # of the search for the largest that fits
UPDATE_NAMES = {"lm": "next-token update", "episode": "episode update"}
MEMORY_NAMES = {
    "parameters": "parameters",
    "optimizer": "optimizer state",
    "gradients": "gradients",
    "adapted": "adapted parameters",
    "activations": "activations",
    "temporaries": "temporary buffers",
    "total": "total",
}


def largest_micro_batch(config: PretrainConfig, machine: Machine) -> int:
    """The largest train.micro_batch that fits into the memory of a rank; 0 if none does. The memory must be known."""
    budget = machine.budget
    assert budget is not None

    def fits(size: int) -> bool:
        candidate = deepcopy(config)
        candidate.train.micro_batch = size
        return largest_peak(candidate, machine.ranks) <= budget

    low, high = 0, MAX_MICRO_BATCH  # the peak grows with the micro-batch
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def format_number(value: float) -> str:
    """A number with one decimal, or with two significant digits if it is below 1."""
    return f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def machine_of(config: EstimateConfig) -> Machine:
    """The machine that the keys of `metapt estimate` describe."""
    ranks = Ranks(config.nodes * max(1, config.gpus), "cuda" if config.gpus else "cpu")
    return with_gpu(config, ranks, config.train.precision, config.headroom)


def with_gpu(
    keys: EstimateConfig | ClusterConfig, ranks: Ranks, precision: str, headroom: float = 0.1
) -> Machine:
    """Ranks on the GPU that the keys `gpu`, `gpu_memory_gb`, `gpu_bandwidth_gbs` and `gpu_tflops` describe.

    Raises:
        UserError: the name of the GPU is not known.
    """
    gpu = gpu_of(keys.gpu) if keys.gpu else None
    return Machine(
        ranks,
        keys.gpu_memory_gb or (gpu.memory_gb if gpu else None),
        headroom,
        keys.gpu_tflops or (gpu.tflops[precision] if gpu else None),
        keys.gpu_bandwidth_gbs or (gpu.bandwidth_gbs if gpu else None),
    )


def describe(config: EstimateConfig) -> str:
    """The text that `metapt estimate` prints; the micro-batch must be a number (metapt/estimate/update_split.py)."""
    machine = machine_of(config)
    devices = f"{_count(config.gpus, config.gpu or 'GPU')} per node" if config.gpus else "CPU only"
    return "\n".join(
        [
            f"{config.model.name}: {all_parameters(config):,} parameters",
            f"ds={config.ds}, train.precision={config.train.precision}, "
            f"{_count(machine.ranks.count, 'rank')} ({_count(config.nodes, 'node')}, {devices})",
            *_bf16_warning(config),
            "",
            *_memory_table(config, machine.ranks),
            "",
            *_micro_batch(config, machine),
            "",
            *_compute(config),
            "",
            *_time(config, machine),
            "",
            *_disk(config),
        ]
    )


def _bf16_warning(config: EstimateConfig) -> Iterator[str]:
    """A warning if the GPU has no bf16 products."""
    if config.gpu and config.train.precision == "bf16" and not gpu_of(config.gpu).has_bf16:
        major, minor = gpu_of(config.gpu).capability
        yield (
            f"warning: {config.gpu} has compute capability {major}.{minor}; bf16 products need 8.0 and are converted to fp32 "
            "here, so set train.precision=fp32"
        )


def _memory_table(config: PretrainConfig, ranks: Ranks) -> Iterator[str]:
    """Memory at the peak of each kind of update, by purpose."""
    peaks = {kind: peak(config, kind, ranks) for kind in update_kinds(config)}
    memories = [memory for _, memory in peaks.values()]
    yield _row("GiB per rank at the peak", [UPDATE_NAMES[kind] for kind in peaks])
    for name, title in MEMORY_NAMES.items():
        yield _row(f"  {title}", [f"{getattr(memory, name) / GIB:.2f}" for memory in memories])
    if any(memory.host for memory in memories):
        yield _row("  host memory (offloaded)", [f"{memory.host / GIB:.2f}" for memory in memories])
    yield _row("  phase of the peak", [phase for phase, _ in peaks.values()])


def _row(title: str, cells: Sequence[str]) -> str:
    return f"{title:30}" + "".join(f"{cell:>20}" for cell in cells)


def _micro_batch(config: EstimateConfig, machine: Machine) -> Iterator[str]:
    """Whether the micro-batch fits, and the largest that does."""
    train = config.train
    if machine.budget is None:
        yield f"train.micro_batch={train.micro_batch}; set gpu_memory_gb= for the largest micro-batch that fits"
        return
    memory = (
        f"{machine.memory_gb:g} GB minus {machine.headroom:.0%} headroom ({machine.budget / GIB:.1f} GiB)"
    )
    largest = largest_micro_batch(config, machine)
    if not largest:
        yield f"no micro-batch fits into {memory}"
        return
    verdict = "fits" if train.micro_batch <= largest else "does not fit"
    yield f"train.micro_batch={train.micro_batch} {verdict} into {memory}; the largest that fits is {largest}"
    for size in _auto_micro_batch(config, machine):
        sequences = train.sequences
        yield (
            f"with the same {sequences:,} sequences per update: "
            f"train.micro_batch={size} train.micro_batches_per_update={sequences // size}"
        )


def _compute(config: PretrainConfig) -> Iterator[str]:
    """FLOPs of each kind of update, of their mean, and of the run."""
    steps, mean = config.train.max_steps, flops_expected(config)
    flops = {UPDATE_NAMES[kind]: flops_of_step(config, kind == "episode") for kind in update_kinds(config)}
    rows = {**flops, f"mean update (meta.rho={config.meta.rho:g})": mean, f"{steps:,} updates": steps * mean}
    yield _row("compute", ["10^12 FLOPs"])
    for title, value in rows.items():
        yield _row(f"  {title}", [format_number(value / TFLOP)])
    yield (
        "of attention scores the causal half is counted; PaLM and nanochat count all, "
        f"which is {with_whole_scores(config) - 1:.0%} more for a next-token update"
    )


def _time(config: PretrainConfig, machine: Machine) -> Iterator[str]:
    """Estimated time with and without compiled blocks, for the given micro-batch and for the largest that fits."""
    if machine.ranks.device == "cpu":
        yield "time is estimated for GPUs only"
        return
    if not machine.is_known:
        yield (
            f"set gpu= ({', '.join(GPUS)}) for an estimate of the time, or for another GPU gpu_tflops= (peak at "
            "train.precision), gpu_bandwidth_gbs= and gpu_memory_gb="
        )
        return
    sizes = dict.fromkeys([config.train.micro_batch, *_auto_micro_batch(config, machine)])
    ways = [
        (f"{size}{', compiled' if compiled else ''}", with_micro_batch(config, size), compiled)
        for size in sizes
        for compiled in ([False] if zero_stage(config.ds) == 3 else [False, True])
    ]
    yield _row("time, by train.micro_batch", [name for name, _, _ in ways])
    works = [micro_batch_work(candidate, compiled) for _, candidate, compiled in ways]
    yield _row("  kernels of a micro-batch", [f"{work.kernels:,.0f}" for work in works])
    yield _row("  memory traffic, GB", [f"{work.bytes / GB:.1f}" for work in works])
    for kind in update_kinds(config):
        seconds = [
            update_seconds(candidate, machine, kind == "episode", compiled) for _, candidate, compiled in ways
        ]
        yield _row(f"  {UPDATE_NAMES[kind]}, s", [format_number(value) for value in seconds])
    utilizations = [mfu(candidate, machine, compiled) for _, candidate, compiled in ways]
    yield _row("  MFU", [f"{value:.0%}" for value in utilizations])
    whole = with_whole_scores(config)
    yield _row("  MFU, all attention scores", [f"{value * whole:.0%}" for value in utilizations])
    totals = [hours(candidate, machine, compiled) or 0.0 for _, candidate, compiled in ways]
    yield _row(f"  hours of {config.train.max_steps:,} updates", [format_number(value) for value in totals])
    yield f"an estimate, never compared with a GPU; {ASSUMPTIONS}"


def _auto_micro_batch(config: PretrainConfig, machine: Machine) -> list[int]:
    """What train.micro_batch=auto would choose for the same sequences of an update; empty if nothing fits or is known."""
    if machine.budget is None:
        return []
    try:
        return [best_split(config, machine.ranks, machine.budget).train.micro_batch]
    except UserError:
        return []


def _disk(config: PretrainConfig) -> Iterator[str]:
    """Bytes of the checkpoints."""
    kept = config.train.keep_optimizer_states
    states = f"the newest {kept} with optimizer state" if kept else "all with optimizer state"
    yield (
        f"disk: {format_number(run_bytes(config) / GB)} GB for {checkpoint_count(config)} checkpoints, {states}; "
        f"{format_number(largest_run_bytes(config) / GB)} GB while the last one is written"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
