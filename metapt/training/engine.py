"""DeepSpeed behind five verbs: backward, step, mean, save, load. The only module that imports deepspeed.

What is set here and not left to DeepSpeed's defaults, because they changed between versions or surprise:
the accumulation boundary is told for every backward pass (with accumulation 1 in the file and several backward
calls, ZeRO 1 and 2 keep only the last micro-batch), clipping is always explicit, and the loss is scaled here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from metapt.config import PretrainConfig, TrainConfig, deepspeed_settings, uneven_units
from metapt.errors import UserError
from metapt.models.learner import Learner

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed  # noqa: E402  (reads the environment set above)
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine  # noqa: E402
from deepspeed.runtime.fp16.loss_scaler import LossScaler  # noqa: E402
from deepspeed.runtime.zero.config import ZeroStageEnum  # noqa: E402
from deepspeed.utils.tensor_fragment import fragment_address  # noqa: E402

# DeepSpeed would compile a shared-memory all-reduce for CPU ranks at start; gloo needs no C++ compiler.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

TAG = "state"


class _SafeCheckpoints(TorchCheckpointEngine):
    """DeepSpeed's reader and writer, but one that unpickles nothing beyond tensors and three known classes."""

    def load(self, path: str, map_location: Any = None) -> Any:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            return torch.load(path, map_location=map_location, weights_only=True)


class Engine:
    """A learner under DeepSpeed with AdamW.

    Args:
        learner: in fp32; DeepSpeed converts and moves it.
        config: precision, optimizer, clipping and the DeepSpeed file are taken from it.
    """

    def __init__(self, learner: Learner, config: PretrainConfig):
        start_process_group()
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        if uneven := uneven_units(config, self.world_size):
            raise UserError(
                f"{', '.join(uneven)} must be a multiple of the number of ranks, {self.world_size}"
            )
        with _local_rank_set():
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=learner,
                optimizer=_adamw(learner, config.train),
                config=_settings(config),
                dist_init_required=False,
            )
        self._engine.checkpoint_engine = _SafeCheckpoints()
        self.learner: Learner = self._engine.module
        self.device: torch.device = self._engine.device

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulates the gradient of `loss`; `last` tells that no more follow before `step`."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss)

    def step(self, lr: float) -> float:
        """One AdamW update at rate `lr` with the gradient averaged over ranks. Returns its norm before clipping."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        norm = None
        if self._engine.zero_optimization_stage() == 0:  # where DeepSpeed does not tell the norm
            gradients = (value.grad for value in self.learner.parameters())
            norm = torch.nn.utils.get_total_norm([value for value in gradients if value is not None])
        self._engine.step()
        return float(self._engine.get_global_grad_norm() if norm is None else norm)

    def mean(self, values: Tensor) -> Tensor:
        """Elementwise mean over ranks, in fp64, of a tensor that every rank has in the same shape."""
        values = values.to(self.device, torch.float64)
        dist.all_reduce(values)
        return values / self.world_size

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        value = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value)

    def barrier(self) -> None:
        dist.barrier()

    def save(self, folder: Path) -> None:
        """Writes weights and optimizer state; all ranks call it."""
        self._engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote, on the same number of ranks."""
        self._engine.load_checkpoint(str(folder), tag=TAG)

    def weights(self) -> dict[str, Tensor]:
        """All parameters, fp32, on the CPU; all ranks call it."""
        named = dict(self.learner.named_parameters())
        with deepspeed.zero.GatheredParameters(list(named.values())):
            return {name: value.detach().to("cpu", copy=True) for name, value in named.items()}


def _settings(config: PretrainConfig) -> dict[str, Any]:
    """The DeepSpeed file of `ds=` with what the configuration decides: batch and clipping.

    Parameters are fp32 for DeepSpeed in either precision: the forward pass casts (models/learner.py), so that
    gradients accumulate in fp32 at every stage.
    """
    return deepspeed_settings(config.ds) | {
        "train_micro_batch_size_per_gpu": config.train.micro_batch,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.train.grad_clip,
        "steps_per_print": 2**31,
    }


def start_process_group() -> None:
    """Joins the ranks that torchrun, srun or submitit started, or makes a group of one in this process alone."""
    if dist.is_initialized():
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if "RANK" not in os.environ:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)


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


def _adamw(learner: Learner, train: TrainConfig) -> torch.optim.AdamW:
    """AdamW; gains and biases (tensors of one dimension) are not decayed.

    One group per block: ZeRO 1 and 2 flatten the gradients of a group and step it by itself, so that what lives for
    the time of a step is as large as a block, not as the model. The vectors come first, since all gradients lie in
    one buffer, which goes when the last group lets go of it.
    """
    decoder = learner.decoder
    parts = [decoder.model.embed_tokens, *decoder.model.layers, decoder.lm_head, learner.head]
    vectors = [value for value in learner.parameters() if value.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": vectors, "weight_decay": 0.0}]
    for part in parts:
        if part is not None:
            matrices = [value for value in part.parameters() if value.ndim > 1]
            groups.append({"params": matrices, "weight_decay": train.weight_decay})
    return torch.optim.AdamW(
        groups, lr=train.lr, betas=(train.beta1, train.beta2), fused=torch.cuda.is_available() or None
    )
