"""DeepSpeed behind six verbs: backward, step, mean, save, load, weights. The only module that imports deepspeed.

What is set here and not left to DeepSpeed's defaults, because they changed between versions or surprise:
the accumulation boundary is told for every backward pass (with accumulation 1 in the file and several backward
calls, ZeRO 1 and 2 keep only the last micro-batch), clipping is always explicit, and the loss is scaled here.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from metapt.config import PretrainConfig, TrainConfig, deepspeed_settings, uneven_units, zero_stage
from metapt.errors import UserError
from metapt.models.meta_lm import MetaLM
from metapt.training.sharded_state import StateFiles, fragments
from metapt.training.zero3 import SETTINGS as PARTITIONED_SETTINGS
from metapt.training.zero3 import Shards

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
# DeepSpeed calls collectives of torch by names that are about to change
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed  # noqa: E402  (reads the environment set above)
from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS  # noqa: E402
from deepspeed.utils import safe_get_full_grad  # noqa: E402

# DeepSpeed would compile a shared-memory all-reduce for CPU ranks at start; gloo needs no C++ compiler.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

_flags: dist.ProcessGroup | None = None  # of all ranks, if there are several


class Engine:
    """A meta_lm under DeepSpeed with AdamW.

    Args:
        meta_lm: in fp32; DeepSpeed converts and moves it.
        config: precision, optimizer, clipping and the DeepSpeed file are taken from it.
    """

    def __init__(self, meta_lm: MetaLM, config: PretrainConfig):
        start_process_group()
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        if uneven := uneven_units(config, self.world_size):
            raise UserError(
                f"{', '.join(uneven)} must be a multiple of the number of ranks, {self.world_size}"
            )
        self._adamw = _adamw(meta_lm, config.train)
        with _local_rank_set():
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=meta_lm, optimizer=self._adamw, config=_settings(config), dist_init_required=False
            )
        self.meta_lm: MetaLM = self._engine.module
        self.device: torch.device = self._engine.device
        self._stage: int = self._engine.zero_optimization_stage()
        parameters = dict(self.meta_lm.named_parameters())
        places = fragments(parameters, self._stage, self._optimizer, self.rank)
        self._state_files = StateFiles(parameters, places, self._adamw, replicated=self._stage == 0)
        self.shards: Shards | None = None
        if self._stage == 3:
            self.meta_lm.partition(deepspeed.zero.GatheredParameters)
            self.shards = Shards(parameters, self._optimizer, places)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulates the gradient of `loss`; `last` tells that no more follow before `step`."""
        if self.shards:
            self.shards.accumulate()
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss)

    def step(self, lr: float, apply: bool = True) -> float:
        """One AdamW update at rate `lr` with the gradient averaged over ranks.

        If `apply` is false or the gradient is not finite, it is dropped, and neither weights nor moments change.
        Returns: the norm of the gradient before clipping, the same on all ranks.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        norm = None
        if self._stage == 0:  # where DeepSpeed does not tell the norm
            gradients = (value.grad for value in self.meta_lm.parameters())
            norm = float(torch.nn.utils.get_total_norm([value for value in gradients if value is not None]))
        # DeepSpeed's own optimizers (stages 1 to 3) never get as far as AdamW with a norm that is not finite.
        self._adamw.at_rest = not apply or (norm is not None and not math.isfinite(norm))
        self._engine.set_gradient_accumulation_boundary(True)
        self._engine.step()
        if self.shards:
            self.shards.clear()
        return float(self._engine.get_global_grad_norm()) if norm is None else norm

    def gradient_norms(self, groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """Norm of the gradient that `step` is about to use, before clipping, of each group of parameter names.

        Between the last `backward` and `step`; all ranks call it.
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
        """Elementwise mean over ranks, in fp64, of a tensor that every rank has in the same shape."""
        values = values.to(self.device, torch.float64)
        dist.all_reduce(values)
        return values / self.world_size

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; all ranks call it."""
        return any_rank(flag)

    def barrier(self) -> None:
        dist.barrier()

    def save(self, folder: Path) -> None:
        """Writes weights and optimizer state, as any number of ranks can read them; all ranks call it.

        Raises:
            OperationalError: this rank could not write its part. The others are not told.
        """
        self._state_files.save(folder)

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote, on any number of ranks."""
        self._state_files.load(folder)

    def weights(self) -> dict[str, Tensor]:
        """All parameters, fp32, on the CPU; all ranks call it."""
        weights = {}
        for name, value in self.meta_lm.named_parameters():
            with self.meta_lm.whole({name: value}):
                weights[name] = value.detach().to("cpu", copy=True)
        return weights


