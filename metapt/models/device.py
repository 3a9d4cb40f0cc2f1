"""The device on which a model runs: which one there is, and when a run refuses to compute on a CPU instead."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from metapt.errors import UserError, first_line

HIDDEN = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES without a GPU: the user's own ones, and Slurm's for a job without GPUs."""
OUT_OF_MEMORY = re.compile(
    r"(CUDA|HIP) out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|DefaultCPUAllocator: (can't|not enough)"
)


@dataclass(frozen=True)
class Surroundings:
    """What decides whether a run may compute on a CPU.

    Attributes:
        torch, cuda: versions of torch, and of CUDA in its wheel; None: a wheel for CPUs.
        gpus: number of GPUs that torch sees.
        problem: what CUDA reports if torch sees none; empty if nothing.
        driver: version of the NVIDIA driver of the node; None if there is none.
        node: host name.
        grant: what shows that the process was given GPUs, such as SLURM_GPUS_ON_NODE=4; None if nothing does.
    """

    torch: str
    cuda: str | None
    gpus: int
    problem: str
    driver: str | None
    node: str
    grant: str | None

    @classmethod
    def of_this_process(cls) -> Surroundings:
        """What torch, the node and the environment say."""
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return cls(
            torch.__version__,
            torch.version.cuda,
            gpus,
            "" if gpus else _cuda_problem(),
            nvidia_driver(),
            os.environ.get("SLURMD_NODENAME", socket.gethostname()),
            granted_gpus(os.environ),
        )


def granted_gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> str | None:
    """What shows that a process was given GPUs; None if nothing does, or if CUDA_VISIBLE_DEVICES hides all of them.

    Device files count outside Slurm only: a node with GPUs also runs jobs that were given none of them.

    Args:
        devices: folder with nvidia0, nvidia1, ...
    """
    if environment.get("CUDA_VISIBLE_DEVICES", "0") in HIDDEN:
        return None
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS"):  # numbers of GPUs
        if environment.get(name):
            return f"{name}={environment[name]}"
    if environment.get("SLURM_GPUS_ON_NODE", "") not in ("", "0"):
        return f"SLURM_GPUS_ON_NODE={environment['SLURM_GPUS_ON_NODE']}"
    files = () if "SLURM_JOB_ID" in environment else sorted(devices.glob("nvidia[0-9]*"))
    return next((str(file) for file in files if os.access(file, os.R_OK | os.W_OK)), None)


def training_device(name: str, found: Surroundings | None = None) -> torch.device:
    """The device of this rank of a run, for which a CPU is never a silent substitute for a GPU.

    Args:
        name: as in `torch_device`; auto is a CPU only if the process was given no GPU.
        found: by default that of this process.
    Returns: of several GPUs, that of this rank (`local_device`).
    Raises:
        UserError: torch cannot use the GPU that the process was given, or that `name` asks for.
        RuntimeError: the same although driver and wheel are there: the node is at fault (metapt/node_failures.py).
    """
    found = found or Surroundings.of_this_process()
    if name in ("auto", "cuda") and not found.gpus and (found.grant or name == "cuda"):
        _refuse(name, found)
    if name in ("auto", "cuda") and found.gpus:
        return torch.device("cuda", local_device(found.gpus))
    return torch_device(name)


def local_device(gpus: int) -> int:
    """The index of this rank's GPU among those that the process sees.

    Some sites show all GPUs of a node to every rank, others show each rank its own one alone.
    """
    return int(os.environ.get("LOCAL_RANK", "0")) % max(1, gpus)


def _refuse(name: str, found: Surroundings) -> None:
    """Raise the error of a run that gets no GPU, with the cause and what to do about it."""
    wheel = f"torch {found.torch}, built for {f'CUDA {found.cuda}' if found.cuda else 'CPUs'}"
    given = f"this process was given GPUs ({found.grant}), but " if found.grant else ""
    what = f"device={name}: {given}torch sees no GPU ({wheel}; driver {found.driver or 'none'}; node {found.node})"
    if found.cuda is None:
        do = "install torch for CUDA (README.md, Install)"
    elif found.driver is None:
        do = "the node, or its container, has no NVIDIA driver (apptainer needs --nv)"
    elif "too old" in found.problem:
        do = "the driver is too old for this torch; install torch for an older CUDA"
    elif found.grant:
        raise RuntimeError(f"No CUDA GPUs are available; {what}; {found.problem}")
    else:
        do = "ask Slurm for a GPU"
    raise UserError(f"{what}; {do}, or set device=cpu to compute on the CPU")


def _cuda_problem() -> str:
    """Why torch sees no GPU, in the words of CUDA; empty if it does not say."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return first_line(error)
    return ""


@contextmanager
def memory_errors(where: str, advice: Callable[[], str]) -> Iterator[None]:
    """Turn an exhausted memory within the block into one line.

    Args:
        where: what needed the memory, such as a run folder.
        advice: the keys to set.
    Raises:
        UserError: the memory of the device is exhausted.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not isinstance(error, torch.OutOfMemoryError) and not OUT_OF_MEMORY.search(str(error)):
            raise
        tried = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", str(error))
        last = f", on a tensor of {tried[1]}" if tried else ""
        raise UserError(f"{where}: the memory of {_memory_name()} is exhausted{last}; {advice()}") from None


def _memory_name() -> str:
    """The device whose memory is exhausted, with its size if it is a GPU."""
    node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    if not torch.cuda.is_available():
        return f"node {node}"
    index = torch.cuda.current_device()
    size = torch.cuda.get_device_properties(index).total_memory / 10**9
    return f"cuda:{index} ({torch.cuda.get_device_name(index)}, {size:.0f} GB, node {node})"


def use_deterministic_algorithms() -> None:
    """Let torch and Inductor choose only algorithms whose results are the same bits in every run on one type of device.

    Must come before the first matrix product on a GPU, which fixes the workspace of cuBLAS. An operation that has no such
    algorithm raises RuntimeError. (docs.pytorch.org/docs/stable/notes/randomness.html)
    """
    from torch._inductor import config as inductor_config  # slow

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # finds bugs, costs time
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.enable_cudnn_sdp(False)  # its backward pass is not deterministic
    inductor_config.deterministic = True  # no choice of kernels by their time


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
