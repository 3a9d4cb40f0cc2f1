"""The split of an update into micro-batches that fits a memory: `train.micro_batch=auto`. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import TypeVar

from metapt.config import AUTO, PretrainConfig, zero_stage
from metapt.errors import UserError
from metapt.estimate.memory import Ranks, largest_peak
from metapt.estimate.speed import GB, with_micro_batch

CPU_TOKENS = 8192
"""Tokens of a micro-batch on a CPU, at most: those of the shipped models. More only need more memory there, since a
micro-batch of this size keeps all cores busy."""
T = TypeVar("T", bound=PretrainConfig)


def with_numbers(config: T, ranks: Ranks, budget: float | None, largest: int | None = None) -> T:
    """A configuration with numbers in place of `train.micro_batch=auto` (`best_split`); given numbers stay as they are."""
    return best_split(config, ranks, budget, largest) if config.train.micro_batch == AUTO else config


def best_split(config: T, ranks: Ranks, budget: float | None, largest: int | None = None) -> T:
    """A configuration with the micro-batch that fits and takes the least time.

    The sequences of an update stay the same, so all micro-batches have the same size, a divisor of them. Of those that
    fit, the choice is the one with which the slowest rank processes the fewest sequences, and the largest among these.
    On a CPU, and on a GPU whose memory is unknown, a micro-batch has at most CPU_TOKENS tokens, but at least a sequence.

    Args:
        budget: bytes that a rank may use; None: unknown.
        largest: sequences in a micro-batch, at most.
    Raises:
        UserError: no micro-batch fits the budget, or none is so small.
    """
    sizes = list(_sizes(config, ranks.count))
    if ranks.device == "cpu" or budget is None:
        at_most = max(min(sizes), CPU_TOKENS // config.train.seq_len)
        return with_micro_batch(config, next(size for size in sizes if size <= at_most))
    for size in sizes:
        candidate = with_micro_batch(config, size)
        if (largest is None or size <= largest) and largest_peak(candidate, ranks) <= budget:
            return candidate
    smallest = with_micro_batch(config, min(sizes))
    raise UserError(
        f"train.micro_batch=auto: no micro-batch fits; {smallest.train.micro_batch} x {config.train.seq_len} tokens need "
        f"about {largest_peak(smallest, ranks) / GB:.1f} GB on a rank; {memory_advice(smallest, ranks)}"
    )


def memory_advice(config: PretrainConfig, ranks: Ranks) -> str:
    """Which key to set if the memory of a rank is exhausted: one that lowers the estimated peak and changes no result.

    Args:
        config: with numbers (`with_numbers`).
    """
    before = largest_peak(config, ranks)
    if config.meta.mixing != "per_micro_batch" or not config.meta.rho:
        sizes = [size for size in _sizes(config, ranks.count) if size < config.train.micro_batch]
        for size in sorted(sizes, reverse=True):
            smaller = with_micro_batch(config, size)
            if largest_peak(smaller, ranks) < before:
                split = f"train.micro_batch={size} train.micro_batches_per_update={smaller.train.micro_batches_per_update}"
                return f"set {split} (the same {config.train.sequences:,} sequences an update), or train.micro_batch=auto"
    for name in ("zero1", "zero2", "zero3"):
        sharded = deepcopy(config)
        sharded.ds = name
        if zero_stage(config.ds) < zero_stage(name) and largest_peak(sharded, ranks) < 0.95 * before:
            return f"set ds={name}, which divides more of the model's state among the {ranks.count} ranks"
    return "use more ranks with ds=zero3, or GPUs with more memory; model=, train.seq_len and meta.window would change the results"


def _sizes(config: PretrainConfig, ranks: int) -> Iterator[int]:
    """The sizes of micro-batches into which an update can be split, the best first."""
    sequences, terms = config.train.sequences, [term for term in config.terms.values() if term.weight > 0]
    multiple = config.meta.batch_sequences if terms else 1

    def cost(size: int) -> tuple[int, int]:
        rounds = -(-sequences // (size * ranks))
        return rounds * size, -size

    divisors = (size for size in range(1, sequences + 1) if sequences % size == 0)
    yield from sorted((size for size in divisors if size % multiple == 0), key=cost)
