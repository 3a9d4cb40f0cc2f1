"""The machine of a measurement: its name, and its bf16 support, on which ratios of matrix products depend."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import torch

from metapt.models.meta_lm import slow_in_bf16

AMX, AVX512_BF16, NO_BF16 = "AMX", "AVX512-BF16", "no bf16 units"


def processor() -> str:
    """The model name of the CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def machine() -> str:
    """CPU, threads and versions, for people."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "deepspeed"))
    return f"{processor()} ({bf16_support()}), {torch.get_num_threads()} threads, {versions}"


def bf16_support() -> str:
    """How the CPU multiplies bf16: with matrix units, with vector units, or emulated in fp32."""
    capabilities = torch.cpu.get_capabilities()
    if capabilities.get("amx_bf16"):
        return AMX
    return AVX512_BF16 if capabilities.get("avx512_bf16") else NO_BF16


def precisions() -> tuple[str, ...]:
    """The precisions in which steps are timed: fp32 only on a CPU that emulates bf16, where nobody would use it."""
    return ("fp32",) if slow_in_bf16(torch.device("cpu")) else ("fp32", "bf16")
