"""A narrow interface to DeepSpeed: backward, step, mean, save, load, weights. No other module imports deepspeed.

Three things are set explicitly, because DeepSpeed's defaults changed between versions or are surprising. The
accumulation boundary is given for every backward pass (with accumulation 1 in the file and several backward passes,
ZeRO 1 and 2 keep only the last micro-batch), gradient clipping is always set, and the loss is scaled by the caller.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from metapt.config import MetaConfig, PretrainConfig, TrainConfig, deepspeed_settings, zero_stage
from metapt.errors import OperationalError, first_line, listed
from metapt.meta.adapted_copies import adapted_copies
from metapt.meta.window_episodes import Begin
from metapt.models.device import gpu_name, local_device, nvidia_driver, training_device
from metapt.models.initial_model import is_tied
from metapt.models.meta_lm import MetaLM
from metapt.models.precision import fix_fp32_products
from metapt.node_failures import COLLECTIVE_TIMEOUT
from metapt.training import zero3
from metapt.training.sharded_state import StateFiles, fragments_of_rank

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
# DeepSpeed calls collectives of torch by deprecated names.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed  # noqa: E402  (reads the environment set above)
from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS  # noqa: E402
from deepspeed.utils import safe_get_full_grad  # noqa: E402

# Without this, DeepSpeed compiles a shared-memory all-reduce for CPU ranks at start; gloo needs no C++ compiler.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

T = TypeVar("T")
ALL_REDUCE_S = 120.0
"""How long the first all-reduce may take, in which NCCL connects all nodes."""
_cpu_group: dist.ProcessGroup | None = None
"""All ranks, over gloo; None with a single rank."""


class Engine:
    """A MetaLM with AdamW under DeepSpeed.

    Args:
        meta_lm: in fp32; DeepSpeed moves it to the device.
        config: precision, optimizer, clipping and the DeepSpeed configuration.
    """

    def __init__(self, meta_lm: MetaLM, config: PretrainConfig):
        start_process_group()
        fix_fp32_products()
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._adamw = _adamw(meta_lm, config.train)
        with _local_rank_set():
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=meta_lm, optimizer=self._adamw, config=_settings(config), dist_init_required=False
            )
        self.meta_lm: MetaLM = self._engine.module
        self.device: torch.device = self._engine.device
        self._stage: int = self._engine.zero_optimization_stage()
        parameters = dict(self.meta_lm.named_parameters())
        fragments = fragments_of_rank(parameters, self._stage, self._optimizer, self.rank)
        self._state_files = StateFiles(parameters, fragments, self._adamw, replicated=self._stage == 0)
        self.shards: zero3.Shards | None = None
        if self._stage == 3:
            self.meta_lm.set_partitioned(deepspeed.zero.GatheredParameters)
            self.shards = zero3.Shards(parameters, self._optimizer, fragments)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate the gradient of a loss.

        Args:
            loss: scalar, already divided by this rank's number of backward passes in the update.
            last: whether this is the last backward pass before `step`.
        """
        if self.shards:
            self.shards.accumulate()
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss)

    def shares_episodes(self, meta: MetaConfig) -> bool:
        """Whether all ranks work on each episode together (metapt/training/zero3.py) instead of on different episodes."""
        return self.shards is not None and meta.scope != "head"

    def begin_episode(self, meta: MetaConfig, weight: float = 1.0) -> Begin:
        """How the parameters of episodes on windows are adapted.

        Args:
            weight: of an episode's query loss in the update, where ranks share episodes.
        """
        if self.shards is None or not self.shares_episodes(meta):
            return adapted_copies
        return partial(zero3.sharded_adaptation, self.shards, partial(self.backward, last=False), weight)

    def step(self, lr: float, apply: bool = True) -> float:
        """Make one AdamW update with the gradient averaged over ranks.

        If `apply` is false or the gradient is not finite, the gradient is discarded, and weights and moments do not
        change.

        Args:
            lr: learning rate.
            apply: whether to make the update.
        Returns: the norm of the gradient before clipping, the same on all ranks.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        norm = None
        if self._stage == 0:  # DeepSpeed does not return the norm at stage 0
            gradients = (value.grad for value in self.meta_lm.parameters())
            norm = float(torch.nn.utils.get_total_norm([value for value in gradients if value is not None]))
        # DeepSpeed's own optimizers (stages 1 to 3) never call AdamW if the norm is not finite.
        self._adamw.skips_steps = not apply or (norm is not None and not math.isfinite(norm))
        self._engine.set_gradient_accumulation_boundary(True)
        self._engine.step()
        if self.shards:
            self.shards.zero_gradients()
        return float(self._engine.get_global_grad_norm()) if norm is None else norm

    def gradient_norms(self, groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """Norms of the gradient that `step` is about to use, before clipping.

        All ranks must call it between the last `backward` and `step`.

        Args:
            groups: names of parameters by group.
        Returns: the norm of each group.
        """
        named = dict(self.meta_lm.named_parameters())

        def norm(names: Sequence[str]) -> float:
            gradients = (safe_get_full_grad(named[name]) for name in names)
            norms = [
                torch.linalg.vector_norm(value, dtype=torch.float64)
                for value in gradients
                if value is not None
            ]
            return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0

        return {group: norm(names) for group, names in groups.items()}

    def mean(self, values: Tensor) -> Tensor:
        """Elementwise mean over ranks, in fp64, of a tensor with the same shape on all ranks."""
        values = values.to(self.device, torch.float64)
        dist.all_reduce(values)
        return values / self.world_size

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; all ranks must call it."""
        return any_rank(flag)

    def from_main_rank(self, value: T) -> T:
        """The value of rank 0 on every rank; all ranks must call it."""
        return from_main_rank(value)

    def from_all_ranks(self, value: T) -> list[T]:
        """The values of all ranks, on every rank; all ranks must call it."""
        return from_all_ranks(value)

    def places(self) -> dict[str, Any]:
        """Nodes, types of GPU, driver and number of ranks; all ranks must call it."""
        places = self.from_all_ranks((socket.gethostname(), gpu_name(self.device)))
        return {
            "nodes": sorted({node for node, _ in places}),
            "gpus": sorted({gpu for _, gpu in places if gpu}),
            "driver": nvidia_driver(),
            "ranks": self.world_size,
            "fp32_products": torch.get_float32_matmul_precision(),
        }

    def barrier(self) -> None:
        dist.barrier()

    def save(self, folder: Path) -> dict[str, Any]:
        """Write weights and optimizer state, readable by any number of ranks; all ranks must call it.

        Returns: sizes and checksums of the files that this rank wrote, by their names.
        Raises:
            OperationalError: this rank could not write its part. Other ranks do not notice.
        """
        return self._state_files.save(folder)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote with any number of ranks."""
        self._state_files.load(folder)

    def weights(self) -> dict[str, Tensor]:
        """All parameters by name, fp32, on the CPU of rank 0 alone; all ranks must call it."""
        weights = {}
        for name, value in self.meta_lm.named_parameters():
            with self.meta_lm.gathered({name: value}):
                if self.rank == 0:
                    weights[name] = value.detach().to("cpu", copy=True)
        return weights


def _settings(config: PretrainConfig) -> dict[str, Any]:
    """The DeepSpeed configuration of `ds=`, completed by batch size and clipping of the run.

    Parameters are fp32 for DeepSpeed in either precision, since the forward pass casts (metapt/models/meta_lm.py).
    Gradients therefore accumulate in fp32 at every stage.
    """
    settings = deepspeed_settings(config.ds)
    if zero_stage(config.ds) == 3:
        settings["zero_optimization"] = settings["zero_optimization"] | zero3.SETTINGS
    return settings | {
        "train_micro_batch_size_per_gpu": config.train.micro_batch,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.train.grad_clip,
        "steps_per_print": 2**31,
    }


def start_process_group() -> None:
    """Join the ranks that torchrun, srun or submitit started, or create a process group of this process alone."""
    global _cpu_group
    if dist.is_initialized():
        return
    device = training_device("auto")  # device=cpu has hidden the GPUs
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" not in os.environ:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False, timeout=COLLECTIVE_TIMEOUT)
    if dist.get_world_size() > 1:
        _cpu_group = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
        _check_all_reduce()


def _check_all_reduce() -> None:
    """Add up a number of each rank on the devices, as every update does with gradients.

    Raises:
        OperationalError: on all ranks, naming the nodes whose ranks got no answer or a wrong one.
    """
    found: list[str] = []
    # In a thread, since it may hang; threads begin with device 0 as the present one.
    device = (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
    thread = Thread(target=lambda: found.append(_all_reduce_problem(device)), daemon=True)
    thread.start()
    thread.join(ALL_REDUCE_S)
    answers: list[tuple[str, str]] = [("", "")] * dist.get_world_size()
    problem = found[0] if found else f"no answer within {ALL_REDUCE_S:.0f} s"
    dist.all_gather_object(answers, (socket.gethostname(), problem), group=_cpu_group)
    failed = [f"rank {rank} on {node}: {text}" for rank, (node, text) in enumerate(answers) if text]
    if failed:
        raise OperationalError(f"all-reduce fails at the start; {listed(failed, 4)}")


def _all_reduce_problem(device: torch.device) -> str:
    """What is wrong with the sum of 1 to the number of ranks; empty if nothing is."""
    size = dist.get_world_size()
    try:
        value = torch.tensor(dist.get_rank() + 1.0, device=device)
        dist.all_reduce(value)
        expected = size * (size + 1) / 2
        return "" if value.item() == expected else f"the sum is {value.item()}, not {expected}"
    except (RuntimeError, OSError) as error:
        return first_line(error)


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank; all ranks must call it. It runs on the CPU and never waits for a GPU."""
    start_process_group()
    if _cpu_group is None:
        return flag
    value = torch.tensor(int(flag))
    dist.all_reduce(value, op=dist.ReduceOp.MAX, group=_cpu_group)
    return bool(value)


