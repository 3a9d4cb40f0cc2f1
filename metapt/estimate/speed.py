"""Estimate of the time of a pretraining run from its kernels, memory traffic and FLOPs. Imports no torch.

The roofline of Williams et al. 2009, doi:10.1145/1498765.1498785, with the time to launch kernels as a further roof:

    seconds = max(kernels * LAUNCH_S, bytes / bandwidth + FLOPs / peak)

Launches overlap with the GPU's work; matrix products and the kernels between them follow one another. Bandwidth and peak
are fractions of the data sheet's. Not counted: communication, reading data, evaluation, checkpoints, compilation. None of
it was compared with a GPU.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TypeVar

from metapt.config import PretrainConfig
from metapt.estimate.flops import (
    BACKWARD,
    episode_fraction,
    episodes_of_update,
    flops_of_step,
    lm_fraction,
    tokens_of_step,
)
from metapt.estimate.kernels import Work, episode_work, micro_batch_work, step_work
from metapt.estimate.memory import Ranks

GB, TFLOP = 10**9, 10**12
T = TypeVar("T", bound=PretrainConfig)
LAUNCH_S = 7e-6
"""Seconds in which Python launches a kernel."""
BANDWIDTH_REACHED, PEAK_REACHED = 0.8, 0.75
"""Fractions of the data sheet that large kernels and large matrix products reach."""
ASSUMPTIONS = (
    f"assumed: {LAUNCH_S * 1e6:.0f} us to launch a kernel, {BANDWIDTH_REACHED:.0%} of the bandwidth, {PEAK_REACHED:.0%} of the peak; "
    "no communication, reading of data, evaluation or checkpoints"
)


@dataclass(frozen=True)
class Machine:
    """The machine of a run.

    Attributes:
        ranks: the ranks and their kind of device.
        memory_gb: memory of a device, GB; None if unknown.
        headroom: fraction of it kept free.
        tflops: peak throughput of matrix products of a device at the run's precision, TFLOP/s; None if unknown.
        bandwidth_gbs: bandwidth of its memory, GB/s; None if unknown.
    """

    ranks: Ranks
    memory_gb: float | None = None
    headroom: float = 0.1
    tflops: float | None = None
    bandwidth_gbs: float | None = None

    @property
    def budget(self) -> float | None:
        """Bytes that a rank may use, or None if the memory is unknown."""
        return None if self.memory_gb is None else self.memory_gb * GB * (1 - self.headroom)

    @property
    def is_known(self) -> bool:
        """Whether the time of work can be estimated."""
        return self.ranks.device == "cuda" and None not in (self.tflops, self.bandwidth_gbs)

    def seconds(self, work: Work) -> float:
        """Estimated time of work on one device of known speed."""
        assert self.tflops
        assert self.bandwidth_gbs
        on_device = work.bytes / (self.bandwidth_gbs * GB * BANDWIDTH_REACHED)
        on_device += work.flops / (self.tflops * TFLOP * PEAK_REACHED)
        return max(work.kernels * LAUNCH_S, on_device)


def update_seconds(config: PretrainConfig, machine: Machine, is_episode: bool, compiled: bool) -> float:
    """Estimated seconds of an update of one kind on the rank with the most units of work."""
    if is_episode:
        units, work = episodes_of_update(config), episode_work(config, compiled)
    else:
        units, work = config.train.micro_batches_per_update, micro_batch_work(config, compiled)
    per_rank = -(-units // machine.ranks.count)
    return per_rank * machine.seconds(work) + machine.seconds(step_work(config))


def hours(config: PretrainConfig, machine: Machine, compiled: bool) -> float | None:
    """Estimated hours of all updates, without evaluation and checkpoints; None if the speed of the machine is unknown."""
    if not machine.is_known:
        return None
    mean = lm_fraction(config) * update_seconds(config, machine, False, compiled)
    if fraction := episode_fraction(config):
        mean += fraction * update_seconds(config, machine, True, compiled)
    return config.train.max_steps * mean / 3600


def mfu(config: PretrainConfig, machine: Machine, compiled: bool) -> float:
    """Estimated model FLOPs utilization of next-token updates: the fraction of the peak that is reached."""
    assert machine.tflops
    seconds = update_seconds(config, machine, False, compiled)
    return flops_of_step(config, False) / (seconds * machine.ranks.count * machine.tflops * TFLOP)


def with_whole_scores(config: PretrainConfig) -> float:
    """FLOPs of a next-token update with all attention scores, relative to ours, which count the causal half.

    All scores is the convention of PaLM (Chowdhery et al. 2022, appendix B: 12 L H Q T per token) and of nanochat.
    """
    model, train = config.model, config.train
    counted = 2 * model.num_layers * model.hidden_size * (train.seq_len + 1)
    whole = 4 * model.num_layers * model.hidden_size * train.seq_len
    further = (1 + BACKWARD) * (whole - counted) * tokens_of_step(config, False)
    return 1 + further / flops_of_step(config, False)


def with_micro_batch(config: T, size: int) -> T:
    """The same sequences of an update in micro-batches of another size, a divisor of them."""
    result = deepcopy(config)
    result.train.micro_batch, result.train.sequences_per_update = size, None
    result.train.micro_batches_per_update = config.train.sequences // size
    return result
