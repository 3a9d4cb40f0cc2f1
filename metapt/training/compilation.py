"""Whether a run is compiled: by its keys, its device, and a trial of the compiler on every rank."""

from __future__ import annotations

import sys

import torch
from torch import distributed as dist

from metapt.config import PretrainConfig, is_compiled
from metapt.errors import first_line
from metapt.models.meta_lm import COMPILER_FAILED, MetaLM
from metapt.training.engine import from_all_ranks


def compile_where_possible(meta_lm: MetaLM, config: PretrainConfig, device: torch.device) -> None:
    """Compile the parts of a model if the run is to be compiled and the compiler works on all ranks.

    All ranks must call it. Otherwise the run is eager, after one warning.
    """
    if not is_compiled(config, device.type):
        return
    problems = from_all_ranks(compiler_problem(device))
    if found := [problem for problem in problems if problem]:
        if dist.get_rank() == 0:
            print(COMPILER_FAILED.format(found[0]), file=sys.stderr, flush=True)
        return
    meta_lm.compile_parts((config.train.micro_batch, config.train.seq_len))


def compiler_problem(device: torch.device) -> str | None:
    """Why torch.compile fails on a device, such as a missing C compiler or Python.h; None if it works."""

    def function(values: torch.Tensor) -> torch.Tensor:
        return values.sin().square().sum()

    try:
        values = torch.ones(16, device=device, requires_grad=True)
        torch.compile(function, fullgraph=True)(values).backward()
    except Exception as error:  # of torch, Triton, or whatever they start
        return first_line(error)
    return None
