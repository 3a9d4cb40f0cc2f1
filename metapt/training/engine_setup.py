"""The engine of a run, set up for its devices: `train.micro_batch=auto` decided, the model compiled where possible.

The estimate of memory decides on the micro-batch, then a trial on each GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from metapt.config import AUTO, PretrainConfig, zero_stage
from metapt.estimate.flops import LABELLED_FRACTION
from metapt.estimate.memory import FP32, Ranks, all_parameters
from metapt.estimate.update_split import with_numbers
from metapt.models.device import training_device
from metapt.models.meta_lm import MetaLM
from metapt.training.compilation import compile_where_possible
from metapt.training.engine import Engine, from_all_ranks

KEPT_FREE = 0.1
"""Fraction of a GPU's memory that is kept free."""


def build_engine(meta_lm: MetaLM, config: PretrainConfig) -> tuple[Engine, PretrainConfig]:
    """The engine, and the configuration with a number for the micro-batch; all ranks must call it.

    Raises:
        UserError: no micro-batch fits.
    """
    decided = decide_micro_batch(config)
    engine = Engine(meta_lm, decided)
    decided = try_micro_batch(config, decided, engine)
    compile_where_possible(engine.meta_lm, decided, engine.device)
    return engine, decided


def decide_micro_batch(config: PretrainConfig) -> PretrainConfig:
    """The configuration with the micro-batch that the estimate allows on every rank; all ranks must call it.

    Raises:
        UserError: no micro-batch fits.
    """
    if config.train.micro_batch != AUTO:
        return config
    device = training_device(config.device)
    budgets = from_all_ranks(_budget(device))
    known = [value for value in budgets if value is not None]
    return with_numbers(config, Ranks(len(budgets), device.type), min(known, default=None))


def try_micro_batch(
    config: PretrainConfig,
    decided: PretrainConfig,
    engine: Engine,
    fits: Callable[[MetaLM, PretrainConfig], bool] | None = None,
) -> PretrainConfig:
    """The decided configuration, or one with the largest smaller micro-batch that passes a trial on all ranks' GPUs.

    All ranks must call it.

    Args:
        config: as the user gave it.
        decided: by `decide_micro_batch`.
        fits: the trial; by default that on a GPU (`fits_gpu`), and none on a CPU.
    Raises:
        UserError: not even the smallest passes.
    """
    is_tried = (
        config.train.micro_batch == AUTO and zero_stage(config.ds) < 3
    )  # whose parameters only DeepSpeed gathers
    fits = fits or (fits_gpu if engine.device.type == "cuda" else None)
    if not is_tried or fits is None:
        return decided
    ranks = Ranks(engine.world_size, "cuda")
    while engine.any_rank(not fits(engine.meta_lm, decided)):
        decided = with_numbers(config, ranks, math.inf, largest=decided.train.micro_batch - 1)
    return decided


def fits_gpu(meta_lm: MetaLM, config: PretrainConfig) -> bool:
    """Whether the forward and backward pass of a micro-batch leave KEPT_FREE of the memory of this rank's GPU free.

    The moments of AdamW, which the first update allocates at ZeRO stage 0, are added to what the trial has used.
    """
    device = next(meta_lm.parameters()).device
    torch.cuda.reset_peak_memory_stats(device)
    try:
        try_pass(meta_lm, config)
    except torch.OutOfMemoryError:
        return False
    finally:
        used = torch.cuda.max_memory_allocated(device)
        torch.cuda.empty_cache()
    moments = 2 * FP32 * all_parameters(config) if zero_stage(config.ds) == 0 else 0
    return used + moments <= (1 - KEPT_FREE) * torch.cuda.mem_get_info(device)[1]


def try_pass(meta_lm: MetaLM, config: PretrainConfig) -> None:
    """One forward and backward pass of a micro-batch, which leaves weights, gradients and random numbers alone.

    With the term `multitask`, whose logits of all classes may be the largest tensor; states of episodes are small.
    """
    train, device = config.train, next(meta_lm.parameters()).device
    tokens = torch.zeros((train.micro_batch, train.seq_len + 1), dtype=torch.long, device=device)
    hidden, parameters = meta_lm.hidden_states(tokens[:, :-1]), [*meta_lm.decoder.parameters()]
    loss = meta_lm.lm_loss_of(hidden, tokens[:, 1:])
    if config.multitask.weight > 0:
        heads = meta_lm.term_heads["multitask"]
        loss = loss + _loss_of_classes(heads, hidden.flatten(0, 1), len(config.classes.partitions) - 1)
        parameters += heads.parameters()
    torch.autograd.grad(loss, [value for value in parameters if value.requires_grad])


def _loss_of_classes(heads: nn.Module, states: Tensor, partitions: int) -> Tensor:
    """A loss in the shape of `metapt.meta.terms.PersistentTerm`, if the usual fraction of states [n, d] has a label."""
    labelled = states[: round(LABELLED_FRACTION * len(states))]
    labels = torch.zeros(len(labelled), dtype=torch.long, device=states.device)
    return torch.stack(
        [cross_entropy(each, labels) for each in heads(labelled).tensor_split(partitions, dim=-1)]
    ).mean()


def _budget(device: torch.device) -> int | None:
    """Bytes of a GPU that a run may use: all but KEPT_FREE, and nothing that another process uses; None for a CPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return min(free, round((1 - KEPT_FREE) * total))
