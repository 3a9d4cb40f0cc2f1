"""Count the collectives of one update of four micro-batches at each ZeRO stage.

usage: torchrun ... python tests/collective_counts.py OUT STAGE,...

Rank 0 writes calls and elements by kind of collective and stage to OUT, together with the number of parameters.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

UNITS = 4
KINDS = ("all_reduce", "reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast")
calls: Counter[str] = Counter()
elements: Counter[str] = Counter()


def size_of(argument: Any) -> int:
    """Elements of a tensor or of a list of tensors; 0 of anything else."""
    if isinstance(argument, Tensor):
        return argument.numel()
    return sum(map(size_of, argument)) if isinstance(argument, list) else 0


def counted(kind: str) -> Any:
    """The collective, which is counted: elements are those of the largest argument, which all ranks have or make together."""
    function = getattr(dist, kind)

    def call(*args: Any, **kwargs: Any) -> Any:
        calls[kind] += 1
        elements[kind] += max(map(size_of, (*args, *kwargs.values())))
        return function(*args, **kwargs)

    return call


for kind in KINDS:
    setattr(dist, kind, counted(kind))  # before DeepSpeed looks at them

from metapt.config import commandline  # noqa: E402
from metapt.meta.objectives import next_token_objective  # noqa: E402
from metapt.models.meta_lm import build_meta_lm  # noqa: E402
from metapt.training.engine import Engine  # noqa: E402


def update(engine: Engine) -> None:
    for unit in range(UNITS):
        tokens = torch.randint(0, 2048, (2, 17), generator=torch.Generator().manual_seed(unit))
        loss = next_token_objective(engine.meta_lm, tokens).loss / UNITS
        engine.backward(loss, last=unit == UNITS - 1)
    engine.step(1e-3)


if __name__ == "__main__":
    out, stages = sys.argv[1:]
    found = {}
    for ds in stages.split(","):
        config = commandline.load("pretrain", ["model=nano", "objective=vanilla", f"ds={ds}"])
        engine = Engine(build_meta_lm(config), config)
        update(engine)  # the first may also initialize
        calls.clear()
        elements.clear()
        update(engine)
        size = sum(getattr(value, "ds_numel", value.numel()) for value in engine.meta_lm.parameters())
        found[ds] = {"parameters": size, "calls": dict(calls), "elements": dict(elements)}
    if engine.rank == 0:
        Path(out).write_text(json.dumps(found))
    engine.barrier()
