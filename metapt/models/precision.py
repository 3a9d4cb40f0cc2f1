"""The precision of matrix products: what ner.precision=auto means on a device, and that fp32 is fp32."""

from __future__ import annotations

import torch


def resolved_precision(name: str, device: torch.device) -> str:
    """The precision that a key means on a device.

    Args:
        name: `fp32`, `bf16`, or `auto` for bf16 on a GPU that multiplies it (compute capability 8.0), else fp32.
    Returns: fp32 or bf16.
    """
    if name != "auto":
        return name
    has_bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16" if has_bf16 else "fp32"


def fix_fp32_products() -> str:
    """Compute products of fp32 matrices in fp32, not in TF32, from now on; return torch's name of that setting."""
    torch.set_float32_matmul_precision("highest")
    return torch.get_float32_matmul_precision()
