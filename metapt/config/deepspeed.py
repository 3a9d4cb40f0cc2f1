"""The DeepSpeed file that `ds=` means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
INSTALLED, IN_CLONE = PACKAGE / "ds_configs", PACKAGE.parent / "ds_configs"
DS_CONFIGS = INSTALLED if INSTALLED.is_dir() else IN_CLONE


def zero_stage(name: str) -> int:
    """The ZeRO stage of `ds=name`."""
    return deepspeed_settings(name).get("zero_optimization", {}).get("stage", 0)


def deepspeed_file(name: str) -> Path:
    """The file that `ds=name` means: a shipped one by name, or a path."""
    return Path(name) if name.endswith(".json") else DS_CONFIGS / f"{name}.json"


def deepspeed_settings(name: str) -> dict[str, Any]:
    """The content of the DeepSpeed file that `ds=name` means, as far as it may decide.

    Batch sizes and clipping are told by train.*; parameters stay fp32 (models/meta_lm.py).
    Raises:
        ValueError: it is not there, is no DeepSpeed configuration, or decides what metapt decides.
    """
    path = deepspeed_file(name)
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in DS_CONFIGS.glob("*.json")))
        raise ValueError(f"no such DeepSpeed configuration; shipped are {shipped}, or give a .json file")
    settings = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no JSON object")
    taken = [
        part for part in ("bf16", "fp16", "optimizer", "scheduler", "torch_autocast") if part in settings
    ]
    if taken:
        raise ValueError(
            f"{path} sets {', '.join(taken)}, which train.precision, train.lr and their kin decide"
        )
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"{path}: ZeRO has no stage {stage}; 0, 1, 2 and 3 are")
    if stage == 3 and any("offload" in part for part in settings["zero_optimization"]):
        raise ValueError(f"{path}: offload is supported at ZeRO stage 2, not at 3")
    return {part: value for part, value in settings.items() if part != "train_batch_size"}
