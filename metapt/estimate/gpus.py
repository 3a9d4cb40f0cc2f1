"""GPUs by name: memory, bandwidth, peak throughput. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from metapt.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """A type of GPU, from NVIDIA's data sheets.

    Attributes:
        memory_gb: memory, GB.
        bandwidth_gbs: bandwidth of the memory, GB/s.
        capability: compute capability.
        tflops: peak throughput of dense matrix products that add up in fp32, TFLOP/s, by `train.precision`; fp32 without TF32.
    """

    memory_gb: float
    bandwidth_gbs: float
    capability: tuple[int, int]
    tflops: Mapping[str, float]

    @property
    def has_bf16(self) -> bool:
        """Whether it multiplies bf16 in hardware; older GPUs convert to fp32 first."""
        return self.capability >= (8, 0)


GPUS = {
    "a100-40": Gpu(40, 1555, (8, 0), {"bf16": 312, "fp32": 19.5}),
    "a100-80": Gpu(80, 2039, (8, 0), {"bf16": 312, "fp32": 19.5}),
    "h100-pcie": Gpu(80, 2000, (9, 0), {"bf16": 756, "fp32": 51}),
    "h100-sxm": Gpu(80, 3350, (9, 0), {"bf16": 989, "fp32": 67}),
    "h200": Gpu(141, 4800, (9, 0), {"bf16": 989, "fp32": 67}),
    "l40s": Gpu(48, 864, (8, 9), {"bf16": 362, "fp32": 91.6}),
    "l4": Gpu(24, 300, (8, 9), {"bf16": 121, "fp32": 30.3}),
    "t4": Gpu(16, 300, (7, 5), {"bf16": 8.1, "fp32": 8.1}),
    "rtx4090": Gpu(24, 1008, (8, 9), {"bf16": 165.2, "fp32": 82.6}),
}


def gpu_of(name: str) -> Gpu:
    """The type of GPU of a name.

    Raises:
        UserError: the name is not known.
    """
    if name not in GPUS:
        raise UserError(
            f"gpu={name}: must be one of {', '.join(GPUS)}; for another GPU set gpu_memory_gb, gpu_bandwidth_gbs and "
            "gpu_tflops from its data sheet"
        )
    return GPUS[name]
