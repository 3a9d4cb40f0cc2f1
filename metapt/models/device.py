"""The device on which a model runs."""

from __future__ import annotations

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
