"""The processes of one fine-tuning run: what one of them decides, or is told, or cannot do, holds for all."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from torch import Tensor

from metapt.errors import OperationalError

T = TypeVar("T")


def leads() -> bool:
    """Whether this process is the first of the run, or alone; known before they have met."""
    return os.environ.get("RANK", "0") == "0"


class Ranks:
    """The processes that torchrun or srun started, one for each GPU, or this one alone. All of them call each method.

    Args:
        precision: `bf16` for mixed precision, else `fp32`.
    """

    def __init__(self, precision: str):
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="bf16" if precision == "bf16" else "no",
        )
        self.rank, self.count = self.accelerator.process_index, self.accelerator.num_processes
        self.leads = self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum over all ranks."""
        return self.accelerator.reduce(values, "sum")

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return bool(self.total(torch.tensor(float(flag), device=self.accelerator.device)))

    def of_lead(self, value: T) -> T:
        """What the first rank has for `value`."""
        return broadcast_object_list([value])[0]

    def gathered(self, value: T) -> list[T]:
        """What each rank has for `value`."""
        return gather_object([value])

    def alone(self, write: Callable[[], None]) -> None:
        """The first rank writes; what it cannot write fails on all.

        Raises:
            OperationalError: with its reason.
        """
        problem = None
        if self.leads:
            try:
                write()
            except (
                OSError,
                RuntimeError,
                SafetensorError,
            ) as error:  # torch.save has RuntimeError for a full disk
                problem = str(error)
        problem = self.of_lead(problem)
        if problem:
            raise OperationalError(problem)