def from_main_rank(value: T) -> T:
    """The value of rank 0 on every rank; all ranks must call it. It runs on the CPU."""
    start_process_group()
    if _cpu_group is None:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_cpu_group)
    return values[0]


def from_all_ranks(value: T) -> list[T]:
    """The values of all ranks, on every rank; all ranks must call it. It runs on the CPU."""
    start_process_group()
    values = [value] * dist.get_world_size()
    if _cpu_group is not None:
        dist.all_gather_object(values, value, group=_cpu_group)
    return values


@contextmanager
def _local_rank_set() -> Iterator[None]:
    """A context with LOCAL_RANK set to the index of the device, for DeepSpeed. Child processes must not inherit it."""
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = str(local_device(torch.cuda.device_count()))
    try:
        yield
    finally:
        del os.environ["LOCAL_RANK"]
        if before is not None:
            os.environ["LOCAL_RANK"] = before


class _AdamW(torch.optim.AdamW):
    """AdamW whose steps can be skipped while DeepSpeed's bookkeeping around a step continues as usual."""

    skips_steps = False

    def step(self, closure: Any = None) -> Any:
        return None if self.skips_steps else super().step(closure)


ZERO_SUPPORTED_OPTIMIZERS.append(_AdamW)  # else DeepSpeed warns of an untested optimizer


