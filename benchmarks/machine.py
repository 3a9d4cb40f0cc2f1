"""The machine that measures: its name, and the kind of processor, to which a ratio of bf16 products belongs."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import torch

from metapt.models.meta_lm import slow_in_bf16

AMX, AVX512_BF16, NO_BF16 = "AMX", "AVX512-BF16", "no bf16 units"


def processor() -> str:
    """The name that the processor gives itself."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def machine() -> str:
    """Processor, threads and versions, for people."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "deepspeed"))
    return f"{processor()} ({kind()}), {torch.get_num_threads()} threads, {versions}"


def kind() -> str:
    """How the processor multiplies bf16: in units for matrices, in units for vectors, or by way of fp32."""
    has = torch.cpu.get_capabilities()
    return AMX if has.get("amx_bf16") else AVX512_BF16 if has.get("avx512_bf16") else NO_BF16


def precisions() -> tuple[str, ...]:
    """The values of train.precision that a step is timed in; on a processor without bf16 units nobody would train in bf16."""
    return ("fp32",) if slow_in_bf16(torch.device("cpu")) else ("fp32", "bf16")
