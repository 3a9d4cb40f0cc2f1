"""Windows of an episode, truncated after their prediction position and packed into one row.

The hidden states of a causal decoder do not depend on later tokens, so tokens after the prediction position need not
be computed: hidden states and gradients equal those of full windows up to rounding. Windows are sorted by length and
put into a few groups of equal length. Modules that act on single tokens see one long row; only attention runs group
by group (metapt/models/attention.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MAX_GROUPS = 8
"""More groups waste fewer tokens, and need more calls of attention."""
MIN_GROUP_WINDOWS = 8
"""Smallest number of windows per group."""


@dataclass(frozen=True)
class PackedWindows:
    """n truncated windows in one row of `total` tokens."""

    tokens: Tensor
    """int64 [1, total]."""
    position_ids: Tensor
    """int64 [1, total]: the position of each token in its window."""
    prediction_indices: Tensor
    """int64 [n]: the index in `tokens` of each window's prediction position."""
    groups: tuple[tuple[int, int], ...]
    """(number of windows, length) of each group, in the order of `tokens`."""

    @classmethod
    def pack(cls, tokens: np.ndarray, positions: np.ndarray, device: torch.device) -> PackedWindows:
        """Pack windows int64 [n, W], each truncated after its prediction position, int64 [n]."""
        rows, position_ids, groups = [], [], []
        prediction_indices, total = np.empty_like(positions), 0
        for length, windows in _group_by_length(positions).items():
            rows.append(tokens[windows, :length].ravel())
            position_ids.append(np.tile(np.arange(length), len(windows)))
            groups.append((len(windows), length))
            prediction_indices[windows] = total + length * np.arange(len(windows)) + positions[windows]
            total += length * len(windows)
        row, ids, indices = (
            torch.from_numpy(array).to(device)
            for array in (np.concatenate(rows)[None], np.concatenate(position_ids)[None], prediction_indices)
        )
        return cls(row, ids, indices, tuple(groups))


def _group_by_length(positions: np.ndarray) -> dict[int, np.ndarray]:
    """Indices of the windows of each group, by the length of the group's longest window, ascending."""
    count = max(1, min(MAX_GROUPS, len(positions) // MIN_GROUP_WINDOWS))
    by_length: dict[int, list[np.ndarray]] = {}
    for windows in np.array_split(np.argsort(positions, kind="stable"), count):
        by_length.setdefault(int(positions[windows[-1]]) + 1, []).append(windows)
    return {length: np.concatenate(windows) for length, windows in by_length.items()}