def _adamw(meta_lm: MetaLM, train: TrainConfig) -> _AdamW:
    """AdamW without weight decay for gains and biases (tensors of one dimension) and for learned inner rates.

    There is one parameter group per block: ZeRO 1 and 2 flatten and step the gradients of each group separately, so
    that temporary memory is as large as a block, not as the model. Gains and biases come first, since all gradients
    are in one buffer, which is freed when the last group releases it.
    """
    decoder = meta_lm.decoder
    parts = [
        decoder.model.embed_tokens,
        *decoder.model.layers,
        None if is_tied(decoder) else decoder.lm_head,
        meta_lm.episode_head,
        meta_lm.term_heads,
    ]
    rates = set(meta_lm.inner_rates.parameters()) if meta_lm.inner_rates else set()
    undecayed = [value for value in meta_lm.parameters() if value.ndim <= 1 or value in rates]
    groups: list[dict[str, Any]] = [{"params": undecayed, "weight_decay": 0.0}]
    for part in parts:
        if part is not None:
            matrices = [value for value in part.parameters() if value.ndim > 1]
            groups.append({"params": matrices, "weight_decay": train.weight_decay})
    return _AdamW(
        groups, lr=train.lr, betas=(train.beta1, train.beta2), fused=torch.cuda.is_available() or None
    )
