"""The device on which a model runs."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from metapt.errors import UserError


def torch_device(name: str) -> torch.device:
    """The device of a name.

    Args:
        name: `cpu`, `cuda`, `cuda:N`, `mps`, or `auto` for the first of cuda, mps and cpu that this machine has.
    Raises:
        UserError: there is no such device here.
    """
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "mps" if has_mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device={name}: must be auto, cpu, cuda, cuda:N or mps") from None
    counts = {"cpu": 1, "cuda": torch.cuda.device_count() if has_cuda else 0, "mps": int(has_mps)}
    if (device.index or 0) >= counts.get(device.type, 0):
        raise UserError(
            f"device={name}: torch {torch.__version__} finds no such device on this machine; use device=auto"
        )
    return device


def gpu_name(device: torch.device) -> str | None:
    """The name of a GPU, such as NVIDIA A100-SXM4-40GB; None for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def nvidia_driver(file: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """The version of the NVIDIA driver of this machine, such as 550.54.14; None if there is none."""
    try:
        found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", file.read_text())
    except OSError:
        return None
    return found[1] if found else None
