"""Communication between the processes of one fine-tuning run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object
from safetensors import SafetensorError
from torch import Tensor

from metapt.config import FinetuneConfig
from metapt.errors import OperationalError
from metapt.models.device import gpu_name, memory_errors, nvidia_driver, training_device
from metapt.models.precision import fix_fp32_products, resolved_precision
from metapt.node_failures import COLLECTIVE_TIMEOUT

T = TypeVar("T")


def is_main_process() -> bool:
    """Whether this is rank 0 (or the only process), judged from the environment before the processes are connected."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def on_its_device(config: FinetuneConfig) -> Iterator[None]:
    """The block of a run, which ends at once without its device, and with one line if the memory of that is exhausted.

    Raises:
        UserError: see `training_device` and `memory_errors`; what exhausts memory here is an evaluation.
    """
    training_device(config.device)
    advice = f"set ner.eval_batch_size={max(1, config.ner.eval_batch_size // 2)}"
    with memory_errors(config.run_dir, lambda: advice):
        yield


class Distributed:
    """The processes started by torchrun or srun, one per GPU, or a single process.

    Every method is a collective operation: all processes must call it.

    Args:
        precision: as in `resolved_precision`; bf16 is mixed precision.
        device: as in `training_device`, and with its errors.
    """

    def __init__(self, precision: str, device: str = "auto"):
        chosen = training_device(device)
        self.precision = resolved_precision(precision, chosen)
        self._fp32_products = fix_fp32_products()
        self.accelerator = Accelerator(
            cpu=chosen.type == "cpu",
            mixed_precision="bf16" if self.precision == "bf16" else "no",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)],
        )
        self.rank, self.world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.is_main_process = self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all ranks."""
        return self.accelerator.reduce(values, "sum")

    def places(self) -> dict[str, Any]:
        """Type of GPU and driver of this process, number of ranks, and precision."""
        gpu = gpu_name(self.accelerator.device)
        return {
            "gpus": [gpu] if gpu else [],
            "driver": nvidia_driver(),
            "ranks": self.world_size,
            "precision": self.precision,
            "fp32_products": self._fp32_products,
        }

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return bool(self.sum(torch.tensor(float(flag), device=self.accelerator.device)))

    def broadcast(self, value: T) -> T:
        """Return the value of the main process."""
        return broadcast_object_list([value])[0]

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in the order of ranks."""
        return gather_object([value])

    def run_on_main(self, write: Callable[[], None]) -> None:
        """Call a function that writes files on the main process; a failure there is raised on all ranks.

        Raises:
            OperationalError: with the reason of the failure.
        """
        problem = None
        if self.is_main_process:
            try:
                write()
            except (
                OSError,
                RuntimeError,
                SafetensorError,
            ) as error:  # torch.save: RuntimeError if the disk is full
                problem = str(error)
        problem = self.broadcast(problem)
        if problem:
            raise OperationalError(problem)
