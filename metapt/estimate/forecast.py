"""What a pretraining run will need, as text: memory per rank, the largest micro-batch, operations, hours.

The models of memory and of operations are metapt/estimate/memory.py and metapt/estimate/flops.py. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, fields, replace

from metapt.config import EstimateConfig, PretrainConfig
from metapt.estimate.flops import episode_fraction, flops_expected, flops_of_step
from metapt.estimate.memory import KINDS, Memory, Ranks, all_parameters, peak

GIB, GB, TFLOP = 2**30, 10**9, 10**12
LARGEST_SEARCHED = 4096


@dataclass(frozen=True)
class Machine:
    """Where a run is to work: its ranks, and what is known of each."""

    ranks: Ranks
    memory_gb: float | None = None
    headroom: float = 0.1
    tflops: float | None = None
    mfu: float = 0.3

    @property
    def budget(self) -> float | None:
        """Bytes that a rank may use."""
        return None if self.memory_gb is None else self.memory_gb * GB * (1 - self.headroom)


def kinds(config: PretrainConfig) -> list[str]:
    """The kinds of update that the run makes."""
    episodes = episode_fraction(config)
    shares = {"lm": 1 - episodes, "episode": episodes}
    return [kind for kind in KINDS if shares[kind] > 0]


def largest_peak(config: PretrainConfig, ranks: Ranks) -> int:
    """Bytes on a rank at the worst moment of the run."""
    return max(peak(config, kind, ranks)[1].total for kind in kinds(config))


def largest_micro_batch(config: PretrainConfig, machine: Machine) -> int:
    """The largest train.micro_batch that fits the budget; 0 if none does."""
    budget = machine.budget
    assert budget is not None

    def fits(size: int) -> bool:
        tried = deepcopy(config)
        tried.train.micro_batch = size
        return largest_peak(tried, machine.ranks) <= budget

    low, high = 0, LARGEST_SEARCHED  # the peak grows with the micro-batch
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def hours(config: PretrainConfig, machine: Machine) -> float | None:
    """Expected hours of all updates, without evaluation and checkpoints; None if the peak is not known."""
    if machine.tflops is None:
        return None
    speed = machine.ranks.count * machine.tflops * TFLOP * machine.mfu
    return config.train.max_steps * flops_expected(config) / speed / 3600


def implied_mfu(config: PretrainConfig, machine: Machine, taken: float) -> float:
    """The share of the machine's peak that a run of `taken` hours would have reached (`machine.mfu` does not matter)."""
    at_peak = hours(config, replace(machine, mfu=1.0))
    assert at_peak is not None
    return at_peak / taken


def figure(value: float) -> str:
    """With one decimal, or two digits if it is small."""
    return f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def describe(config: EstimateConfig) -> str:
    """What `metapt estimate` prints."""
    device = "cuda" if config.gpus else "cpu"
    ranks = Ranks(config.nodes * max(1, config.gpus), device)
    machine = Machine(ranks, config.gpu_memory_gb, config.headroom, config.gpu_tflops, config.mfu)
    where = (
        f"{config.nodes} node(s), {config.gpus} GPUs each" if config.gpus else f"{config.nodes} CPU node(s)"
    )
    lines = [
        f"{config.model.name}: {all_parameters(config):,} parameters; ds={config.ds}, "
        f"train.precision={config.train.precision}, {ranks.count} rank(s) on {where}",
        "",
        *_memory_table(config, ranks),
        "",
        *_fit(config, machine),
        "",
        *_work(config, machine),
    ]
    return "\n".join(lines)


def _memory_table(config: PretrainConfig, ranks: Ranks) -> Iterator[str]:
    listed = {kind: peak(config, kind, ranks) for kind in kinds(config)}
    shown = [item.name for item in fields(Memory) if item.name != "host"]
    yield f"{'GiB per rank at the peak':26}" + "".join(f"{kind:>18}" for kind in listed)
    for name in shown:
        yield f"  {name:24}" + "".join(f"{getattr(each, name) / GIB:18.2f}" for _, each in listed.values())
    yield f"  {'all':24}" + "".join(f"{each.total / GIB:18.2f}" for _, each in listed.values())
    if any(each.host for _, each in listed.values()):
        yield f"  {'in host memory':24}" + "".join(f"{each.host / GIB:18.2f}" for _, each in listed.values())
    yield f"  {'the peak is at':24}" + "".join(f"{moment:>18}" for moment, _ in listed.values())


def _fit(config: EstimateConfig, machine: Machine) -> Iterator[str]:
    train = config.train
    if machine.budget is None:
        yield f"train.micro_batch={train.micro_batch}; give gpu_memory_gb= to learn the largest that fits"
        return
    budget = f"{machine.memory_gb:g} GB less {machine.headroom:.0%} ({machine.budget / GIB:.1f} GiB)"
    largest = largest_micro_batch(config, machine)
    if not largest:
        yield f"does not fit into {budget}, whatever the micro-batch"
        return
    verdict = "fits" if train.micro_batch <= largest else "does not fit"
    yield f"train.micro_batch={train.micro_batch} {verdict} into {budget}; the largest that fits is {largest}"
    sequences, ranks = train.micro_batch * train.micro_batches_per_update, machine.ranks.count
    same = max((size for size in range(1, largest + 1) if sequences % (size * ranks) == 0), default=None)
    if same is not None:
        yield f"an update of {sequences:,} sequences: train.micro_batch={same} train.micro_batches_per_update={sequences // same}"


def _work(config: PretrainConfig, machine: Machine) -> Iterator[str]:
    for kind in kinds(config):
        yield f"{kind + ' update':26}{figure(flops_of_step(config, kind == 'episode') / TFLOP):>16} TFLOP"
    expected = flops_expected(config) / TFLOP
    yield f"{f'mean at meta.rho={config.meta.rho:g}':26}{figure(expected):>16} TFLOP"
    steps = config.train.max_steps
    yield f"{f'{steps:,} updates':26}{figure(steps * expected):>16} TFLOP"
    time = hours(config, machine)
    if time is None:
        yield "give gpu_tflops= (the peak of one rank's device) to learn the hours"
    else:
        speed = f"{machine.mfu:.0%} of {machine.ranks.count} x {machine.tflops:g} TFLOP/s"
        yield f"{figure(time)} hours at {speed}, without evaluation and checkpoints"
