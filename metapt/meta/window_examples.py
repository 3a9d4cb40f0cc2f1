"""Support and query examples of an episode on windows, as tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metapt.config import MetaConfig
from metapt.data.episodes import Episode
from metapt.models.meta_lm import MetaLM
from metapt.models.packed_windows import PackedWindows


@dataclass
class ExampleBatch:
    """Support or query examples as tensors on the model's device."""

    windows: PackedWindows
    positions: Tensor
    """int64 [n]: the prediction position in each window."""
    labels: Tensor
    """int64 [n]."""
    classes: Tensor
    """int64 [N]: the class of each label among those of the task."""
    columns: Tensor | None
    """int64 [N]: outputs of the episode head that belong to the labels, if it has one for each class of the task."""
    centre: PackedWindows | None = None
    """Support windows on whose mean state the states are centred; None: raw states."""
    centre_rows: int = 0
    """Number of support windows on all ranks."""
    hidden: Tensor | None = None
    """Hidden states [n, d] at the prediction positions, if the inner loop does not change them."""


def example_batches(
    meta_lm: MetaLM,
    task: Episode,
    meta: MetaConfig,
    select: Callable[[np.ndarray], np.ndarray] = lambda rows: rows,
) -> tuple[ExampleBatch, ExampleBatch]:
    """Support and query of an episode, on the device of `meta_lm`.

    Args:
        select: picks the rows whose windows this rank processes; positions and labels are those of all rows.
    """
    assert meta_lm.episode_head is not None
    device = next(meta_lm.parameters()).device
    classes = torch.from_numpy(task.classes).to(device)
    columns = classes if meta_lm.episode_head.per_class else None
    batches: list[ExampleBatch] = []
    for examples in (task.support, task.query):
        windows = PackedWindows.pack(select(examples.tokens), select(examples.positions), device)
        positions, labels = (
            torch.from_numpy(array).to(device) for array in (examples.positions, examples.labels)
        )
        centre = (batches[0].windows if batches else windows) if meta.normalize else None
        batches.append(
            ExampleBatch(windows, positions, labels, classes, columns, centre, len(task.support.labels))
        )
    return batches[0], batches[1]
