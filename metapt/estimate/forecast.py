"""The estimate of a pretraining run as text: memory per rank, the largest micro-batch, FLOPs, hours.

metapt/estimate/memory.py and metapt/estimate/flops.py compute the numbers. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

from metapt.config import EstimateConfig, PretrainConfig
from metapt.estimate.flops import episode_fraction, flops_expected, flops_of_step, lm_fraction
from metapt.estimate.memory import KINDS, Ranks, all_parameters, peak

GIB, GB, TFLOP = 2**30, 10**9, 10**12
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


@dataclass(frozen=True)
class Machine:
    """The machine of a run.

    Attributes:
        ranks: the ranks and their kind of device.
        memory_gb: memory of a device, GB; None if unknown.
        headroom: fraction of it kept free.
        tflops: peak throughput of a device, TFLOP/s; None if unknown.
        mfu: fraction of the peak that is reached.
    """

    ranks: Ranks
    memory_gb: float | None = None
    headroom: float = 0.1
    tflops: float | None = None
    mfu: float = 0.3

    @property
    def budget(self) -> float | None:
        """Bytes that a rank may use, or None if the memory is unknown."""
        return None if self.memory_gb is None else self.memory_gb * GB * (1 - self.headroom)


def update_kinds(config: PretrainConfig) -> list[str]:
    """The kinds of update that the run has, of KINDS."""
    fractions = {"lm": lm_fraction(config), "episode": episode_fraction(config)}
    return [kind for kind in KINDS if fractions[kind] > 0]


def largest_peak(config: PretrainConfig, ranks: Ranks) -> int:
    """Peak memory of the run on a rank, bytes."""
    return max(peak(config, kind, ranks)[1].total for kind in update_kinds(config))


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


def hours(config: PretrainConfig, machine: Machine) -> float | None:
    """Expected hours of all updates, without evaluation and checkpoints; None if the throughput is unknown."""
    if machine.tflops is None:
        return None
    speed = machine.ranks.count * machine.tflops * TFLOP * machine.mfu
    return config.train.max_steps * flops_expected(config) / speed / 3600


def implied_mfu(config: PretrainConfig, machine: Machine, measured_hours: float) -> float:
    """The model FLOPs utilization of a run that took this many hours (`machine.mfu` is ignored)."""
    hours_at_peak = hours(config, replace(machine, mfu=1.0))
    assert hours_at_peak is not None
    return hours_at_peak / measured_hours


def format_number(value: float) -> str:
    """A number with one decimal, or with two significant digits if it is below 1."""
    return f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def describe(config: EstimateConfig) -> str:
    """The text that `metapt estimate` prints."""
    ranks = Ranks(config.nodes * max(1, config.gpus), "cuda" if config.gpus else "cpu")
    machine = Machine(ranks, config.gpu_memory_gb, config.headroom, config.gpu_tflops, config.mfu)
    devices = f"{_count(config.gpus, 'GPU')} per node" if config.gpus else "CPU only"
    return "\n".join(
        [
            f"{config.model.name}: {all_parameters(config):,} parameters",
            f"ds={config.ds}, train.precision={config.train.precision}, "
            f"{_count(ranks.count, 'rank')} ({_count(config.nodes, 'node')}, {devices})",
            "",
            *_memory_table(config, ranks),
            "",
            *_micro_batch(config, machine),
            "",
            *_compute(config),
            "",
            _time(config, machine),
        ]
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
    sequences, ranks = train.micro_batch * train.micro_batches_per_update, machine.ranks.count
    divisors = [size for size in range(1, largest + 1) if sequences % (size * ranks) == 0]
    if divisors:
        size = divisors[-1]
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


def _time(config: PretrainConfig, machine: Machine) -> str:
    time = hours(config, machine)
    if time is None:
        return "set gpu_tflops= (peak throughput of a device) for an estimate of the time"
    throughput = f"{machine.mfu:.0%} of {machine.ranks.count} x {machine.tflops:g} TFLOP/s"
    return f"{format_number(time)} hours at {throughput}, without evaluation and checkpoints"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
