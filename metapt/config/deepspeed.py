"""The DeepSpeed configuration that `ds=` names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
INSTALLED, IN_CLONE = PACKAGE / "ds_configs", PACKAGE.parent / "ds_configs"
DS_CONFIGS = INSTALLED if INSTALLED.is_dir() else IN_CLONE
RESERVED = (
    "bf16",
    "fp16",
    "optimizer",
    "scheduler",
    "torch_autocast",
)  # settings that keys of train.* decide


def zero_stage(name: str) -> int:
    """The ZeRO stage of `ds=name`."""
    return deepspeed_settings(name).get("zero_optimization", {}).get("stage", 0)


def deepspeed_file(name: str) -> Path:
    """The file that `ds=name` means: a shipped configuration by name, or a path."""
    return Path(name) if name.endswith(".json") else DS_CONFIGS / f"{name}.json"


def deepspeed_settings(name: str) -> dict[str, Any]:
    """The settings in the DeepSpeed file that `ds=name` means, without its batch size.

    Keys of train.* decide batch sizes and gradient clipping. Parameters stay in fp32 (metapt/models/meta_lm.py).

    Raises:
        ValueError: there is no such file, it is no DeepSpeed configuration, or it has settings that metapt does not support.
    """
    path = deepspeed_file(name)
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in DS_CONFIGS.glob("*.json")))
        raise ValueError(
            f"no such DeepSpeed configuration; must be one of {shipped}, or the path of a .json file"
        )
    settings = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must contain a JSON object")
    if reserved := [name for name in RESERVED if name in settings]:
        raise ValueError(
            f"{path} sets {', '.join(reserved)}; remove them, because train.precision, train.lr and other train.* keys "
            "decide these"
        )
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"{path}: zero_optimization.stage={stage} must be 0, 1, 2 or 3")
    if stage == 3 and any("offload" in name for name in settings["zero_optimization"]):
        raise ValueError(f"{path}: offload is supported with ZeRO stage 2, not with stage 3")
    if not settings.get("zero_optimization", {}).get("compute_grad_norm", True):
        raise ValueError(
            f"{path}: zero_optimization.compute_grad_norm must be true, because every update records the norm of its gradient"
        )
    return {name: value for name, value in settings.items() if name != "train_batch_size"}