def _settings(config: PretrainConfig) -> dict[str, Any]:
    """The DeepSpeed file of `ds=` with what the configuration decides: batch and clipping.

    Parameters are fp32 for DeepSpeed in either precision: the forward pass casts (models/meta_lm.py), so that
    gradients accumulate in fp32 at every stage.
    """
    settings = deepspeed_settings(config.ds)
    if zero_stage(config.ds) == 3:
        settings["zero_optimization"] = settings["zero_optimization"] | PARTITIONED_SETTINGS
    return settings | {
        "train_micro_batch_size_per_gpu": config.train.micro_batch,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.train.grad_clip,
        "steps_per_print": 2**31,
    }


def start_process_group() -> None:
    """Joins the ranks that torchrun, srun or submitit started, or makes a group of one in this process alone."""
    global _flags
    if dist.is_initialized():
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if "RANK" not in os.environ:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
    if dist.get_world_size() > 1:
        _flags = dist.new_group(backend="gloo")


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank; all ranks call it. It goes over the CPUs: no host waits for its GPU."""
    start_process_group()
    if _flags is None:
        return flag
    value = torch.tensor(int(flag))
    dist.all_reduce(value, op=dist.ReduceOp.MAX, group=_flags)
    return bool(value)


@contextmanager
def _local_rank_set() -> Iterator[None]:
    """DeepSpeed insists on LOCAL_RANK; a process alone has none, and its children must not inherit one."""
    alone = "LOCAL_RANK" not in os.environ
    os.environ.setdefault("LOCAL_RANK", "0")
    try:
        yield
    finally:
        if alone:
            del os.environ["LOCAL_RANK"]


class _AdamW(torch.optim.AdamW):
    """AdamW that can be told to do nothing, so that DeepSpeed's bookkeeping around a step goes on as usual."""

    at_rest = False

    def step(self, closure: Any = None) -> Any:
        return None if self.at_rest else super().step(closure)


ZERO_SUPPORTED_OPTIMIZERS.append(_AdamW)  # else DeepSpeed warns of an untested optimizer


def _adamw(meta_lm: MetaLM, train: TrainConfig) -> _AdamW:
    """AdamW; gains and biases (tensors of one dimension) and inner rates are not decayed.

    One group per block: ZeRO 1 and 2 flatten the gradients of a group and step it by itself, so that what lives for
    the time of a step is as large as a block, not as the model. The vectors come first, since all gradients lie in
    one buffer, which goes when the last group lets go of it.
    """
    decoder = meta_lm.decoder
    parts = [decoder.model.embed_tokens, *decoder.model.layers, decoder.lm_head, meta_lm.head]
    rates = set(meta_lm.rates.parameters()) if meta_lm.rates else set()
    others = [value for value in meta_lm.parameters() if value.ndim <= 1 or value in rates]
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": 0.0}]
    for part in parts:
        if part is not None:
            matrices = [value for value in part.parameters() if value.ndim > 1]
            groups.append({"params": matrices, "weight_decay": train.weight_decay})
    return _AdamW(
        groups, lr=train.lr, betas=(train.beta1, train.beta2), fused=torch.cuda.is_available() or None
    )
